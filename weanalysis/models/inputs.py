"""What a network reads: pictures, clips or signals, and whether what it is given is that."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from weanalysis.errors import ModelError
from weanalysis.models.architecture import SOURCES, parse_name

_KINDS = {1: "signals (C, L)", 2: "pictures (C, H, W)", 3: "clips (C, T, H, W)"}
_SUGGESTED = {
    1: "cnn1d, or a network of your own",
    2: "resnet18, or another network for pictures",
    3: "r3d_18, tsm_resnet50, cnn3d, or a network of your own",
}


def input_sides(net: nn.Module) -> int | None:
    """Return how many sides an input has beside its channels: what the network says, else as its first convolution's.

    None for a network without convolutions. A network says it in an attribute `input_sides`.

    >>> input_sides(nn.Sequential(nn.Conv2d(3, 8, 3))), input_sides(nn.Sequential(nn.Conv3d(3, 8, 3)))
    (2, 3)
    """
    said = getattr(net, "input_sides", None)
    if isinstance(said, int):
        return said
    first = next((m for m in net.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))), None)
    return None if first is None else len(first.kernel_size)


def input_channels(net: nn.Module) -> int:
    """Return how many channels an input has, by the network's first convolution; 3 where there is none.

    >>> input_channels(nn.Sequential(nn.Conv1d(6, 8, 3)))
    6
    """
    first = next((m for m in net.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))), None)
    return 3 if first is None else first.in_channels


def check_inputs(net: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    """Raise ModelError where a network reads inputs of other sides, or other clips, than those of `shape` (C, ...).

    >>> check_inputs(nn.Sequential(nn.Conv2d(3, 8, 3)), "mine", (3, 16, 32, 32))
    Traceback (most recent call last):
        ...
    weanalysis.errors.ModelError: mine reads pictures (C, H, W), and the data has clips (C, T, H, W); choose r3d_18,
    tsm_resnet50, cnn3d, or a network of your own, or other data
    """
    sides, given = input_sides(net), len(shape) - 1
    if sides is not None and sides != given and given in _KINDS:
        raise ModelError(
            f"{name} reads {_KINDS[sides]}, and the data has {_KINDS[given]}; choose {_SUGGESTED[given]}, or other data"
        )
    segments = getattr(net, "segments", None)
    if isinstance(segments, int) and given == 3 and shape[1] != segments:
        raise ModelError(
            f"{name} reads clips of {segments} frames, and these have {shape[1]}; give --frames {segments}, or "
            f"--model-option segments={shape[1]}"
        )


@torch.no_grad()
def check_forward(net: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    """Run a network, which is in eval mode, on an input of zeros; raise ModelError in one line where that fails.

    >>> check_forward(nn.Sequential(nn.Conv2d(3, 8, 3)), "mine", (3, 32, 32))
    >>> check_forward(nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), "mine", (1, 8, 8))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    weanalysis.errors.ModelError: mine does not run on inputs of 1 x 8 x 8 (...); choose another network or data
    """
    try:
        net(torch.zeros(1, *shape))
    except Exception as error:  # whatever a network raises on what it does not read
        why = " ".join(str(error).split())[:200] or type(error).__name__
        sides = " x ".join(map(str, shape))
        raise ModelError(f"{name} does not run on inputs of {sides} ({why}); choose another network or data") from error


def fitting_options(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the options of a network, by its name, that follow from its inputs' shape (C, ...).

    >>> fitting_options("tsm_resnet18", (3, 4, 32, 32)), fitting_options("cnn1d", (6, 128))
    ({'segments': 4}, {'in_channels': 6})
    """
    source, plain = parse_name(name)
    options = SOURCES[source].defaults(plain)[1]
    own = {"segments": shape[1] if len(shape) == 4 else None, "in_channels": shape[0]}
    return {option: value for option, value in own.items() if option in options and value is not None}
