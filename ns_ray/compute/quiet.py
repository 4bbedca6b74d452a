"""Ray's own messages of this process: into a file, not between ours."""

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast


@contextmanager
def quiet(log_file: str | None) -> Iterator[None]:
    """Send what Ray prints in this process to a file, and its progress bars nowhere. Ray's C++ part
    writes to file descriptor 2 (`sys.stderr` keeps pointing at the real one), and a thread of it
    prints what happened to workers on `sys.stdout`."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    if log_file is None:
        yield
        return
    Path(log_file).parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(log_file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data", "ray.train", "ray.serve")]
    usual_handlers = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    sys.stderr.flush()
    usual = sys.stdout, sys.stderr
    with (
        open(log_file, "a", buffering=1) as file,
        os.fdopen(os.dup(2), "w", buffering=1) as stderr,
    ):
        os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = cast(TextIO, _NotFromRay(usual[0], file)), stderr
        try:
            yield
        finally:
            sys.stdout, sys.stderr = usual
            stderr.flush()
            os.dup2(stderr.fileno(), 2)
            for logger, (handlers, propagate) in zip(loggers, usual_handlers, strict=True):
                logger.handlers, logger.propagate = handlers, propagate
            handler.close()


class _NotFromRay:
    """A stream, but for what Ray's own threads write: that goes to another."""

    def __init__(self, stream: TextIO, other: TextIO) -> None:
        self._stream, self._other = stream, other

    def write(self, text: str) -> int:
        from_ray = threading.current_thread().name.startswith("ray_")
        return (self._other if from_ray else self._stream).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
