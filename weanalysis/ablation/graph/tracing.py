"""A network's forward pass as torch.fx sees it."""

from __future__ import annotations

from torch import fx, nn

from weanalysis.ablation.graph.steps import CONVOLUTIONS, Convolution


class Untraceable(Exception):
    """The network's forward cannot be replayed node by node; the message says why."""


class _Tracer(fx.Tracer):
    """torch.fx's tracer, for which a convolution of any class is one operation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, CONVOLUTIONS) or super().is_leaf_module(m, module_qualified_name)


def trace(net: nn.Module) -> tuple[nn.Module, fx.Graph]:
    tracer = _Tracer()
    try:
        graph = tracer.trace(net)
    except Exception as error:  # torch.fx raises whatever the network's own forward raises on a proxy
        line = (str(error).splitlines() or [""])[0]
        raise Untraceable(f"{type(error).__name__}: {line}") from error
    return tracer.root, graph


def convolutions(net: nn.Module) -> dict[str, Convolution]:
    """A network's convolutions by name: in the order of the forward pass where it can be traced, else as registered."""
    registered = {name: module for name, module in net.named_modules() if isinstance(module, CONVOLUTIONS)}
    try:
        root, graph = trace(net)
    except Untraceable:
        return registered
    names = {module: name for name, module in registered.items()}
    called = [root.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"]
    order = dict.fromkeys(names[module] for module in called if module in names)
    return {name: registered[name] for name in [*order, *(name for name in registered if name not in order)]}
