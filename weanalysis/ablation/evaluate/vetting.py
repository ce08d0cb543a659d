"""Before a layer is measured: does zeroing its weight take effect, and which ablations must show in its output?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weanalysis.ablation.evaluate.twin import Kept
from weanalysis.ablation.studies import Ablation, Part
from weanalysis.ablation.weights import Weights
from weanalysis.errors import StudyError

# So many images are enough to see whether a layer computes with the weight that is zeroed.
NUM_VETTED = 8


def check_zeroing(
    net: nn.Module, layers: Sequence[str], images: Tensor, weights: Weights, run: Callable[[Tensor], Tensor]
) -> None:
    """Raise StudyError for a layer whose output still follows its input when its whole weight is zero.

    A convolution with a zero weight gives its bias everywhere: each channel is one number, whatever the image. A layer
    that does not is not computing with the weight that is zeroed: its forward pass, or a hook, makes another one.
    """
    for layer in layers:
        outputs: list[Tensor] = []
        conv = net.get_submodule(layer)

        def keep(_conv: nn.Module, _inputs: Any, output: Any, outputs: list[Tensor] = outputs) -> None:
            if isinstance(output, Tensor):
                outputs.append(output.detach().float())

        # Before the user's own hooks, which may do with the output what they like.
        handle = conv.register_forward_hook(keep, prepend=True)
        try:
            with weights.zeroed(Ablation((Part(layer),), "layer", 0, layer)):
                run(images)
        finally:
            handle.remove()
        sides = len(conv.kernel_size) + 2  # type: ignore[arg-type]
        for output in outputs:
            if output.ndim == sides and bool((_spread(output) > 0).any()):
                raise StudyError(f"{layer} still follows its input when its whole weight is zero, so that it computes "
                                 "with another weight than the one that is zeroed (one that the network makes anew in "
                                 "every pass, or that a hook or a replaced forward holds); leave it out with --layers")


def _spread(output: Tensor) -> Tensor:
    """How far the numbers of each channel lie apart, (channels,)."""
    by_channel = output.transpose(0, 1).flatten(1)
    return by_channel.amax(1) - by_channel.amin(1)


def strongest_ablations(layer: str, net: nn.Module, kept: Kept) -> list[Ablation]:
    """The ablations of a layer that are held to the naive way first: all of it, and the kernel that carries most.

    A kernel carries its weights' sum of |w| times the mean |x| of the channel that it reads: one that reads a dead
    channel changes nothing, and would agree with anything.
    """
    conv: Any = net.get_submodule(layer)
    weight, groups = conv.weight.detach(), conv.groups
    carried, num_in = weight.abs().float().flatten(2).sum(2), weight.shape[1]
    for step in kept.downstream.first:
        source = kept.frontier.get(step.args[0]) if step.args else None
        if isinstance(source, Tensor) and source.ndim == weight.ndim and source.shape[1] == num_in * groups:
            activity = source.detach().abs().float().transpose(0, 1).flatten(1).mean(1).reshape(groups, num_in)
            carried = carried * activity.repeat_interleave(len(weight) // groups, 0).to(carried.device)
    out, in_ = divmod(int(torch.nan_to_num(carried).argmax()), num_in)
    kernel = Ablation((Part(layer, (out,), (in_,)),), "kernel", 0, layer)
    return [Ablation((Part(layer),), "layer", 0, layer), kernel]
