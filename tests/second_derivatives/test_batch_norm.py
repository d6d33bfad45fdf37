"""The second derivatives of batch normalization, against torch's and finite differences."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import pytest
import torch
from torch import Tensor
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx

from hyperopt_dl.second_derivatives.batch_norm import batch_norm

EPS = 0.1  # as large as the variances: what holds without it alone would be seen
SHAPES = [(5, 3), (4, 3, 2), (2, 3, 2, 3), (2, 2, 2, 1, 2), (1, 3, 4), (3, 1)]
Inputs: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None]
Norm: TypeAlias = Callable[
    [Tensor, Tensor | None, Tensor | None, float], tuple[Tensor, Tensor, Tensor]
]
AFFINE = [(True, True), (True, False), (False, True), (False, False)]


def inputs(
    shape: Sequence[int],
    affine: tuple[bool, bool] = (True, True),
    dtype: torch.dtype = torch.double,
) -> Inputs:
    generator = torch.Generator().manual_seed(len(shape))

    def draw(*size: int) -> Tensor:
        drawn = torch.randn(*size, generator=generator, dtype=torch.double).to(dtype)
        return drawn.requires_grad_()

    x = (draw(*shape) * 0.7 + 0.4).detach().requires_grad_()
    weight, bias = (draw(shape[1]) if given else None for given in affine)
    return x, weight, bias


def plain(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of torch, whose second derivative fails for a bias without a weight."""
    dims = [0, *range(2, x.ndim)]
    weight = torch.ones_like(bias) if weight is None and bias is not None else weight
    y = torch.nn.functional.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    return y, x.mean(dims), x.var(dims, correction=0)


def directional(norm: Norm, tensors: Inputs, *, moments: bool) -> list[Tensor]:
    """Return the gradient of a loss, and that of its product with a vector and of the moments.

    The loss is curved in y; ``moments`` says whether it depends on the mean and variance, too.
    """
    x, weight, bias = tensors
    given = [tensor for tensor in tensors if tensor is not None]
    y, mean, var = norm(x, weight, bias, EPS)
    y = y.to(mean.dtype)
    loss = (y.sin() * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)).sum()
    if moments:
        loss = loss + (mean * var.exp()).sum()
    first = grad(loss, given, create_graph=True)
    product = torch.stack([(g * (g.detach().cos() + 1)).to(mean).sum() for g in first]).sum()
    second = grad(product + 3 * mean.sum() - 2 * var.square().sum(), given)
    return [*first, *second]


@pytest.mark.parametrize("affine", AFFINE)
@pytest.mark.parametrize("shape", SHAPES)
def test_both_derivatives_of_all_outputs_agree_with_finite_differences(
    shape: Sequence[int], affine: tuple[bool, bool]
) -> None:
    given = [tensor for tensor in inputs(shape, affine) if tensor is not None]

    def norm(x: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rest = iter(others)
        weight, bias = (next(rest) if has else None for has in affine)
        return batch_norm(x, weight, bias, EPS)

    assert gradcheck(norm, given)
    assert gradgradcheck(norm, given)


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("affine", AFFINE)
@pytest.mark.parametrize("shape", SHAPES)
def test_both_derivatives_are_those_of_torch(
    shape: Sequence[int], affine: tuple[bool, bool], moments: bool
) -> None:
    tensors = inputs(shape, affine)
    found = directional(batch_norm, tensors, moments=moments)
    torch.testing.assert_close(found, directional(plain, tensors, moments=moments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_output_is_that_of_torch_to_the_last_bit_and_so_is_its_gradient(
    layout: torch.memory_format, dtype: torch.dtype
) -> None:
    x, weight, bias = inputs((4, 3, 5, 6), dtype=torch.float32)
    assert weight is not None
    assert bias is not None
    x = x.detach().to(dtype, memory_format=layout).requires_grad_()
    if dtype == torch.double:
        weight, bias = (t.detach().to(dtype).requires_grad_() for t in (weight, bias))
    given = (x, weight, bias)
    found, expected = (norm(x, weight, bias, EPS)[0] for norm in (batch_norm, plain))
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()
    pairs = zip(grad(found.sin().sum(), given), grad(expected.sin().sum(), given), strict=True)
    assert all(torch.equal(ours, torchs) for ours, torchs in pairs)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_single_precision_is_as_close_to_the_exact_derivatives_as_that_of_torch(
    layout: torch.memory_format,
) -> None:
    tensors = inputs((16, 3, 8, 8))
    exact = directional(plain, tensors, moments=True)
    x, weight, bias = inputs((16, 3, 8, 8), dtype=torch.float32)
    x = x.detach().contiguous(memory_format=layout).requires_grad_()
    found = directional(batch_norm, (x, weight, bias), moments=True)
    theirs = directional(plain, (x, weight, bias), moments=True)
    for ours, torchs, true in zip(found, theirs, exact, strict=True):
        size = true.norm()
        assert (ours - true).norm() < 2 * (torchs - true).norm() + 1e-6 * size


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_trace_of_both_passes_gives_the_same(shape: Sequence[int], dtype: torch.dtype) -> None:
    tensors = inputs(shape, dtype=dtype)

    def both(*leaves: Tensor) -> list[Tensor]:
        x, weight, bias = (leaf.detach().requires_grad_() for leaf in leaves)
        return directional(batch_norm, (x, weight, bias), moments=True)

    given = [tensor.detach() for tensor in tensors if tensor is not None]
    graph = make_fx(both)(*(torch.rand_like(tensor) for tensor in given))
    torch.testing.assert_close(graph(*given), directional(batch_norm, tensors, moments=True))


def test_bfloat16_activations_and_a_float32_weight_have_second_derivatives() -> None:
    x, weight, bias = inputs((8, 3, 6, 6), dtype=torch.float32)
    x = x.detach().bfloat16().requires_grad_()
    exact = directional(plain, (x.detach().float().requires_grad_(), weight, bias), moments=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = directional(batch_norm, (x, weight, bias), moments=False)
    assert [g.dtype for g in found] == 2 * [torch.bfloat16, torch.float32, torch.float32]
    for ours, true in zip(found, exact, strict=True):
        assert (ours - true).norm() < 0.1 * true.norm()


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (1, 2), (0, 2)])
def test_only_some_of_the_tensors_may_need_a_derivative(needed: tuple[int, ...]) -> None:
    leaves = [
        tensor.detach().requires_grad_(i in needed)
        for i, tensor in enumerate(inputs((4, 3, 2, 2)))
        if tensor is not None
    ]

    def second(norm: Norm) -> tuple[Tensor, ...]:
        x, weight, bias = leaves
        y, *_ = norm(x, weight, bias, EPS)
        some = [leaves[i] for i in needed]
        first = grad(y.sin().square().sum(), some, create_graph=True)
        return grad(torch.cat([g.sin().view(-1) for g in first]).sum(), some)

    torch.testing.assert_close(second(batch_norm), second(plain))


def test_a_weight_of_zero_has_the_second_derivatives_of_torch() -> None:
    x, weight, bias = inputs((4, 3, 2, 2))
    assert weight is not None
    tensors = (x, torch.zeros_like(weight).requires_grad_(), bias)
    found = directional(batch_norm, tensors, moments=True)
    torch.testing.assert_close(found, directional(plain, tensors, moments=True))


def test_a_constant_channel_has_no_variance() -> None:
    _, mean, var = batch_norm(torch.full((4, 2, 3), 1.7), None, None, 1e-5)
    torch.testing.assert_close(mean, torch.full((2,), 1.7))
    assert (var >= 0).all()
    torch.testing.assert_close(var, torch.zeros(2), atol=1e-11, rtol=0)


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_one_value_per_channel_is_an_error_as_in_torch(shape: Sequence[int]) -> None:
    x = torch.ones(shape)
    with pytest.raises(ValueError, match="more than 1 value per channel") as theirs:
        torch.nn.functional.batch_norm(x, None, None, training=True)
    with pytest.raises(ValueError, match="more than 1 value per channel") as ours:
        batch_norm(x, None, None, EPS)
    assert str(ours.value).startswith(str(theirs.value))


def test_a_third_derivative_is_refused() -> None:
    x, weight, bias = inputs((5, 3))
    (first,) = grad(batch_norm(x, weight, bias, EPS)[0].sin().sum(), x, create_graph=True)
    (second,) = grad(first.sin().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="third derivative for batch_norm is not implemented"):
        grad(second.sum(), x)
