"""Before a layer is measured: does it compute with the weight that is zeroed, and which ablations must show?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weanalysis.ablation.copies import first_line
from weanalysis.ablation.evaluate.checks import Checks, Unsure, unsure_where_it_fails
from weanalysis.ablation.evaluate.network import Network
from weanalysis.ablation.evaluate.twin import Kept
from weanalysis.ablation.graph import WeightsUsed
from weanalysis.ablation.studies import Ablation, Part
from weanalysis.ablation.weights import Weights
from weanalysis.devices import is_out_of_memory
from weanalysis.errors import StudyError, WeanalysisError

# So many images are enough to see whether a layer computes with the weight that is zeroed.
NUM_VETTED = 8


class Vetting:
    """Holds the fast way to the naive one in every layer before it is measured here for the first time.

    `probes` are the images on which it does, so that a task's answer does not hang on those before (None: those that
    are measured). With `metric`, layers are to be computed as pairs, which are held to the naive way too. `tolerance`
    and `largest_difference` are what it showed of rounding, from which every task begins.
    """

    def __init__(self, network: Network, probes: Tensor | None, metric: str | None):
        self._network, self._probes, self._metric = network, probes, metric
        self._vetted: set[str] = set()
        self.tolerance = self.largest_difference = 0.0

    def vet(self, images: Tensor, ablations: Sequence[Ablation], batch_size: int) -> None:
        """Show that zeroing takes effect, and that both ways agree, in the layers that are new; else distrust them.

        Raises StudyError for a layer that does not compute with the weight that is zeroed.
        """
        layers = dict.fromkeys(name for one in ablations for name in one.layers)
        new = [layer for layer in layers if layer not in self._vetted]
        if not new:
            return
        network, checks = self._network, self._checks()
        images = images if self._probes is None else self._probes
        probes = network.placed(images[: min(NUM_VETTED, batch_size)])
        whole = network.whole(probes)
        check_zeroing(network.net, new, probes, network.weights, network.whole)
        if network.twin is not None:
            try:
                checks.compare(network.twin.intact(probes), whole, ())
            except WeanalysisError:
                raise
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                network.give_up_tracing(first_line(error))
        for layer in new:
            if network.is_fast([layer]):
                try:
                    self._vet_layer(layer, probes, checks)
                except Unsure as doubt:
                    network.distrust(dict.fromkeys(doubt.layers, doubt.reason))
        self._vetted.update(new)
        self.tolerance, self.largest_difference = checks.tolerance, checks.largest_difference

    def _checks(self) -> Checks:
        return Checks(self.tolerance, self.largest_difference, tie_share=self._network.task.tie_share)

    def _vet_layer(self, layer: str, probes: Tensor, checks: Checks) -> None:
        """Compute ablations that must change a layer's output both ways; raise Unsure where these differ."""
        network, twin = self._network, self._network.twin
        assert twin is not None
        plan = twin.plan((layer,))
        with unsure_where_it_fails((layer,)):
            kept = twin.keep(plan, twin.values(probes, plan.frontier))
        for ablation in strongest_ablations(layer, network.net, kept):
            with network.zeroed(ablation):
                with unsure_where_it_fails((layer,)):
                    logits = twin.rerun(kept, ablation, network.weights)
                whole = network.whole(probes)
            checks.compare(logits, whole, (layer,))
            if self._metric is not None and network.is_single(ablation):
                self._vet_pairs(layer, ablation, probes, whole, checks)

    def _vet_pairs(self, layer: str, ablation: Ablation, probes: Tensor, whole: Tensor, checks: Checks) -> None:
        """Compute an ablation of some images as pairs, and hold it to the naive logits; note where that cannot be."""
        network, pairs = self._network, self._network.pairs
        assert pairs is not None and self._metric is not None
        rows = torch.arange(len(probes), device=network.device)
        first = torch.zeros_like(rows)
        try:
            intact, _ = network.run_intact(probes, first, [layer], self._metric, gradients=False)
            logits = pairs.logits(intact, [(layer, (ablation,), rows, first)])
        except WeanalysisError:
            raise
        except Exception as reason:  # also whatever somebody else's code raises on a part of a batch
            if is_out_of_memory(reason):
                raise
            network.give_up_pairs(reason)
            return
        checks.compare(logits, whole, (layer,))


class _InModule(WeightsUsed):
    """Keeps with which weights one module convolves, and how far the numbers of each channel lie apart without any."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.spreads: list[float] = []
        self.is_on = False
        # Before and after all of the user's own hooks, which may do with its input and output what they like.
        self._handles = [
            conv.register_forward_pre_hook(self._enter),
            conv.register_forward_hook(self._leave, prepend=True),
        ]

    def _enter(self, *_: Any) -> None:
        self.is_on = True

    def _leave(self, conv: Any, _inputs: Any, output: Any) -> None:
        self.is_on = False
        # Some transformations of torch.func run a module on tensors that mean nothing outside of them.
        if type(output) is Tensor and output.ndim == len(conv.kernel_size) + 2 and not self.weights:
            by_channel = output.detach().float().transpose(0, 1).flatten(1)
            self.spreads.append((by_channel.amax(1) - by_channel.amin(1)).max().item())

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()


def check_zeroing(
    net: nn.Module, layers: Sequence[str], images: Tensor, weights: Weights, run: Callable[[Tensor], Tensor]
) -> None:
    """Raise StudyError for a layer that does not compute with the weight that is zeroed.

    With half of its filters zeroed, a layer must convolve with just that weight, zeros and all. One whose forward
    does not call a convolution of torch's must give the same everywhere once all of its weight is zero. Any other
    makes a weight of its own, in its forward pass or in a hook, and zeroing the one that is stored says nothing.
    """
    for layer in layers:
        conv: Any = net.get_submodule(layer)
        filters = tuple(range(max(1, len(conv.weight) // 2)))
        used, expected = _observed(conv, Part(layer, filters), images, weights, run)
        like = [one for one, _ in used.weights if one.shape == expected.shape]
        if like:
            fits = any(torch.equal(one.to(expected.dtype), expected) or _rounded(one, expected) for one in like)
        elif used.spreads:
            used, _ = _observed(conv, Part(layer), images, weights, run)
            fits = not any(spread > 0 for spread in used.spreads)
        else:
            fits = True  # it is not called, or not seen: what it does is held to the whole network below
        if not fits:
            raise StudyError(
                f"{layer} does not compute with the weight that is zeroed, but with another one (that its "
                "forward, a hook or another module makes); leave it out with --layers"
            )


def _observed(
    conv: Any, part: Part, images: Tensor, weights: Weights, run: Callable[[Tensor], Tensor]
) -> tuple[_InModule, Tensor]:
    """Run a network while a part of a layer is zero: what the layer did, and its weight at that time."""
    used = _InModule(conv)
    try:
        with weights.zeroed(Ablation((part,), "layer", 0, part.layer)):
            expected = conv.weight.detach().clone()
            with used:
                run(images)
    finally:
        used.remove()
    return used, expected


def _rounded(one: Tensor, other: Tensor) -> bool:
    """Whether a weight is another one in fewer digits: what is zero in one is zero in both."""
    small, large = sorted((one, other), key=lambda value: torch.finfo(value.dtype).bits)
    return small.dtype != large.dtype and torch.equal(small, large.to(small.dtype))


def strongest_ablations(layer: str, net: nn.Module, kept: Kept) -> list[Ablation]:
    """The ablations of a layer that are held to the naive way first: all of it, and the kernel that carries most.

    A kernel carries its weights' sum of |w| times the mean |x| of the channel that it reads: one that reads a dead
    channel changes nothing, and would agree with anything.
    """
    conv: Any = net.get_submodule(layer)
    weight, groups = conv.weight.detach(), conv.groups
    carried, num_in = weight.abs().float().flatten(2).sum(2), weight.shape[1]
    for step in kept.downstream.first:
        source = kept.frontier.get(step.source) if step.source is not None else None
        if isinstance(source, Tensor) and source.ndim == weight.ndim and source.shape[1] == num_in * groups:
            activity = source.detach().abs().float().transpose(0, 1).flatten(1).mean(1).reshape(groups, num_in)
            carried = carried * activity.repeat_interleave(len(weight) // groups, 0).to(carried.device)
    out, in_ = divmod(int(torch.nan_to_num(carried).argmax()), num_in)
    kernel = Ablation((Part(layer, (out,), (in_,)),), "kernel", 0, layer)
    return [Ablation((Part(layer),), "layer", 0, layer), kernel]
