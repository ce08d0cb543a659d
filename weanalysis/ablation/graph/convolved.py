"""With which weights a forward pass really convolves, seen below all modules, hooks and parametrizations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_CONVOLVE = (torch.ops.aten.convolution, torch.ops.aten._convolution)


class WeightsUsed(TorchDispatchMode):
    """While it is entered and `is_on`, keeps the weight of every convolution: its values, and where it lies in memory.

    All tensors that operations read are handed to `see`.

    >>> conv = torch.nn.Conv2d(1, 1, 3)
    >>> with WeightsUsed() as used:
    ...     output = conv(torch.zeros(1, 1, 4, 4))
    >>> torch.equal(used.weights[0][0], conv.weight), used.weights[0][1] == conv.weight.data_ptr()
    (True, True)
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_on = True
        self.weights: list[tuple[Tensor, int]] = []

    def see(self, tensors: list[Tensor]) -> None:
        """Called with the tensors that an operation reads, whether the mode is on or not."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.see([value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)])
        if self.is_on and function.overloadpacket in _CONVOLVE and isinstance(args[1], Tensor):
            self.weights.append((args[1].detach().clone(), args[1].untyped_storage().data_ptr()))
        return function(*args, **kwargs)
