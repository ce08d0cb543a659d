"""In-place operations of a traced network: what they write into, and who reads that afterwards.

A graph is replayed without in-place operations, so whoever reads a value after it was written over must read the new
one. `relu_(y); return y + 1` is traced as y -> relu_ and y -> add; here the addition is made to read relu_'s value.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

from torch import fx, nn

from weanalysis.ablation.graph.tracing import Untraceable

# What gives back its argument, or a view of it, by the name of a function or method; and by module.
_VIEWS = {
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "squeeze",
    "unsqueeze",
    "transpose",
    "permute",
    "chunk",
    "split",
    "select",
    "narrow",
    "expand",
    "expand_as",
    "getitem",
    "detach",
    "unbind",
    "contiguous",
    "t",
    "unfold",
    "view_as",
    "movedim",
    "swapaxes",
    "swapdims",
    "as_strided",
    "diagonal",
    "to",
    "float",
    "type",
    "type_as",
    "tensor_split",
    "dropout",
    "getattr",
    "real",
    "imag",
    "split_with_sizes",
    "moveaxis",
}
_VIEW_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)

# On a number these make a new one, and leave the old one what it was.
_ON_NUMBERS_TOO = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


def read_what_is_written(root: nn.Module, graph: fx.Graph) -> None:
    """Let whoever reads a value after an in-place operation read what that wrote; raise Untraceable where unclear."""
    place = {node: number for number, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        written = _written_by(root, node)
        if written is None:
            continue
        later = [user for user in written.users if place[user] > place[node]]
        if later and node.target in _ON_NUMBERS_TOO:
            raise Untraceable("its forward adds in place to a value that is read again")
        for alias in _aliases(root, written, node):
            if alias.op == "get_attr":
                raise Untraceable("its forward writes into a tensor that the network keeps")
            if alias is not written and any(place[user] > place[node] for user in alias.users):
                raise Untraceable("its forward writes into a part of a tensor that is read again")
        for user in later:
            user.replace_input_with(written, node)


def _written_by(root: nn.Module, node: fx.Node) -> fx.Node | None:
    """The value that an operation writes into; None for one that writes into none. Raises Untraceable."""
    if "out" in node.kwargs:
        raise Untraceable("its forward writes into a tensor with out=")
    if node.target is operator.setitem:
        raise Untraceable("its forward writes into a part of a tensor")
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    in_place = (
        (node.op == "call_module" and getattr(root.get_submodule(str(node.target)), "inplace", False) is True)
        or (node.op == "call_function" and node.target in _ON_NUMBERS_TOO)
        or (node.op in ("call_function", "call_method") and name.endswith("_") and not name.endswith("__"))
        or node.kwargs.get("inplace") is True
    )
    target = node.args[0] if node.args else None
    return target if in_place and isinstance(target, fx.Node) else None


def _aliases(root: nn.Module, node: fx.Node, writer: fx.Node) -> Iterator[fx.Node]:
    """All values that may share memory with one, itself among them, apart from what the writer gives back."""
    while _is_view(root, node) and isinstance(base := node.args[0] if node.args else None, fx.Node):
        node = base
    waiting, seen = [node], {node, writer}
    while waiting:
        one = waiting.pop()
        yield one
        new = [user for user in one.users if user not in seen and _is_view(root, user) and user.args[0] is one]
        seen.update(new)
        waiting += new


def _is_view(root: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(root.get_submodule(str(node.target)), _VIEW_MODULES)
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    return node.op in ("call_function", "call_method") and name in _VIEWS
