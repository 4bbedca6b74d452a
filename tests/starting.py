"""Ray that a test starts itself, on a machine where much else is at work."""

import contextlib
from collections.abc import Callable
from typing import Any

import tenacity

from ns_ray.compute.runtime import STARTS, TOO_LATE


def in_time(start: Callable[..., Any], *where: Any, **what: Any) -> Any:
    """What `start` makes of its arguments: a node, or Ray of this process. Ray's own limits of that
    time are no settings (see TOO_LATE); what came too late is ended and started again."""
    import psutil  # comes with Ray

    here = psutil.Process()
    before = set(here.children())

    def end_what_came_too_late(_: Any) -> None:
        for late in set(here.children()) - before:  # a test may have begun others meanwhile
            with contextlib.suppress(psutil.NoSuchProcess):
                if late.name() in ("raylet", "gcs_server"):
                    for process in [late, *late.children(recursive=True)]:
                        process.kill()

    again = tenacity.retry(
        retry=tenacity.retry_if_exception_message(match=TOO_LATE),
        stop=tenacity.stop_after_attempt(STARTS),
        before_sleep=end_what_came_too_late,
        reraise=True,
    )
    return again(start)(*where, **what)
