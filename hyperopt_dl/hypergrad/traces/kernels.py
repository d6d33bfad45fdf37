"""The kernels of torch that have a second derivative.

Which ones torch takes is a setting of the whole process, and runs may be differentiated in several
threads: so the first thread changes it, and the last one changes it back.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


class _Shared:
    """A change of the whole process that lasts while any thread is in a block of it."""

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._change = self._make()
                self._change.__enter__()
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._change.__exit__(None, None, None)


@contextmanager
def _without_libraries() -> Iterator[None]:
    """Run recurrent layers by torch's own kernels."""
    libraries: Any = (torch.backends.mkldnn, torch.backends.cudnn)
    before = [library.enabled for library in libraries]
    try:
        for library in libraries:
            library.enabled = False
        yield
    finally:
        for library, enabled in zip(libraries, before, strict=True):
            library.enabled = enabled


_PLAIN_ATTENTION = _Shared(lambda: sdpa_kernel(SDPBackend.MATH))
_PLAIN_RECURRENCE = _Shared(_without_libraries)


@contextmanager
def kernels_with_second_derivatives(recurrent: bool) -> Iterator[None]:
    """Leave aside kernels that cannot be differentiated twice, or not traced: see ``Eager``."""
    with _PLAIN_ATTENTION, _PLAIN_RECURRENCE if recurrent else nullcontext():
        yield
