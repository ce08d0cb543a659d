"""How far each ablation moves each image's decision: predicted for all of them, computed for those that are chosen.

A decision hangs on the margin m: the logit of the label less the best other one (top-1) or the fifth best (top-5).
One backward pass gives the gradient g of m at the activation behind a layer. The change of that activation under an
ablation is computed exactly, through the nonlinearity; times g, it predicts the change of m (a first-order Taylor
expansion in the activation, not in the weight).

g knows the best other class of now, and no third one that the ablation may lift. How much a channel matters to any
class shows in the gradients of other images, whose labels and rivals are others: their mean square is a random
projection of the gradients of all logits, for no further backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, fx, nn

from weanalysis.ablation.evaluate.outputs import Path, logits_of
from weanalysis.ablation.evaluate.rivals import Rivals
from weanalysis.ablation.graph import (
    BATCH_NORMS,
    Downstream,
    Graph,
    Step,
    Untraceable,
    has_row_an_image,
    is_plain,
    select_rows,
)
from weanalysis.ablation.studies import Ablation
from weanalysis.ablation.weights import Weights, some_channels
from weanalysis.tasks.classification import Classification

# The change of one layer's activations is computed for so many numbers at a time.
_CHUNK_NUMBERS = 2**21

# From so few inputs, a convolution that reads all of them for each kernel is faster than one that reads its own.
_FEW_INPUTS = 16

# How much the usual gradient of a channel counts beside that of the image in hand, in the size of a change.
_USUAL_SHARE = 0.5

# A channel that is saturated in all images shows no gradient in any: so much of that of all channels is added.
_LAYER_SHARE = 0.3

# Stands for the usual gradient of a channel that has none, so that whatever changes there is of infinite size.
_UNSEEN = 1e30

_CONVOLVE = {3: nn.functional.conv1d, 4: nn.functional.conv2d, 5: nn.functional.conv3d}


@dataclass(frozen=True)
class PairedLayer:
    """A layer as it is screened: its convolution, the steps behind it, and all that lies downstream."""

    step: Step
    behind: tuple[Step, ...]
    downstream: Downstream

    @property
    def conv(self) -> Any:
        """The convolution."""
        return self.step.function

    @property
    def source(self) -> fx.Node:
        """What the convolution reads."""
        source = self.step.args[0]
        assert isinstance(source, fx.Node)
        return source

    @property
    def end(self) -> fx.Node:
        """The activation at which a change of the layer is weighed."""
        return self.behind[-1].node if self.behind else self.step.node

    @property
    def read(self) -> frozenset[fx.Node]:
        """All values that screening the layer reads."""
        inside = {self.step.node, *(step.node for step in self.behind)}
        around = {node for step in self.behind for node in step.node.all_input_nodes}
        return self.downstream.frontier | {self.step.node, self.end} | (around - inside)


@dataclass(frozen=True)
class Kernels:
    """Ablations that each zero (a part of) one kernel: which, and what becomes 0 there, (A, h, w …)."""

    out_channels: Tensor
    in_channels: Tensor
    zeroed: Tensor

    @cached_property
    def run_length(self) -> int:
        """So many in a row change the same output channel, all along; 1 where the runs differ in length."""
        counts = self.out_channels.unique_consecutive(return_counts=True)[1].tolist()
        return counts[0] if len(set(counts)) == 1 else 1


@dataclass
class IntactPass:
    """A batch of images as the intact network sees it: rivals, margins (N,), activations, the first one's gradients."""

    rivals: Rivals
    margins: Tensor
    second: Tensor
    values: dict[fx.Node, Any]
    gradients: dict[fx.Node, Tensor]
    _taken: dict[tuple[fx.Node, tuple[int, ...]], Any] = field(default_factory=dict)

    def squares(self, num_images: int) -> dict[fx.Node, Tensor]:
        """The mean square of each channel's gradient, (C,), over all places of the first images, summed over these."""
        mean_squares = {}
        for node, gradient in self.gradients.items():
            mean_squares[node] = gradient[:num_images].float().square().flatten(2).mean(2).sum(0)
        return mean_squares

    def take(self, node: fx.Node, channels: Tensor) -> Any:
        """Some channels of a value, (N, len(channels), …), each in one piece; several layers read the same ones."""
        key = node, tuple(channels.tolist())
        if key not in self._taken:
            self._taken[key] = _channels(self.values[node], channels)
        return self._taken[key]

    def forget_predictions(self) -> None:
        """Let go of all that predictions alone read."""
        self.gradients.clear()
        self._taken.clear()


class Pairs:
    """Predicts and computes ablations of single layers of a traced network, whose weights are at hand."""

    def __init__(self, graph: Graph, weights: Weights, output: Path | None = None):
        self._graph, self._weights, self._output = graph, weights, output
        self._layers: dict[str, PairedLayer | None] = {}
        self._settled: set[str] = set()
        self._kernels: dict[str, tuple[Sequence[Ablation], Kernels | None]] = {}

    def layer(self, name: str) -> PairedLayer | None:
        """How a layer is screened; None where it is called more than once, or not at all."""
        if name not in self._layers:
            plan = self._graph.downstream([name])
            alone = self._graph.num_calls(name) == 1 and len(plan.first) == 1 and plan.first[0].source is not None
            self._layers[name] = PairedLayer(plan.first[0], self._graph.channelwise(name), plan) if alone else None
        return self._layers[name]

    def can(self, ablation: Ablation) -> bool:
        """Whether an ablation's effect can be predicted: it zeroes a part of one layer that is called once."""
        whole = any(
            part.ranks is None and part.out_channels is None and part.in_channels is None for part in ablation.parts
        )
        return len(ablation.layers) == 1 and not whole and self.layer(ablation.layers[0]) is not None

    def end(self, name: str) -> fx.Node:
        """The activation at which a change of a layer is weighed, once a batch was run."""
        return self._known(name).end

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Layers in the order of the forward pass."""
        return sorted(names, key=self._graph.place)

    def read(self, names: Sequence[str]) -> frozenset[fx.Node]:
        """All values that screening these layers reads."""
        return frozenset[fx.Node]().union(*(self._known(name).read for name in names)) - set(self._graph.constants)

    def _known(self, name: str) -> PairedLayer:
        layer = self.layer(name)
        assert layer is not None
        return layer

    @torch.no_grad()
    def _settle(self, images: Tensor, names: Sequence[str]) -> None:
        """Cut what stands behind a layer before the first step that gives another shape, or reads one that is odd."""
        new = [name for name in names if name not in self._settled]
        if not new:
            return
        behind = [step for name in new for step in self._known(name).behind]
        inside = frozenset(node for step in behind for node in (step.node, *step.node.all_input_nodes))
        keep = self.read(new) | (inside - self._graph.constants)
        values = self._graph.run(images[:1], keep)[1]

        def alike(step: Step, shape: torch.Size) -> bool:
            others = [values[node] for node in step.node.all_input_nodes]
            return values[step.node].shape == shape and all(
                not isinstance(other, Tensor) or (other.ndim == len(shape) and other.shape[1] in (1, shape[1]))
                for other in others
            )

        for name in new:
            layer = self._known(name)
            shape = values[layer.step.node].shape
            fitting = tuple(takewhile(lambda step, shape=shape: alike(step, shape), layer.behind))  # type: ignore[misc]
            self._layers[name] = replace(layer, behind=fitting)
            self._settled.add(name)

    def run_intact(
        self, images: Tensor, targets: Tensor, names: Sequence[str], metric: str, gradients: bool = True
    ) -> tuple[IntactPass, Tensor]:
        """Run the intact network over a batch, forward and (with `gradients`) backward: what pairs need, the logits."""
        self._settle(images, names)
        ends = list(dict.fromkeys(self._known(name).end for name in names)) if gradients else []
        with torch.set_grad_enabled(gradients):
            output, values = self._graph.run(images, self.read(names), frozenset(ends))
            logits = logits_of(output, self._output)
            Classification().check(logits, targets)
            rivals = Rivals.of(logits, targets, metric)
            margins, second = rivals.margins(logits, targets)
            # A network may lead from a layer to nothing that the margin reads: then its gradient is 0.
            at_ends: Sequence[Tensor | None] = [None] * len(ends)
            if margins.requires_grad:
                at_ends = torch.autograd.grad(margins.sum(), [values[end] for end in ends], allow_unused=True)
        for name in names:
            layer = self._known(name)
            read = (values[node] for node in (layer.source, layer.step.node, layer.end))
            if not all(has_row_an_image(value, len(images)) for value in read):
                raise Untraceable(f"{name} does not see one row an image")
        kept = {node: value.detach() if isinstance(value, Tensor) else value for node, value in values.items()}
        slopes = {
            end: torch.zeros_like(kept[end]) if slope is None else slope.detach()
            for end, slope in zip(ends, at_ends, strict=True)
        }
        return IntactPass(rivals, margins.detach(), second.detach(), kept, slopes), logits.detach()

    @torch.no_grad()
    def predict(
        self, seen: IntactPass, name: str, ablations: Sequence[Ablation], usual: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict how each ablation of one layer changes each image's margin; (N, A) each: change, size, any class's.

        `usual` (C,) is the mean square of the gradient of the margins of many images, by channel. The size of a change
        is the Euclidean norm of the terms whose sum it is, with a part of the usual gradient beside the image's own:
        where they cancel, the sum is small and its error is not. The last number is the same norm for the usual
        gradient alone, the size of what may happen to any other class. Both are infinite where the activation of a
        channel changes that has no gradient in any image.
        """
        kernels = self._single_kernels(name, ablations)
        usual = usual + _LAYER_SHARE**2 * usual.mean()
        usual = torch.where(usual > 0, usual, _UNSEEN)
        parts = self._moved(seen, name, ablations) if kernels is None else self._moved_by_kernels(seen, name, kernels)
        changes: list[Tensor] = []
        squares: list[Tensor] = []
        others: list[Tensor] = []
        for moved, gradient, channels in parts:
            moved = moved.float()
            of_any = torch.linalg.vector_norm(moved, dim=3).square_().mul_(usual[channels][:, None])
            terms = moved.mul_(gradient.float())
            sums = terms.sum(3), torch.linalg.vector_norm(terms, dim=3).square_(), of_any
            for each, one in zip((changes, squares, others), sums, strict=True):
                each.append(one.sum(1) if kernels is None else one.flatten(1))
        of_any = torch.cat(others, 1)
        size = torch.cat(squares, 1).add_(of_any, alpha=_USUAL_SHARE**2).sqrt_()
        unseen = of_any.sqrt_() > _UNSEEN**0.25
        return torch.cat(changes, 1), size.masked_fill_(unseen, torch.inf), of_any.masked_fill_(unseen, torch.inf)

    def _moved(
        self, seen: IntactPass, name: str, ablations: Sequence[Ablation]
    ) -> Iterator[tuple[Tensor, Tensor, Any]]:
        """How each ablation changes the activation behind a layer, and the gradient there, (N, D, 1, numbers) each.

        Along come the D channels that it is of.
        """
        layer = self._known(name)
        for ablation in ablations:
            channels, new = self._anew(seen.values, layer, ablation)

            def take(node: fx.Node, channels: Any = channels) -> Any:
                return _channels(seen.values[node], channels)

            moved = _behind(layer, new, channels, take) - take(layer.end)
            gradient = _channels(seen.gradients[layer.end], channels)
            yield moved.flatten(2)[:, :, None], gradient.flatten(2)[:, :, None], channels

    def _moved_by_kernels(self, seen: IntactPass, name: str, kernels: Kernels) -> Iterator[tuple[Tensor, Tensor, Any]]:
        """The same for kernels, some at a time: (N, D, K, numbers), and (N, D, 1, numbers) of the gradient.

        K kernels each change one of D output channels.
        """
        layer, run = self._known(name), kernels.run_length
        per_ablation = seen.values[layer.step.node][:, 0].numel()
        if run * per_ablation > _CHUNK_NUMBERS:
            run = 1
        outs, places = kernels.out_channels[::run].unique(return_inverse=True)
        ins, sources = kernels.in_channels.unique(return_inverse=True)
        images, intact = seen.take(layer.source, ins), seen.take(layer.step.node, outs)
        gradient = _channels(seen.gradients[layer.end], outs)
        after = _behind(layer, intact.clone(), outs, lambda node: seen.take(node, outs))
        at_once = max(1, _CHUNK_NUMBERS // (run * per_ablation))
        for low in range(0, len(places), at_once):
            at = _in_a_row(places[low : low + at_once])

            def of_runs(value: Any, at: Tensor | slice = at) -> Any:
                some = _channels(value, at)
                return some.unsqueeze(2) if isinstance(some, Tensor) else some

            which = slice(low * run, (low + at_once) * run)
            new = self._added(images, layer, kernels.zeroed[which], sources[which]).unflatten(1, (-1, run))
            new += of_runs(intact)
            new = _behind(layer, new, outs[at], lambda node: of_runs(seen.take(node, outs)))
            yield new.sub_(of_runs(after)).flatten(3), of_runs(gradient).flatten(3), outs[at]

    @staticmethod
    def _added(images: Tensor, layer: PairedLayer, zeroed: Tensor, sources: Tensor) -> Tensor:
        """What zeroing A kernels adds to their output channels, (N, A, …): each reads one channel of `images`."""
        conv, count = layer.conv, len(zeroed)
        convolve = _CONVOLVE[images.ndim]
        if images.shape[1] <= _FEW_INPUTS:
            weight = zeroed.new_zeros(count, images.shape[1], *zeroed.shape[1:])
            weight[torch.arange(count, device=weight.device), sources] = -zeroed
            return convolve(images, weight, None, conv.stride, conv.padding, conv.dilation)
        chosen = images.index_select(1, sources)
        return convolve(chosen, -zeroed[:, None], None, conv.stride, conv.padding, conv.dilation, count)

    @torch.no_grad()
    def logits(self, seen: IntactPass, chosen: Sequence[tuple[str, Sequence[Ablation], Tensor, Tensor]]) -> Tensor:
        """Compute the logits (P, classes) of pairs: (layer, ablations, rows, which) each, layers in forward order.

        They stand for image rows[p] under ablations[which[p]]; `which` is in ascending order.
        """
        joins = {}
        for name, ablations, rows, which in chosen:
            layer, kernels = self._known(name), self._single_kernels(name, ablations)
            new = select_rows(seen.values[layer.step.node], rows)
            if kernels is not None:
                new[torch.arange(len(rows), device=new.device), kernels.out_channels[which]] += self._added_to_rows(
                    seen.values[layer.source][rows, kernels.in_channels[which]], layer, kernels.zeroed[which]
                )
            else:
                values = {layer.source: select_rows(seen.values[layer.source], rows)}
                places, counts = torch.unique_consecutive(which, return_counts=True)
                ends = counts.cumsum(0).tolist()
                for place, count, end in zip(places.tolist(), counts.tolist(), ends, strict=True):
                    span = slice(end - count, end)
                    channels, some = self._anew({layer.source: values[layer.source][span]}, layer, ablations[place])
                    new[span, channels] = some
            joins[layer.step.node] = new
        every_row = torch.cat([rows for _, _, rows, _ in chosen])
        return logits_of(self._graph.replay(every_row, joins, seen.values, len(seen.margins)), self._output)

    def _single_kernels(self, name: str, ablations: Sequence[Ablation]) -> Kernels | None:
        """The one kernel that each ablation touches; None where any touches more, or the layer is of its own kind."""
        known = self._kernels.get(name)
        if known is None or known[0] is not ablations:
            known = self._kernels[name] = (ablations, self._find_kernels(name, ablations))
        return known[1]

    def _find_kernels(self, name: str, ablations: Sequence[Ablation]) -> Kernels | None:
        conv = self._known(name).conv
        if not is_plain(conv) or conv.padding_mode != "zeros":
            return None
        weight = conv.weight.detach()
        outs, ins, zeroed = [], [], []
        for ablation in ablations:
            places = [self._weights.one_kernel(part) for part in ablation.parts]
            if len(places) != 1 or places[0] is None:
                return None
            out, in_, inside = places[0]
            kernel = torch.zeros_like(weight[out, in_])
            kernel[inside] = weight[out, in_][inside]
            outs.append(out)
            ins.append(in_ + out // (conv.out_channels // conv.groups) * weight.shape[1])
            zeroed.append(kernel)
        out_channels, in_channels = (torch.tensor(side, device=weight.device) for side in (outs, ins))
        return Kernels(out_channels, in_channels, torch.stack(zeroed))

    @staticmethod
    def _added_to_rows(images: Tensor, layer: PairedLayer, zeroed: Tensor) -> Tensor:
        """What zeroing a kernel each adds to its output channel, (P, …), for the channel that it reads, (P, H, W …)."""
        conv = layer.conv
        convolve = _CONVOLVE[images.ndim + 1]
        return convolve(images[None], -zeroed[:, None], None, conv.stride, conv.padding, conv.dilation, len(zeroed))[0]

    def _anew(self, values: Mapping[fx.Node, Any], layer: PairedLayer, ablation: Ablation) -> tuple[Any, Tensor]:
        """The output channels that an ablation changes (all: a slice), computed with its weights at 0."""
        channels = self._weights.changed_channels(ablation.parts)
        with self._weights.zeroed(ablation):
            if channels is not None:
                some = some_channels(layer.conv, values[layer.source], channels)
                if some is not None:
                    return torch.tensor(channels, device=some.device), some
            return slice(None), layer.step.run(values)


def _channels(value: Any, channels: Any) -> Any:
    """Some channels of an activation, or a slice of them, (N, len(channels), …); all of one that has a single channel.

    What is no tensor stays as it is.
    """
    return value[:, channels] if isinstance(value, Tensor) and value.shape[1] > 1 else value


def _in_a_row(places: Tensor) -> Tensor | slice:
    """The same places as a slice, which copies nothing, where each follows the one before."""
    low, count = int(places[0]), len(places)
    return slice(low, low + count) if torch.equal(places.cpu(), torch.arange(low, low + count)) else places


def _behind(layer: PairedLayer, value: Tensor, channels: Any, take: Callable[[fx.Node], Any]) -> Tensor:
    """Compute the steps behind a layer, `channels` of whose output are `value`, which may be written over.

    `take` gives an intact activation's part that has the value's shape, or broadcasts to it.
    """
    source = layer.step.node
    for step in layer.behind:
        if isinstance(step.function, BATCH_NORMS):
            norm = step.function
            assert norm.running_mean is not None and norm.running_var is not None
            weight, bias = (None if x is None else x[channels] for x in (norm.weight, norm.bias))
            value = nn.functional.batch_norm(
                value, norm.running_mean[channels], norm.running_var[channels], weight, bias, eps=norm.eps
            )
        else:
            read: dict[fx.Node, Any] = {source: value}
            for node in set(step.node.all_input_nodes) - {source}:
                other = take(node)
                read[node] = other.expand_as(value) if isinstance(other, Tensor) else other
            value = step.run_over(read, {source})
        source = step.node
    return value
