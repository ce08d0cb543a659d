"""How small an image a network can be given without losing what its convolutions look for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from weanalysis.errors import ModelError

CANDIDATES = (32, 48, 64, 75, 96, 112, 128, 160, 192, 224, 256, 299, 384)


_SPATIAL = (nn.Conv2d, nn.Conv3d)


class _MapTooSmall(Exception):
    """A spatial convolution was given a map of one pixel's height or width."""


def smallest_image_size(net: nn.Module, leading: tuple[int, ...] = ()) -> int:
    """Return the smallest side (pixels, square) in CANDIDATES that `net` can work on.

    It works on a size if a forward succeeds and no convolution with a kernel larger than 1x1 sees a map less than two
    pixels high or wide, where all but the middle of the kernel would lie on padding. `leading` sides stand before these
    two, such as the number of frames. Leaves `net` as it was. Raises ModelError if no candidate works.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=32), nn.Conv2d(4, 4, 3, padding=1))
    >>> smallest_image_size(net), smallest_image_size(net[:1])
    (48, 32)
    """
    parameter = next(net.parameters(), torch.zeros(()))
    stem = next((module for module in net.modules() if isinstance(module, _SPATIAL)), None)
    in_channels = stem.in_channels if stem is not None else 3
    own = (getattr(net, "pretrained_cfg", None) or {}).get("input_size") or ()
    modes = {module: module.training for module in net.modules()}
    hooks = [
        module.register_forward_pre_hook(_check_map)
        for module in modes
        if isinstance(module, _SPATIAL) and max(module.kernel_size[-2:]) > 1
    ]
    reason: object = "no size was tried"
    try:
        net.eval()
        for size in sorted({*CANDIDATES, *own[-1:]}):
            images = torch.zeros(1, in_channels, *leading, size, size, dtype=parameter.dtype, device=parameter.device)
            try:
                with torch.no_grad():
                    net(images)
            except (_MapTooSmall, RuntimeError, ValueError, AssertionError, IndexError) as error:
                reason = error
                continue
            return size
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    raise ModelError(f"the network works on no square images of {CANDIDATES[0]} to {CANDIDATES[-1]} pixels: {reason}")


def _check_map(module: nn.Module, args: tuple[Any, ...]) -> None:
    x: Tensor = args[0]
    if min(x.shape[-2:]) < 2:
        raise _MapTooSmall(f"a {type(module).__name__} sees a map of {x.shape[-2]}x{x.shape[-1]}")
