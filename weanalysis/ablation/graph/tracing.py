"""A network's forward pass as torch.fx sees it."""

from __future__ import annotations

from torch import fx, nn

from weanalysis.ablation.copies import copied, first_line, unwrapped
from weanalysis.ablation.graph.steps import CONVOLUTIONS, Convolution


class Untraceable(Exception):
    """The network's forward cannot be replayed node by node; the message says why."""


class _Tracer(fx.Tracer):
    """torch.fx's tracer, for which a convolution of any class is one operation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, CONVOLUTIONS) or super().is_leaf_module(m, module_qualified_name)


def trace(net: nn.Module) -> tuple[nn.Module, fx.Graph]:
    """Trace a network that nobody else uses: its forward runs, and may leave traces of its own in it.

    Returns the module that the graph's nodes call parts of, and the graph. Raises Untraceable.

    >>> root, graph = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    >>> [node.op for node in graph.nodes]
    ['placeholder', 'call_module', 'call_module', 'output']
    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(net)
    except Exception as error:  # torch.fx raises whatever the network's own forward raises on a proxy
        raise Untraceable(f"{type(error).__name__}: {first_line(error)}") from error
    return tracer.root, graph


def convolutions(net: nn.Module) -> dict[str, Convolution]:
    """A network's convolutions by name: in the order of the forward pass where it can be traced, else as registered.

    They come as the forward pass calls them:

    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.last, self.first = nn.Conv2d(4, 4, 3), nn.Conv2d(3, 4, 3)
    ...     def forward(self, images):
    ...         return self.last(self.first(images))
    >>> list(convolutions(Net()))
    ['first', 'last']
    """
    net = unwrapped(net)
    registered = {name: module for name, module in net.named_modules() if isinstance(module, CONVOLUTIONS)}
    try:
        root, graph = trace(copied(net))
    except Untraceable:
        return registered
    names = {module: name for name, module in root.named_modules() if isinstance(module, CONVOLUTIONS)}
    called = [root.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"]
    order = dict.fromkeys(names[module] for module in called if module in names)
    return {name: registered[name] for name in [*order, *(name for name in registered if name not in order)]}
