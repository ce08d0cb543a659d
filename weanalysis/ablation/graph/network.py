"""What must be recomputed: a network traced once, and, for a set of layers, what lies downstream of them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from weanalysis.ablation.graph.growing import GrowingRows, Memory
from weanalysis.ablation.graph.steps import BATCH_NORMS, CONVOLUTIONS, Step, is_plain, is_untouched
from weanalysis.ablation.graph.tracing import Untraceable, trace
from weanalysis.ablation.graph.writes import read_what_is_written

# Every write into a tensor that an ablation may still read would corrupt the kept activations,
# so that a traced network computes without in-place operations.
_OUT_OF_PLACE: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}

# What treats every number of a tensor alone, by module, and by the name of a function or method.
_POINTWISE = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Mish,
    nn.Sigmoid,
    nn.Tanh,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.Dropout3d,
)
_POINTWISE_NAMES = {
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "gelu",
    "silu",
    "hardswish",
    "hardtanh",
    "mish",
    "sigmoid",
    "tanh",
    "dropout",
    "stochastic_depth",
}
_SUM_NAMES = {"add", "sub"}

# What can be asked of an activation without looking at the images in it.
_SAME_FOR_ALL = {"dtype", "device", "ndim", "layout", "requires_grad", "is_cuda"}


@dataclass(frozen=True)
class Downstream:
    """All that changes when some layers change, in order, and what it reads from upstream.

    `first` are the steps of changed layers whose own input stays intact; `freed[k]` are values nobody reads
    after step k.

    Behind the second convolution lie its activation and the pooling; what it reads is kept:

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    >>> behind = Graph(net).downstream(["1"])
    >>> [step.layer for step in behind.steps], len(behind.frontier)
    (['1', None, None], 1)
    """

    layers: tuple[str, ...]
    steps: tuple[Step, ...]
    first: tuple[Step, ...]
    frontier: frozenset[fx.Node]
    freed: tuple[tuple[fx.Node, ...], ...]


def _attribute(root: nn.Module, path: str) -> Any:
    """What stands at a dotted path in a network."""
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _is_plain_norm(norm: nn.Module) -> bool:
    """Whether a batch norm is torch's own and does nothing beside it; a subclass may add an activation."""
    return type(norm) in BATCH_NORMS and is_untouched(norm) and not norm.training


class Graph:
    """A network's forward pass as a list of steps without in-place operations.

    Takes over `net` (sets `inplace=False` in its modules): pass a copy that nobody else uses. The traced steps
    read the modules' current weights. `fold` merges each batch norm into the plain convolution before it, where
    nothing else reads that convolution; a zeroed weight stays zero then. `elsewhere` names the convolutions whose
    weight something else reads too. Raises Untraceable.

    The output after a change of the last layer, from the values of the intact run before it:

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU()).eval()
    >>> images, graph = torch.ones(2, 3, 6, 6), Graph(net)
    >>> behind = graph.downstream(["1"])
    >>> with torch.no_grad():
    ...     _, kept = graph.run(images, behind.frontier)
    ...     net[1].weight[0] = 0
    ...     changed = {step.node: step.run(kept) for step in behind.first}
    ...     torch.allclose(graph.rerun(behind, kept, changed), net(images))
    True
    """

    def __init__(self, net: nn.Module, fold: bool = False):
        self._root, graph = trace(net)
        read_what_is_written(self._root, graph)
        self.elsewhere = self._read_elsewhere(graph)
        if fold:
            self._fold_batch_norms(graph)
        for module in net.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]
        # A module registered under two names goes by its first, as in named_modules().
        self._names = {module: name for name, module in self._root.named_modules()}
        self._input: fx.Node | None = None
        self._output: Any = None
        self.steps: list[Step] = []
        self._constants: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            self._add(node)
        # What depends on the images; anything else is the same for all of them, whatever its shape.
        self._varies: set[fx.Node] = {self._input} if self._input is not None else set()
        for step in self.steps:
            asks = step.function is getattr and step.args[1] in _SAME_FOR_ALL
            if not asks and any(source in self._varies for source in step.node.all_input_nodes):
                self._varies.add(step.node)
        self._users: dict[fx.Node, list[fx.Node]] = {step.node: list(step.node.users) for step in self.steps}
        self._by_node = {step.node: step for step in self.steps}
        self._last_use = {
            source: place for place, step in enumerate(self.steps) for source in step.node.all_input_nodes
        }
        self._by_layer: dict[str, list[Step]] = {}
        for step in self.steps:
            if step.layer is not None:
                self._by_layer.setdefault(step.layer, []).append(step)

    def _read_elsewhere(self, graph: fx.Graph) -> dict[str, str]:
        """The convolutions whose weight something else reads too, each with a word on what that is.

        What lies downstream of such a weight is more than what lies downstream of its convolution.
        """
        read: dict[int, list[str]] = {}
        for name, module in self._root.named_modules():
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    read.setdefault(parameter.untyped_storage().data_ptr(), []).append(f"{name}.{key}")
        for node in graph.nodes:
            if node.op == "get_attr" and isinstance(value := _attribute(self._root, str(node.target)), Tensor):
                read.setdefault(value.untyped_storage().data_ptr(), []).append("the forward pass")
        read_at = {}
        for name, module in self._root.named_modules():
            if isinstance(module, CONVOLUTIONS):
                readers = read.get(module.weight.untyped_storage().data_ptr(), [])
                others = [reader for reader in readers if reader != f"{name}.weight"]
                if others:
                    read_at[name] = others[0]
        return read_at

    def _fold_batch_norms(self, graph: fx.Graph) -> None:
        calls: dict[nn.Module, int] = {}
        called = [node for node in graph.nodes if node.op == "call_module"]
        for node in called:
            module = self._root.get_submodule(str(node.target))
            calls[module] = calls.get(module, 0) + 1
        for node in called:
            norm = self._root.get_submodule(str(node.target))
            source = node.args[0] if len(node.args) == 1 and not node.kwargs else None
            if not (isinstance(norm, BATCH_NORMS) and isinstance(source, fx.Node) and source.op == "call_module"):
                continue
            conv = self._root.get_submodule(str(source.target))
            alone = len(source.users) == 1 and calls[conv] == 1 and calls[norm] == 1
            if not (alone and is_plain(conv) and _is_plain_norm(norm)) or source.target in self.elsewhere:
                continue
            if norm.running_mean is None or norm.running_var is None:
                continue
            assert isinstance(conv, CONVOLUTIONS)
            conv.weight, conv.bias = nn.utils.fusion.fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            node.replace_all_uses_with(source)
            graph.erase_node(node)

    def _add(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if self._input is None:
                self._input = node
            elif node.args:
                self._constants[node] = node.args[0]
            else:
                raise Untraceable(f"its forward takes a second input {node.target!r}")
            return
        if node.op == "output":
            self._output = node.args[0]
            return
        if node.op == "get_attr":
            self._constants[node] = _attribute(self._root, str(node.target))
            return
        kwargs = dict(node.kwargs)
        if kwargs.get("inplace") is True:
            kwargs["inplace"] = False
        function = self._function(node)
        layer = self._names[function] if isinstance(function, CONVOLUTIONS) else None
        self.steps.append(Step(node, function, node.args, kwargs, layer))

    def _function(self, node: fx.Node) -> Callable[..., Any]:
        if node.op == "call_module":
            return self._root.get_submodule(str(node.target))
        if node.op == "call_function":
            assert callable(node.target)
            name = getattr(node.target, "__name__", "")
            if name.endswith("_") and not name.endswith("__"):
                plain = getattr(torch, name[:-1], None) or getattr(nn.functional, name[:-1], None)
                if plain is None:
                    raise Untraceable(f"its forward calls the in-place function {name}")
                return plain
            return _OUT_OF_PLACE.get(node.target, node.target)
        name = str(node.target)
        if name.endswith("_") and not name.endswith("__"):
            if not hasattr(Tensor, name[:-1]):
                raise Untraceable(f"its forward calls the in-place method {name}")
            name = name[:-1]
        return lambda tensor, *args, **kwargs: getattr(tensor, name)(*args, **kwargs)

    def downstream(self, layers: Iterable[str]) -> Downstream:
        """Find what must be recomputed when the weights of `layers` change; a layer never called changes nothing."""
        changed_layers = tuple(dict.fromkeys(layers))
        roots = {step.node for name in changed_layers for step in self._by_layer.get(name, ())}
        changed: set[fx.Node] = set()
        steps: list[Step] = []
        first: list[Step] = []
        frontier: set[fx.Node] = set()
        for step in self.steps:
            sources = step.node.all_input_nodes
            if any(source in changed for source in sources):
                changed.add(step.node)
                steps.append(step)
            elif step.node in roots:
                changed.add(step.node)
                steps.append(step)
                first.append(step)
            else:
                continue
            frontier.update(source for source in sources if source not in changed and source not in self._constants)
        kept = {node for node in self._nodes(self._output) if node in changed}
        frontier |= {node for node in self._nodes(self._output) if node not in changed}
        last_use: dict[fx.Node, int] = {}
        for position, step in enumerate(steps):
            last_use[step.node] = position
            for source in step.node.all_input_nodes:
                if source in changed:
                    last_use[source] = position
        freed: list[list[fx.Node]] = [[] for _ in steps]
        for node, position in last_use.items():
            if node not in kept:
                freed[position].append(node)
        return Downstream(changed_layers, tuple(steps), tuple(first), frozenset(frontier), tuple(map(tuple, freed)))

    @property
    def constants(self) -> frozenset[fx.Node]:
        """The nodes whose value is the same for all images."""
        return frozenset(self._constants)

    def place(self, layer: str) -> int:
        """Where in the forward pass a convolution is called first."""
        return self.steps.index(self._by_layer[layer][0])

    def num_calls(self, layer: str) -> int:
        """How often the forward pass calls a convolution."""
        return len(self._by_layer.get(layer, ()))

    def channelwise(self, layer: str) -> tuple[Step, ...]:
        """The steps behind a layer, each reading the one before, that treat each number of a channel by itself.

        Activations, sums with what the layer does not change, and batch norms; empty where none follows, and where
        the layer is called more than once.
        """
        called = self._by_layer.get(layer, ())
        if len(called) != 1:
            return ()
        changed = {step.node for step in self.downstream([layer]).steps}
        behind: list[Step] = []
        node = called[0].node
        while len(node.users) == 1 and (step := self._by_node.get(next(iter(node.users)))) is not None:
            if not self._is_channelwise(step, node, changed):
                break
            behind.append(step)
            node = step.node
        return tuple(behind)

    def _is_channelwise(self, step: Step, source: fx.Node, changed: set[fx.Node]) -> bool:
        """Whether a step treats each number of `source` by itself; nothing else that it reads may be in `changed`."""
        others = [node for node in step.node.all_input_nodes if node is not source]
        if any(node in changed for node in others):
            return False
        if isinstance(step.function, BATCH_NORMS):
            return step.function.running_mean is not None and _is_plain_norm(step.function)
        if isinstance(step.function, nn.Module):
            return isinstance(step.function, _POINTWISE) and is_untouched(step.function)
        target = step.node.target
        name = target.rstrip("_") if isinstance(target, str) else getattr(step.function, "__name__", "")
        if name in _SUM_NAMES:
            return not any(node in self._constants for node in others) and "alpha" not in step.kwargs
        return name in _POINTWISE_NAMES and not others

    @staticmethod
    def _nodes(structure: Any) -> list[fx.Node]:
        nodes: list[fx.Node] = []
        fx.map_arg(structure, nodes.append)
        return nodes

    def run(
        self, images: Tensor, keep: frozenset[fx.Node], slopes_at: frozenset[fx.Node] = frozenset()
    ) -> tuple[Any, dict[fx.Node, Any]]:
        """Compute the intact output and the values in `keep`; every other value is freed at its last use.

        With gradients enabled, what follows the values in `slopes_at` is recorded, and nothing that comes before.
        """
        assert self._input is not None
        values: dict[fx.Node, Any] = {self._input: images, **self._constants}
        wanted = keep | set(self._nodes(self._output))
        remaining = {node: len(users) for node, users in self._users.items()}
        for step in self.steps:
            values[step.node] = step.run(values)
            if step.node in slopes_at and not values[step.node].requires_grad:
                values[step.node] = values[step.node].detach().requires_grad_()
            for source in step.node.all_input_nodes:
                if source in remaining:
                    remaining[source] -= 1
                    if remaining[source] == 0 and source not in wanted:
                        values.pop(source, None)
        output = fx.map_arg(self._output, values.__getitem__)
        return output, {node: values[node] for node in keep}

    def rerun(self, downstream: Downstream, frontier: Mapping[fx.Node, Any], changed: Mapping[fx.Node, Any]) -> Any:
        """Compute the output again; `changed` gives the values of the first steps, all else is computed anew."""
        values: dict[fx.Node, Any] = {**self._constants, **frontier}
        memory = Memory()
        for step, freed in zip(downstream.steps, downstream.freed, strict=True):
            node = step.node
            if node in changed:
                values[node] = changed[node]
            else:
                spent = memory.spent(freed)
                value = step.run_over(values, spent)
                memory.add(step, value, {source: values[source] for source in node.all_input_nodes}, spent)
                values[node] = value
            for dead in freed:
                values.pop(dead, None)
        return fx.map_arg(self._output, values.__getitem__)

    def replay(
        self, rows: Tensor, joins: Mapping[fx.Node, Tensor], kept: Mapping[fx.Node, Any], num_images: int
    ) -> Any:
        """Compute the output for pairs of an image and a change, each of which joins the network at some step.

        `rows` (P,) are the pairs' images, in the order of the steps in `joins`: there, the next len(tensor) pairs have
        these values. What no pair has changed is taken from the `kept` values of the intact run over `num_images`. So
        pairs of many layers are computed together, each from its own layer on. Raises Untraceable where an operation
        upstream of a layer has measured the batch.
        """

        outputs = set(self._nodes(self._output))
        growing = GrowingRows(rows, kept, num_images, self._varies, self._constants)
        for position, step in enumerate(self.steps):
            sources = step.node.all_input_nodes
            read_last = {node for node in sources if self._last_use[node] == position and node not in outputs}
            growing.compute(step, read_last)
            if (new := joins.get(step.node)) is not None:
                growing.join(step.node, new)
            for node in read_last:
                growing.forget(node)
        return fx.map_arg(self._output, lambda node: growing.first(node, growing.num_joined))
