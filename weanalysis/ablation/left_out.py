"""What a forward pass computes with: convolutions that no study covers, and weights that are not the network's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from weanalysis.ablation.graph import CONVOLUTIONS, WeightsUsed


class _Outside(WeightsUsed):
    """Keeps the weights of convolutions outside of the modules that studies cover, and which of these are called."""

    def __init__(self, foreign: set[int]) -> None:
        super().__init__()
        self.reads_foreign = False
        self.called: set[str] = set()
        self._foreign, self._depth = foreign, 0

    def see(self, tensors: list[Tensor]) -> None:
        places = (one.untyped_storage().data_ptr() for one in tensors if one.layout == torch.strided)
        self.reads_foreign |= any(place in self._foreign for place in places)

    def enter_module(self, name: str) -> Any:
        def hook(*_: Any) -> None:
            self.called.add(name)
            self._depth += 1
            self.is_on = False

        return hook

    def leave_module(self, *_: Any) -> None:
        self._depth -= 1
        self.is_on = self._depth == 0


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
    used = _Outside(foreign)
    for name, module in layers.items():
        module.register_forward_pre_hook(used.enter_module(name), prepend=True)
        module.register_forward_hook(used.leave_module, always_call=True)
    with torch.no_grad(), used:
        net(images)
    covered = {module.weight.untyped_storage().data_ptr() for module in layers.values()}
    others = {
        names.get(place, "a computed weight"): weight.numel() / total
        for weight, place in used.weights
        if place not in covered
    }
    unreached = {name: module.weight.numel() / total for name, module in layers.items() if name not in used.called}
    return others, unreached, used.reads_foreign
