"""Which software made a result: versions of libraries, and the commit of this package."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a result."""
    found = {"python": platform.python_version()}
    for name in ("ns-ray", "torch", "timm", "ray", "numpy", "pillow", "pyarrow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_sha(folder: str | None = None) -> str | None:
    """Commit of the checkout this package lies in; None when it is installed elsewhere, or there
    is no `git` to ask."""
    here = Path(folder) if folder else Path(__file__).resolve().parent
    if not any((parent / ".git").exists() for parent in (here, *here.parents)):
        return None
    try:
        told = subprocess.run(
            # Whoever owns the checkout: in a container that is often another user.
            ["git", "-c", "safe.directory=*", "-C", str(here), "rev-parse", "--verify", "HEAD"],
            env={k: v for k, v in os.environ.items() if not k.startswith("GIT_")},
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):  # no git here, or no commit yet
        return None
    return told.stdout.strip()
