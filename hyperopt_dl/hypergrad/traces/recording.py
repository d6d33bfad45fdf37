"""The operators that a function of tensors calls, written down as a graph.

``make_fx`` does this for compilers. It makes a fake tensor with a stack trace for each result, and
spends a millisecond on an operator. A sweep asks of a result only its shape, its strides and its
dtype, and these cost less than the operator itself.
"""

import operator
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from hyperopt_dl.hypergrad.traces.aliases import draws, written_by

aten = torch.ops.aten

_LITERALS = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)


def record(function: Callable[..., Any], *tensors: Tensor) -> tuple[torch.nn.Module, fx.Graph]:
    """Call a function and return the operators that it has called, as ``make_fx`` would.

    Each node holds in ``meta["val"]`` a tensor like its result, without data, or None where that is
    sparse.

    Args:
        function: Takes the tensors and returns tensors, also in nested tuples. It may look at the
            value of a tensor that it makes of numbers, and of no other.
        tensors: Distinct objects, each an input of the graph; may be written into.

    Returns:
        A module that holds the constants, and the graph.

    Raises:
        RuntimeError: The function looks at the value of a tensor.
        NotImplementedError: An operator takes what is neither a tensor nor a literal, such as a
            generator.
    """
    recorder = _Recorder()
    for i, tensor in enumerate(tensors):
        recorder.stand_for(tensor, recorder.graph.placeholder(f"input_{i}"))
    with _without_cached_casts(), recorder:
        results = function(*tensors)
    recorder.graph.output(recorder.argument(results))
    recorder.let_go()
    return recorder.root, recorder.graph


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Calls each operator below autograd, and writes it down."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.root = torch.nn.Module()
        self.graph = fx.Graph()
        self._nodes: dict[int, fx.Node] = {}  # by the id of a tensor that is alive
        self._alive: dict[int, weakref.ref[Tensor]] = {}
        self._given: list[Tensor] = []  # tensors that the function has from elsewhere
        self._numbers: set[fx.Node] = set()  # nodes that are the same whatever the inputs

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call an operator and add its node."""
        if any(kind.__torch_dispatch__ is not Tensor.__torch_dispatch__ for kind in types):
            return NotImplemented  # a subclass calls the operators of what is in it
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:
            return func(*args, **kwargs)
        # What torch.tensor() has made belongs to the function, which may write into it.
        func = aten.lift_fresh_copy.default if func is aten.lift_fresh.default else func
        node = self.graph.create_node(
            "call_function",
            func,
            self.argument(args),
            self.argument(kwargs),
            name=func.overloadpacket.__name__,
        )
        if torch.Tag.data_dependent_output in func.tags:
            self._must_be_numbers(node)
            self.graph.erase_node(node)
            return func(*args, **kwargs)
        results = func(*args, **kwargs)
        self._note_numbers(node)
        self._give(results, node)
        return results

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: to skip it, torch would import its compiler, which takes a second."""
        return False

    def argument(self, value: Any) -> Any:
        """Return a value with nodes in the place of tensors."""
        if isinstance(value, Tensor):
            node = self._nodes.get(id(value))
            return self._from_elsewhere(value) if node is None else node
        if isinstance(value, list):
            return [self.argument(each) for each in value]
        if isinstance(value, tuple):
            return tuple(self.argument(each) for each in value)
        if isinstance(value, Mapping):
            return {name: self.argument(each) for name, each in value.items()}
        if not isinstance(value, _LITERALS):
            raise NotImplementedError(f"an operator takes a {type(value).__name__}")
        return value

    def stand_for(self, tensor: Tensor, node: fx.Node) -> None:
        """Let the node be what a tensor is from now on."""
        node.meta["val"] = _without_data(tensor)
        key = id(tensor)
        if key not in self._nodes:
            self._alive[key] = weakref.ref(tensor, lambda _: self._forget(key))
        self._nodes[key] = node

    def let_go(self) -> None:
        """Let go of all tensors but the constants."""
        self._alive.clear()
        self._nodes.clear()

    def _forget(self, key: int) -> None:
        del self._nodes[key], self._alive[key]

    def _from_elsewhere(self, tensor: Tensor) -> fx.Node:
        """Return a node for a tensor that is no input: a constant of the graph."""
        name = f"_constant_{len(self._given)}"
        self._given.append(tensor)
        setattr(self.root, name, tensor)
        node = self.graph.create_node("get_attr", name)
        self.stand_for(tensor, node)
        return node

    def _give(self, results: Any, node: fx.Node) -> None:
        """Let the node stand for the result of its operator, or nodes of the items for these."""
        if isinstance(results, Tensor):
            self.stand_for(results, node)
        elif isinstance(results, (tuple, list)):
            for i, result in enumerate(results):
                if isinstance(result, Tensor):
                    item = self.graph.call_function(operator.getitem, (node, i))
                    self._note_numbers(item)
                    self.stand_for(result, item)

    def _note_numbers(self, node: fx.Node) -> None:
        """Note whether a new node is the same whatever the inputs, and what it has changed."""
        if node.target is aten.lift_fresh_copy.default:
            self._numbers.add(node)
        elif self._numbers:
            inputs = node.all_input_nodes
            if inputs and self._numbers.issuperset(inputs) and not draws(node):
                self._numbers.add(node)
            elif written_by(node):  # perhaps through a view of one of them
                self._numbers.clear()

    def _must_be_numbers(self, node: fx.Node) -> None:
        given = {each for each in node.all_input_nodes if each.op == "get_attr"}
        if not self._numbers.issuperset(set(node.all_input_nodes) - given):
            raise RuntimeError(f"{node.target} looks at the value of a tensor")


def _without_data(tensor: Tensor) -> Tensor | None:
    """Return a tensor of this shape, with these strides; None for one that is sparse."""
    if tensor.layout is not torch.strided:
        return None
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


@contextmanager
def _without_cached_casts() -> Iterator[None]:
    """Let autocast cast a tensor each time: a cast from before would be no node of the graph."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
