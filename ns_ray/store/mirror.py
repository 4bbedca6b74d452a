"""Files that grow while a run works, where its folder is in an object store.

Objects cannot be appended to. So the files grow in a local folder, and whole copies of those that
changed replace the objects now and then: a killed process loses the last seconds, and the next one
begins with what the store has. One process writes at a time.
"""

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ns_ray.log import say
from ns_ray.store import files
from ns_ray.store.paths import is_uri, join

COPY_SECONDS = 10.0
"""How far the objects may be behind, as long as copying takes no time to speak of."""

SHARE = 0.1
"""Most of the time that is spent on copying: large files are copied less often."""


@contextmanager
def mirrored(root: str, appended: Sequence[str]) -> Iterator[str]:
    """A local folder for growing files: `root` itself; where that is in an object store, a
    temporary folder of whose files `root` has copies, soon and at the end.

    Args:
        root: where readers look for the files.
        appended: names of files that an earlier process may have begun.

    Raises:
        StorageError: such a file cannot be read.
    """
    if not is_uri(root):
        yield root
        return
    folder = tempfile.mkdtemp(prefix="ns-ray-")
    for name in appended:
        with suppress(FileNotFoundError):
            Path(folder, name).write_bytes(files.read_bytes(join(root, name)))
    copies, over = _Copies(folder, root), threading.Event()
    thread = threading.Thread(target=copies.keep_up, args=(over,), name="mirror", daemon=True)
    thread.start()
    try:
        yield folder
    finally:
        over.set()
        thread.join()
        try:
            copies.update()
            shutil.rmtree(folder)
        except OSError as error:  # what ends here matters more than its log
            say(f"{error}; what could not be copied is in {folder}")


class _Copies:
    def __init__(self, folder: str, root: str) -> None:
        self._folder, self._root = folder, root
        self._known = self._states()

    def keep_up(self, over: threading.Event) -> None:
        pause = COPY_SECONDS
        while not over.wait(pause):
            begun = time.monotonic()
            with suppress(OSError):  # the next round, or the last, may go better
                self.update()
            pause = max(COPY_SECONDS, (time.monotonic() - begun) / SHARE)

    def update(self) -> None:
        """Copy what has changed since the last copy.

        Raises:
            StorageError: it cannot be.
        """
        for name, state in self._states().items():
            if self._known.get(name) != state:
                data = Path(self._folder, name).read_bytes()
                files.write_bytes(join(self._root, name), data)
                self._known[name] = state

    def _states(self) -> dict[str, tuple[int, int]]:
        """Size and time of change of each file, by its path in the folder."""
        grown = {path: path.stat() for path in Path(self._folder).rglob("*") if path.is_file()}
        return {
            path.relative_to(self._folder).as_posix(): (state.st_size, state.st_mtime_ns)
            for path, state in grown.items()
        }
