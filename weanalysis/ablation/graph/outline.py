"""A traced network in a few words: its convolutions, where branches join, and what leads from one to another."""

from __future__ import annotations

from typing import Any

from torch import fx

from weanalysis.ablation.graph.network import Graph
from weanalysis.ablation.graph.steps import Step

# What a picture has no room for is not kept either.
_MOST_EDGES = 5_000

_SYMBOLS = {"add": "+", "iadd": "+", "sub": "+", "mul": "×", "imul": "×", "multiply": "×", "cat": "concatenated"}


def outline(graph: Graph) -> dict[str, Any] | None:
    """Return `nodes`, in order, as [name, "layer" or "join"], and `edges` between them as [place, place].

    A join is an operation that reads what comes on different ways, such as the sum behind a residual block. None for a
    network of more than 5,000 edges.

    >>> from torch import nn
    >>> class Residual(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    ...     def forward(self, x):
    ...         x = self.first(x)
    ...         return x + self.second(x).relu()
    >>> outline(Graph(Residual().eval()))
    {'nodes': [['first', 'layer'], ['second', 'layer'], ['+', 'join']], 'edges': [[0, 1], [0, 2], [1, 2]]}
    """
    nodes: list[list[str]] = []
    edges: list[list[int]] = []
    origins: dict[fx.Node, frozenset[int]] = {}
    for step in graph.steps:
        ways = [origins[source] for source in step.node.all_input_nodes if origins.get(source)]
        from_all = frozenset().union(*ways)
        if step.layer is None and len(set(ways)) < 2:
            origins[step.node] = from_all
            continue
        place = len(nodes)
        nodes.append([step.layer, "layer"] if step.layer is not None else [_symbol(step), "join"])
        edges += [[source, place] for source in sorted(from_all)]
        origins[step.node] = frozenset([place])
        if len(edges) > _MOST_EDGES:
            return None
    return {"nodes": nodes, "edges": edges}


def _symbol(step: Step) -> str:
    """Say what an operation makes of several ways."""
    target = step.node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    return _SYMBOLS.get(name.rstrip("_"), "join")
