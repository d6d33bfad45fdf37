"""Masks of a ReLU behind its max-pool, where they are as small as what is pooled.

Autograd masks whole activations and then gathers a quarter of them, or scatters a quarter and then
masks all. With ``y, i = pool(x)``, so that ``y[j] = x[i[j]]`` to the bit, the other order gives the
same to the bit, and x need not be kept for it::

    mask(scatter(g, i), x)  =  scatter(mask(g, y), i)
    gather(mask(v, x), i)   =  mask(gather(v, i), y)

where ``mask(v, x)`` is 0 where ``x <= threshold``, and v elsewhere: also where x is NaN. A window
with NaN in it has NaN for its maximum, and the place of one for its index, so this holds for NaN
too. A place in several windows gets the sum of the same terms in the same order, or of zeros.

Letters: x what is pooled, v of its size; y the maxima and i their places, g of their size.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx

from hyperopt_dl.hypergrad.traces.aliases import memory_of, written_by

aten = torch.ops.aten

_POOL = aten.max_pool2d_with_indices.default
_SCATTER = aten.max_pool2d_with_indices_backward.default
_MASK = aten.threshold_backward.default
_GATHER = aten.gather.default
_VIEW = aten.view.default
_BLANK = aten.new_empty_strided.default


class _Pool(NamedTuple):
    x: fx.Node
    y: fx.Node
    i: fx.Node


_Same: TypeAlias = Callable[[_Pool, fx.Node, fx.Node], bool]


def mask_what_is_pooled(graph: fx.Graph) -> bool:
    """Move masks behind the max-pools in a trace, in place; return whether there was one to move.

    A mask stays where it is if something writes between into what it reads, if it is needed there
    too, or if that is as small: where there are as many windows as places.
    """
    nodes = list(graph.nodes)
    pools = {pool.i: pool for node in nodes if node.target is _POOL for pool in _pools(node)}
    masks = [node for node in nodes if node.target is _MASK and not node.kwargs]
    if not (pools and masks):
        return False
    order = {node: k for k, node in enumerate(nodes)}
    memory = memory_of(nodes)
    writes = [(k, memory[each]) for k, node in enumerate(nodes) for each in written_by(node)]

    def is_same(pool: _Pool, first: fx.Node, last: fx.Node) -> bool:
        """Return whether y are the maxima of x, and i their places, from one node to another."""
        of, made = {memory[each] for each in pool}, max(order[each] for each in pool)
        written = any(made < k < order[last] and each in of for k, each in writes)
        return made < order[first] and not written

    changed = [
        _behind_scatter(mask, pools, is_same) or _behind_gather(mask, pools, is_same)
        for mask in masks
    ]
    return any(changed)


def _pools(node: fx.Node) -> list[_Pool]:
    """Return a max-pool by its input and outputs, if there are fewer of the latter."""
    items = {user.args[1]: user for user in node.users if user.target is operator.getitem}
    x = node.args[0]
    if len(items) < 2 or not isinstance(x, fx.Node):
        return []
    pool = _Pool(x, items[0], items[1])
    return [pool] if _value(pool.y).numel() < _value(x).numel() else []


def _behind_scatter(mask: fx.Node, pools: Mapping[Any, _Pool], is_same: _Same) -> bool:
    """``mask(scatter(g, i), x) -> scatter(mask(g, y), i)``."""
    args: Any = mask.args
    scatter, x, threshold = args
    if not _is_only_for(scatter, _SCATTER, mask):
        return False
    g, like, *windows, i = scatter.args
    pool = pools.get(i)
    if pool is None or pool.x is not x or not is_same(pool, scatter, mask):
        return False
    if not _same_layout(mask, scatter):
        return False
    masked = _new(scatter, _MASK, g, pool.y, threshold)
    new = _new(scatter, _SCATTER, masked, _blank(scatter, masked, like), *windows, i)
    _replace(mask, new, scatter)
    return True


def _behind_gather(mask: fx.Node, pools: Mapping[Any, _Pool], is_same: _Same) -> bool:
    """``gather(mask(v, x), i) -> mask(gather(v, i), y)``, both flattened over the last two."""
    args: Any = mask.args
    v, x, threshold = args
    flat = next(iter(mask.users), mask)
    gather = next(iter(flat.users), mask)
    if not (_is_only_for(mask, _MASK, flat) and _is_only_for(flat, _VIEW, gather)):
        return False
    if gather.target is not _GATHER or gather.args[0] is not flat or gather.kwargs:
        return False
    args = gather.args
    _, dim, places = args
    pool = pools.get(places.args[0]) if places.target is _VIEW else None
    if pool is None or pool.x is not x or not is_same(pool, mask, gather):
        return False
    if dim not in (-1, _value(flat).ndim - 1):
        return False
    if not (_is_flat(flat, v) and _is_flat(places, pool.i) and _is_flat(places, pool.y)):
        return False
    if not _same_layout(mask, v):
        return False
    v, y, i = (
        _new(mask, _VIEW, whole, shape.args[1])
        for whole, shape in ((v, flat), (pool.y, places), (pool.i, places))
    )
    new = _new(mask, _MASK, _new(mask, _GATHER, v, dim, i), y, threshold)
    _replace(gather, new, flat, mask)
    return True


def _blank(before: fx.Node, masked: fx.Node, like: fx.Node) -> fx.Node:
    """Return a node for memory laid out like x, which the kernels of CPU and CUDA never read.

    That of MPS reads x itself.
    """
    if torch.backends.mps.is_available():
        return like
    value = _value(like)
    return _new(before, _BLANK, masked, list(value.shape), list(value.stride()))


def _is_only_for(node: Any, target: Any, user: fx.Node) -> bool:
    """Return whether the node is of this operator, and nothing but this user needs it."""
    return (
        isinstance(node, fx.Node)
        and node.target is target
        and not node.kwargs
        and list(node.users) == [user]
    )


def _is_flat(flat: fx.Node, source: fx.Node) -> bool:
    """Return whether the one is the other, contiguous, with its last two dimensions as one."""
    shape = _value(source).shape
    return _value(source).is_contiguous() and (
        _value(flat).shape == (*shape[:-2], shape[-2] * shape[-1])
    )


def _same_layout(a: fx.Node, b: fx.Node) -> bool:
    return (_value(a).shape, _value(a).stride()) == (_value(b).shape, _value(b).stride())


def _value(node: fx.Node) -> Tensor:
    """Return the tensor without data that the tracer has left with the node."""
    value: Tensor = node.meta["val"]
    return value


def _new(before: fx.Node, target: Any, *args: Any) -> fx.Node:
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, args)
    node.meta["val"] = target(*fx.map_arg(args, _value))
    return node


def _replace(node: fx.Node, new: fx.Node, *inputs: fx.Node) -> None:
    """Let a new node take the place of one, and take out that and what only it has used."""
    node.replace_all_uses_with(new)
    for each in (node, *inputs):
        each.graph.erase_node(each)
