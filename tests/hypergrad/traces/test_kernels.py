"""Which kernels of torch are taken where a run is differentiated."""

import threading
from typing import Any

import pytest
import torch

from hyperopt_dl.hypergrad.traces.kernels import kernels_with_second_derivatives


def settings() -> list[bool]:
    cuda: Any = torch.backends.cuda  # which names the settings of every device
    attention = cuda.flash_sdp_enabled(), cuda.math_sdp_enabled()
    return [*attention, torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled]


def test_attention_is_the_plain_one_inside_and_as_before_outside() -> None:
    before = settings()
    with kernels_with_second_derivatives(recurrent=False):
        assert settings() == [False, True, *before[2:]]
        with kernels_with_second_derivatives(recurrent=True):
            assert settings() == [False, True, False, False]
        assert settings() == [False, True, *before[2:]]
    assert settings() == before


def test_an_error_inside_leaves_the_kernels_as_before() -> None:
    before = settings()
    with pytest.raises(ZeroDivisionError), kernels_with_second_derivatives(recurrent=True):
        raise ZeroDivisionError
    assert settings() == before


def test_threads_that_overlap_leave_the_kernels_as_before() -> None:
    """The first one in is the first one out, while the other is still inside."""
    before, seen = settings(), list[list[bool]]()
    second_is_in, first_is_out = threading.Event(), threading.Event()

    def second() -> None:
        with kernels_with_second_derivatives(recurrent=True):
            second_is_in.set()
            assert first_is_out.wait(60)
            seen.append(settings())

    thread = threading.Thread(target=second)
    with kernels_with_second_derivatives(recurrent=True):
        thread.start()
        assert second_is_in.wait(60)
    first_is_out.set()
    thread.join(60)
    assert seen == [[False, True, False, False]]
    assert settings() == before
