"""A plugin of coverage.py that saves what has run twice a second, in every process.

Ray ends its workers without letting Python finish, so that what coverage.py would save at exit is
lost: a labeling actor would count as never run. `make coverage` uses it, see pyproject.toml.
"""

import threading
import time

from coverage import Coverage
from coverage.plugin_support import Plugins
from coverage.types import TConfigurable

SECONDS = 0.5


def coverage_init(_plugins: Plugins, _options: TConfigurable) -> None:
    """Called by coverage.py when it starts in a process."""
    threading.Thread(target=_save_at_intervals, name="coverage", daemon=True).start()


def _save_at_intervals() -> None:
    while True:
        time.sleep(SECONDS)
        running = Coverage.current()
        if running is not None:
            running.save()
