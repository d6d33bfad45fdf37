"""One thread, and the CPU by default, for many small matrices.

SciPy's L-BFGS-B wakes OpenBLAS's threads for every one of its tiny products, where they compete
with those of torch for the same cores: on two cores that cost four times the CPU of one thread.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from threadpoolctl import ThreadpoolController


@contextmanager
def small_matrices() -> Iterator[None]:
    """Let torch and every BLAS use one thread inside the block, and what they had after it.

    New tensors are on the CPU, whatever default device the user has set. (Setting it costs every
    call of torch some microseconds, so it is set only where it is another.)
    """
    on_cpu = torch.get_default_device().type == "cpu"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with (
            _controller().limit(limits=1, user_api="blas"),
            nullcontext() if on_cpu else torch.device("cpu"),
        ):
            yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def _controller() -> ThreadpoolController:
    """Return the libraries that are loaded; to look for them takes milliseconds."""
    return ThreadpoolController()
