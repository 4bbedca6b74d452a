"""Whether the head of the cluster is still there: its GCS, which every process of Ray needs.

Without it Ray 2.60 ends the process after a minute, in its C++ part: exit code 1, and not a word
but in ray.log. Here the process ends before that, as after any other fault.
"""

import atexit
import os
import signal
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ns_ray.compute.address import greeted
from ns_ray.errors import ConfigError, StageError
from ns_ray.log import say

SECONDS = 3.0
"""Between two questions."""
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Ray's setting for how many seconds it tries."""
TRIES = 60.0
"""Its default (ray_config_def.h)."""
AGAIN = "the same command continues when there is one"


@contextmanager
def joined() -> Iterator[None]:
    """Ray, which has been started or joined; it is left in the end. Inside, the process ends where
    the head does not answer for two thirds of the time that Ray tries. A head that is back by then,
    as one that keeps its state elsewhere, goes on.

    Raises:
        StageError: the head has gone.
    """
    import ray

    client = ray.util.client.ray.is_connected()  # it knows its server, which knows the head
    watch = _Watch(None if client else ray.get_runtime_context().gcs_address)
    watch.start()
    code, there = StageError.exit_code, True
    try:
        yield
    except KeyboardInterrupt:
        if watch.gone is None:
            code = 128 + signal.SIGINT
            raise
    except Exception:
        if watch.answers():
            raise
    finally:
        watch.over.set()
        there = watch.answers()
        if there:
            ray.shutdown()
        else:
            atexit.register(_leave, code)
    if not there:
        raise StageError(watch.gone or f"{watch.head} does not answer; {AGAIN}")


class _Watch(threading.Thread):
    """Asks now and then.

    Attributes:
        head: which, for people.
        over: nobody is to be told any more.
        gone: what the process ends with; None while it goes on.
    """

    def __init__(self, address: str | None) -> None:
        super().__init__(name="gcs", daemon=True)
        self.over = threading.Event()
        self.gone: str | None = None
        self.head = f"the head of the cluster ({address})"
        self._address = address
        self._tries = float(os.environ.get(RECONNECT, TRIES))
        self._interrupts = threading.current_thread() is threading.main_thread()

    def run(self) -> None:
        patience, since = self._tries * 2 / 3, None
        while not self.over.wait(SECONDS):
            if self.answers():
                if since is not None:
                    say(f"{self.head} answers again")
                since = None
            elif since is None:
                since = time.monotonic()
                say(f"{self.head} does not answer; waiting {patience:.0f} s for it")
            elif time.monotonic() - since > patience:
                self._end(patience)
                return

    def answers(self) -> bool:
        """Whether the head does, now."""
        if self.gone is not None or self._address is None:
            return self.gone is None
        try:
            greeted(self._address)
        except (ssl.SSLError, ConfigError):
            return True  # somebody does; our certificates are being replaced, perhaps
        except OSError:
            return False
        return True

    def _end(self, patience: float) -> None:
        """Interrupt the main thread, which leaves folders as it should; where it is stuck in a call
        of Ray, end the process before Ray does."""
        self.gone = (
            f"{self.head} has not answered for {patience:.0f} s ({RECONNECT}={self._tries:g}, of "
            f"which two thirds are waited); {AGAIN}"
        )
        end = time.monotonic() + self._tries / 6
        while time.monotonic() < end:
            if not self.over.is_set():
                self._interrupt()  # again and again: what is left on the way may wait for Ray, too
            time.sleep(1)
        sys.stderr.write(f"error: {self.gone}\n")
        _leave(StageError.exit_code)

    def _interrupt(self) -> None:
        main = threading.main_thread().ident
        if self._interrupts and main and callable(signal.getsignal(signal.SIGINT)):
            signal.pthread_kill(main, signal.SIGINT)


def _leave(code: int) -> None:
    """End the process without `ray.shutdown`, which waits for the head, and lets nobody else run
    while it does."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
