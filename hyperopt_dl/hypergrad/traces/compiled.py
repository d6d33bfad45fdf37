"""Programs of a trace through TorchInductor: fewer and faster kernels, after minutes of compiling.

The compiled code is kept in a folder of its own, so that a process that was killed while compiling
leaves nothing broken for anyone else, and the next process on this machine finds what is done.
"""

import getpass
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from hyperopt_dl.errors import TrainingError

CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""The environment variable that says where compiled code is kept; ours holds where it is unset."""


class Compiled:
    """A graph that is compiled when it is first called.

    Args:
        module: The graph.

    Raises:
        TrainingError: On the first call, the compiler cannot do it.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._function: Callable[..., Any] | None = None

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the graph."""
        if self._function is None:
            self._function = _compile(self._module, tensors)
        return tuple(self._function(*tensors))


def _compile(module: fx.GraphModule, tensors: tuple[Tensor, ...]) -> Callable[..., Any]:
    # An attribute of torch that is imported on its first use, which takes seconds.
    inductor: Any = torch._inductor
    try:
        with _cache_in(default_folder()):
            compiled: Callable[..., Any] = inductor.compile(module, list(tensors))
    except Exception:  # perhaps a file that a killed process has left unfinished
        try:
            with _cache_in(Path(tempfile.mkdtemp(prefix="hyperopt_dl_inductor_")), always=True):
                compiled = inductor.compile(module, list(tensors))
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            raise TrainingError(
                f"compile=True needs TorchInductor and a C++ compiler that works here, got "
                f"{type(error).__name__}: {lines[0][:200]}. Use compile=False; the result is the "
                f"same."
            ) from error
    return compiled


def default_folder() -> Path:
    """Return the folder for compiled code, one for each user and version of torch."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return Path(tempfile.gettempdir()) / f"hyperopt_dl_inductor_{user}_{torch.__version__}"


@contextmanager
def _cache_in(folder: Path, *, always: bool = False) -> Iterator[None]:
    """Keep compiled code in a folder, ``always`` or where the user has not said another."""
    before = os.environ.get(CACHE)
    if always or before is None:
        os.environ[CACHE] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(CACHE, None)
        if before is not None:
            os.environ[CACHE] = before
