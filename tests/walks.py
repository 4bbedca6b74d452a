"""Following work through the modules of ns_ray while it is done."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

Call = tuple[str, str]
"""(module that calls, module that is called)."""


@contextmanager
def following(calls: list[Call]) -> Iterator[None]:
    """Note every call from one module of ns_ray into another, in all threads that begin inside.

    A coroutine that goes on, and a call that comes back, are not calls.
    """
    seen: list[FrameType] = []  # kept, so that no later frame gets the address of an earlier one
    known: set[int] = set()

    def trace(frame: FrameType, event: str, argument: Any) -> None:
        module = str(frame.f_globals.get("__name__", ""))
        if event != "call" or not module.startswith("ns_ray.") or id(frame) in known:
            return
        if frame.f_code.co_name == "<module>":  # an import
            return
        seen.append(frame)
        known.add(id(frame))
        caller = frame.f_back
        while caller and not str(caller.f_globals.get("__name__", "")).startswith("ns_ray."):
            caller = caller.f_back
        if caller is not None and caller.f_globals["__name__"] != module:
            calls.append((str(caller.f_globals["__name__"]), module))

    threading.setprofile(trace)
    sys.setprofile(trace)
    try:
        yield
    finally:
        threading.setprofile(None)
        sys.setprofile(None)
