"""What a forward pass computes with: convolutions that no study covers, and weights that are not the network's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from weanalysis.ablation.graph import CONVOLUTIONS

_CONVOLVE = (torch.ops.aten.convolution, torch.ops.aten._convolution)


class _Convolved(TorchDispatchMode):
    """Notes which weights are convolved with while it is entered, outside of the modules that studies cover."""

    def __init__(self, foreign: set[int]) -> None:
        super().__init__()
        self.reads_foreign = False
        self._foreign = foreign
        self.weights: dict[int, int] = {}
        self.called: set[str] = set()
        self._inside = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._inside and function.overloadpacket in _CONVOLVE and isinstance(args[1], Tensor):
            self.weights[args[1].untyped_storage().data_ptr()] = args[1].numel()
        for value in (*args, *(kwargs or {}).values()):
            if isinstance(value, Tensor) and value.layout == torch.strided:
                self.reads_foreign |= value.untyped_storage().data_ptr() in self._foreign
        return function(*args, **(kwargs or {}))

    def enter_module(self, name: str) -> Any:
        def hook(*_: Any) -> None:
            self.called.add(name)
            self._inside += 1

        return hook

    def leave_module(self, *_: Any) -> None:
        self._inside -= 1


def convolutions_left_out(
    net: nn.Module, images: Tensor, foreign: set[int]
) -> tuple[dict[str, float], dict[str, float], bool]:
    """Find the weights of convolutions that no study covers, and those of layers that the images do not reach.

    Each by name, with its share (0 to 1) of all the network's weights. No study covers transposed convolutions and
    convolutions that are called as functions. Also whether the network computes with memory that is `foreign`. `net` is
    a copy that nobody else uses.
    """
    layers = {name: module for name, module in net.named_modules() if isinstance(module, CONVOLUTIONS)}
    names = {value.untyped_storage().data_ptr(): name for name, value in net.named_parameters()}
    total = max(1, sum(value.numel() for value in net.parameters() if value.ndim > 1))
    recorder = _Convolved(foreign)
    for name, module in layers.items():
        module.register_forward_pre_hook(recorder.enter_module(name), prepend=True)
        module.register_forward_hook(recorder.leave_module, always_call=True)
    with torch.no_grad(), recorder:
        net(images)
    covered = {module.weight.untyped_storage().data_ptr() for module in layers.values()}
    others = {
        names.get(place, "a computed weight"): number / total
        for place, number in recorder.weights.items() if place not in covered
    }  # fmt: skip
    unreached = {
        name: module.weight.numel() / total for name, module in layers.items() if name not in recorder.called
    }
    return others, unreached, recorder.reads_foreign
