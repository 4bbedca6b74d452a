"""What the process that calls us has set: put aside while we work, and as before then."""

import random
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext


@contextmanager
def kept() -> Iterator[None]:
    """Work as in a fresh process, and leave this one as it was.

    Meanwhile torch makes float32 on the CPU and has gradients, so that a seed gives what it gives
    everywhere. In the end, SIGTERM does what it did before, and generators of random numbers,
    torch's number of threads and its defaults are as the caller had them.
    """
    before, drawn = signal.getsignal(signal.SIGTERM), random.getstate()
    try:
        with _torch_kept():
            yield
    finally:
        random.setstate(drawn)
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _torch_kept() -> Iterator[None]:
    """The same of torch. Who has not imported it has set nothing, and need not wait for it."""
    if "torch" not in sys.modules:
        yield
        return
    import torch

    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    # Asking for a GPU's generator would start CUDA, and a process that has not has drawn nothing.
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    gpus = range(torch.cuda.device_count()) if started else ()
    # Only where it changes something: in it each operation takes a way through Python.
    elsewhere = torch.get_default_device().type != "cpu"
    try:
        torch.set_default_dtype(torch.float32)
        with (
            torch.random.fork_rng(gpus),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.device("cpu") if elsewhere else nullcontext(),
        ):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
