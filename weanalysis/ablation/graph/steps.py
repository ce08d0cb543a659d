"""One operation of a traced network, and what is known of the values that it makes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

_PLAIN_FORWARDS = {kind.forward for kind in CONVOLUTIONS}

# What can be written over its own argument, or one of its two, with the same numbers coming out.
_RELU = (torch.relu, nn.functional.relu)
_SUM = (operator.add, torch.add)


def is_plain(module: nn.Module) -> bool:
    """Whether a module computes as torch's own convolutions do, whatever its class is called.

    >>> conv = nn.Conv2d(3, 4, 3)
    >>> before = is_plain(conv)
    >>> handle = conv.register_forward_hook(lambda module, args, output: 2 * output)
    >>> before, is_plain(conv)
    (True, False)
    """
    return has_plain_forward(module) and is_untouched(module)


def has_plain_forward(module: nn.Module) -> bool:
    """Whether a module's class is a convolution of torch's, or computes as one.

    >>> has_plain_forward(nn.Conv2d(3, 4, 3)), has_plain_forward(nn.Linear(3, 4))
    (True, False)
    """
    return isinstance(module, CONVOLUTIONS) and type(module).forward in _PLAIN_FORWARDS


def is_untouched(module: nn.Module) -> bool:
    """Whether calling a module runs its class's forward and nothing else: no hook, no forward of the object's own.

    A hook may count on the full number of channels, or mix them.

    >>> relu = nn.ReLU()
    >>> before = is_untouched(relu)
    >>> handle = relu.register_forward_hook(lambda module, args, output: 2 * output)
    >>> before, is_untouched(relu)
    (True, False)
    """
    hooks = module._forward_hooks or module._forward_pre_hooks
    return not hooks and "forward" not in vars(module)


def has_row_an_image(value: Any, num_images: int) -> bool:
    """Whether a value is a tensor whose first side is the batch.

    >>> has_row_an_image(torch.zeros(8, 3), 8), has_row_an_image(torch.zeros(3), 8)
    (True, False)
    """
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == num_images


def versions(values: Mapping[fx.Node, Any]) -> list[int]:
    """How often each of some kept tensors was written to.

    >>> node, value = next(iter(fx.symbolic_trace(nn.ReLU()).graph.nodes)), torch.zeros(2)
    >>> versions({node: value}), versions({node: value.add_(1)})
    ([0], [1])
    """
    return [value._version for value in values.values() if isinstance(value, Tensor)]


def num_bytes(values: Mapping[fx.Node, Any]) -> int:
    """What some kept tensors take.

    >>> nodes = list(fx.symbolic_trace(nn.ReLU()).graph.nodes)
    >>> num_bytes({nodes[0]: torch.zeros(8, 3), nodes[1]: 5})
    96
    """
    return sum(value.nbytes for value in values.values() if isinstance(value, Tensor))


@dataclass(frozen=True)
class Step:
    """One operation of the traced network; its arguments hold nodes where values of earlier steps go.

    `layer` is the name of the convolution that it calls, None for any other operation.

    >>> from weanalysis.ablation.graph import Graph
    >>> step = Graph(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())).steps[0]
    >>> step.layer, step.source.op, step.makes_new, step.is_sum
    ('0', 'placeholder', True, False)
    """

    node: fx.Node
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    layer: str | None = None

    def run(self, values: Mapping[fx.Node, Any]) -> Any:
        """Compute the step's value from the values of the steps before."""
        look_up = values.__getitem__
        return self.function(*fx.map_arg(self.args, look_up), **fx.map_arg(self.kwargs, look_up))

    @property
    def source(self) -> fx.Node | None:
        """The one value that it reads; None where it is given more than that, or by name."""
        source = self.args[0] if len(self.args) == 1 and not self.kwargs else None
        return source if isinstance(source, fx.Node) else None

    @property
    def makes_new(self) -> bool:
        """Whether its value is known to be new, or that of an argument: a function may return what it keeps."""
        if isinstance(self.function, nn.Module):
            return type(self.function).__module__.startswith("torch.nn.modules.") and is_untouched(self.function)
        return self.function in (*_RELU, *_SUM, torch.cat)

    @property
    def is_sum(self) -> bool:
        """Whether it adds two values and does nothing else."""
        both = len(self.args) == 2 and all(isinstance(arg, fx.Node) for arg in self.args)
        return self.function in _SUM and both and not self.kwargs and self.args[0] is not self.args[1]

    def run_over(self, values: Mapping[fx.Node, Any], spent: set[fx.Node]) -> Any:
        """Compute the step's value, in the memory of one that is `spent` where that can be: nobody reads it again.

        Large new tensors cost more than what is computed into them, since the system clears their memory first.
        """
        first = self.args[0] if self.args else None
        is_relu = (isinstance(self.function, nn.ReLU) and is_untouched(self.function)) or self.function in _RELU
        if is_relu and first in spent:
            return torch.relu_(values[first])
        if self.function in _SUM and len(self.args) == 2 and not self.kwargs and first is not self.args[1]:
            one, other = (values[arg] if isinstance(arg, fx.Node) else arg for arg in self.args)
            tensors = isinstance(one, Tensor) and isinstance(other, Tensor)
            if tensors and one.shape == other.shape and one.dtype == other.dtype:
                if first in spent:
                    return one.add_(other)
                if self.args[1] in spent:
                    return other.add_(one)
        return self.run(values)
