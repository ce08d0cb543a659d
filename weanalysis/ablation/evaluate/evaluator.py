"""From a batch of images and a list of ablations to the images whose prediction changed.

Two ways that agree image by image: `naive` zeroes the weights and runs the whole network; `exact` runs it once
and then recomputes, for each ablation, only what lies downstream of the zeroed weights. A third, `screened`, does
this for those images alone that could change.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, fx, nn

from weanalysis.ablation.evaluate.decisions import Batch, Decisions, Measured, check_intact, logits_of, merge, together
from weanalysis.ablation.evaluate.pairs import Look, Pairs
from weanalysis.ablation.evaluate.risk import ScreenSettings
from weanalysis.ablation.evaluate.shard import Shard
from weanalysis.ablation.graph import Downstream, Graph, Untraceable, num_bytes, versions
from weanalysis.ablation.studies import Ablation, Part
from weanalysis.ablation.weights import Weights, some_channels
from weanalysis.devices import precision
from weanalysis.errors import DeviceError, WeanalysisError

Mode = Literal["exact", "screened", "naive"]

_T = TypeVar("_T")

# Of each shard, so many images' intact logits are computed both ways.
_NUM_COMPARED = 8

# An image whose decision hangs on less than this many times the largest difference seen between the two ways
# is decided by the naive way.
TIE_FACTOR = 100.0

# Activations that a process keeps of a batch of images, in bytes; and of a shard whose pairs are computed.
KEPT_BYTES = 512 * 2**20
_KEPT_OF_SHARD = 2 * KEPT_BYTES


@dataclass
class _Kept:
    """One batch's activations that the ablations of some layers read, and the intact outputs of those layers."""

    downstream: Downstream
    frontier: dict[fx.Node, Any]
    outputs: dict[fx.Node, Tensor]


class Evaluator:
    """Measures ablations of one network; works on a copy of its own, so the caller's weights are never touched.

    `mode` "exact" falls back to whole forward passes where the network cannot be traced; `note` then says so.
    "screened" falls back to exact for ablations whose effect cannot be predicted: of several layers at once, or of
    one whole. Memory: the network, one batch's kept activations (of pairs, up to 1 GiB of a shard's), and one batch of
    images; independent of the number of images and ablations. On a GPU that runs out of memory the batch is halved.
    Raises StudyError for outputs that are no logits or hold NaN, DeviceError where one image is too large.
    """

    def __init__(
        self,
        net: nn.Module,
        mode: Mode = "exact",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 50,
        screen: ScreenSettings | None = None,
        tf32: bool = False,
    ):
        self.mode, self.device, self.dtype, self.batch_size = mode, torch.device(device), dtype, batch_size
        self.screen, self.kept_limit, self.tf32 = screen or ScreenSettings(), _KEPT_OF_SHARD, tf32
        # A GPU is busy only with many images at once: there, exact evaluation too takes pairs of all layers together.
        self.pooled = self.device.type != "cpu"
        try:
            self._net = copy.deepcopy(net).to(self.device, dtype).eval().requires_grad_(False)
        except (RuntimeError, AssertionError) as error:
            raise DeviceError(f"the network cannot be moved to {device}: {str(error).splitlines()[0]}") from error
        self.note = ""
        self._graph: Graph | None = None
        self._plans: dict[tuple[str, ...], Downstream] = {}
        self._channels_last = True
        # Of the task in hand: layers compared with the naive way, the largest difference, and what follows from it.
        self._checked: set[tuple[str, ...]] = set()
        self._largest_difference = self.tolerance = 0.0
        self._twin: nn.Module | None = None
        twin = None
        if mode != "naive":
            try:
                # Merging a batch norm rounds the weights: harmless in float32, not in 16 bits.
                twin = copy.deepcopy(self._net)
                self._graph = Graph(twin, fold=dtype == torch.float32)
                self._twin = twin
                self._lay_out_weights(torch.channels_last)
            except Untraceable as reason:
                self._give_up_tracing(str(reason))
        self.weights = Weights(self._net, twin if self._graph is not None else None)
        self._pairs = None if self._graph is None else Pairs(self._graph, self.weights)

    def _lay_out_weights(self, memory_format: torch.memory_format) -> None:
        """Lay the traced network's weights out in memory as its activations are."""
        assert self._twin is not None
        for parameter in self._twin.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=memory_format)

    def _give_up_tracing(self, reason: str) -> None:
        self._graph = self._pairs = None
        self.weights = Weights(self._net)
        self.note = f"the network cannot be traced ({reason}): every ablation runs the whole network"

    def cost(self, ablation: Ablation) -> float:
        """The part of a forward pass that an ablation repeats, in steps of the traced network (0 to 1).

        Of a screened one, for a guess: on one image in thirty.
        """
        if self._graph is None:
            return 1.0
        share = len(self._plan(ablation.layers).steps) / len(self._graph.steps)
        return share / 30 if self.can_screen(ablation) else share

    @torch.no_grad()
    def kept_bytes(self, image: Tensor, ablations: Sequence[Ablation]) -> int:
        """Bytes of activations that measuring these ablations keeps for one image (1, 3, H, W)."""
        if self._graph is None:
            return 0
        groups = {ablation.layers for ablation in ablations}
        frontier = frozenset[fx.Node]().union(*(self._plan(layers).frontier for layers in groups))
        if self._pairs is not None and (self.mode == "screened" or self.pooled):
            single = {ablation.layers[0] for ablation in ablations if self._pairs.can(ablation)}
            frontier |= self._pairs.read(sorted(single))
        # A screened batch is kept as activations, as gradients, and channel by channel.
        kept = self._kept_values(image.to(self.device, self.dtype), frontier)
        return num_bytes(kept) * (3 if self.mode == "screened" else 1)

    def can_screen(self, ablation: Ablation) -> bool:
        """Whether an ablation's effect can be predicted, so that not all images need be computed."""
        return self.mode == "screened" and self._is_single(ablation)

    def _is_single(self, ablation: Ablation) -> bool:
        """Whether it zeroes a part of one layer that is called once, so that it can be computed along with others."""
        return self._pairs is not None and self._pairs.can(ablation)

    def measure(self, images: Tensor, targets: Tensor, ablations: Sequence[Ablation], start: int = 0) -> Measured:
        """Measure ablations on images (N, 3, H, W) with class indices (N,), which are `start` … of the data set."""
        began = time.perf_counter()
        if self.device.type == "cuda":
            # Copies to the GPU then go on while it computes.
            images, targets = images.pin_memory(), targets.pin_memory()
        while True:
            self._checked, self.tolerance, self._largest_difference = set(), 0.0, 0.0
            try:
                with precision(self.device, self.tf32):
                    measured = self._measure(images, targets, ablations, start)
                break
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise DeviceError(f"one image and its activations do not fit into the memory of {self.device}; "
                                      "use --device cpu, or smaller images with --image-size") from None
            # Outside of the handler, so that nothing of the failed batch is alive.
            self.batch_size = max(1, self.batch_size // 2)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        measured.largest_difference = self._largest_difference
        measured.seconds = time.perf_counter() - began
        return measured

    @torch.no_grad()
    def _measure(self, images: Tensor, targets: Tensor, ablations: Sequence[Ablation], start: int) -> Measured:
        single = [place for place, ablation in enumerate(ablations) if self._is_single(ablation)]
        if single and (self.mode == "screened" or self.pooled):
            part = self._measure_pairs(images, targets, [ablations[place] for place in single], start)
            if part is not None:
                others = sorted(set(range(len(ablations))) - set(single))
                if not others:
                    return part
                rest = self._in_batches(images, targets, [ablations[place] for place in others], start)
                return together([(single, part), (others, rest)], self.mode == "screened")
        measured = self._in_batches(images, targets, ablations, start)
        return together([(range(len(ablations)), measured)], True) if self.mode == "screened" else measured

    def _measure_pairs(
        self, images: Tensor, targets: Tensor, ablations: Sequence[Ablation], start: int
    ) -> Measured | None:
        """Measure ablations of single layers as pairs; None for a network that cannot be computed in that way.

        It is tried anew for every shard, so that a shard's answer does not depend on those before.
        """
        assert self._pairs is not None
        shard = Shard(self, self._pairs, images, targets, start)
        try:
            return (shard.screen if self.mode == "screened" else shard.measure)(tuple(ablations))
        except (Untraceable, RuntimeError, ValueError, IndexError, KeyError) as reason:
            if isinstance(reason, (torch.OutOfMemoryError, WeanalysisError)):
                raise
            line = (str(reason).splitlines() or [""])[0]
            self.note = f"this network cannot be computed image by image ({line}): every ablation is on all of them"
            return None

    @torch.no_grad()
    def probe(self, images: Tensor, targets: Tensor, ablations: Sequence[Ablation]) -> None:
        """Try one ablation of each layer on a few images, so that `note` says beforehand what will not work."""
        of_layer = {a.layers: a for a in reversed(ablations) if self._is_single(a)}
        if of_layer and (self.mode == "screened" or self.pooled):
            self._measure_pairs(images, targets, list(of_layer.values()), 0)

    def _in_batches(self, images: Tensor, targets: Tensor, ablations: Sequence[Ablation], start: int) -> Measured:
        return merge([
            self._measure_batch(images[low : low + self.batch_size], targets[low : low + self.batch_size], ablations)
            for low in range(0, len(images), self.batch_size)
        ], start)  # fmt: skip

    @torch.no_grad()
    def intact(self, images: Tensor, targets: Tensor) -> Decisions:
        """Decide one batch with the untouched network; raise StudyError for NaN or for a class it does not have."""
        logits = self._whole(images.to(self.device, self.dtype))
        check_intact(logits, targets)
        return Decisions.of(logits, targets.to(self.device))

    def look(
        self, images: Tensor, targets: Tensor, layers: Sequence[str], check: bool = False, gradients: bool = True
    ) -> tuple[Look, Decisions]:
        """Run one batch through the intact traced network: what pairs of these layers need, and the decisions.

        With `check`, some images also go through the network as it is, to see how far the two differ.
        """
        assert self._pairs is not None
        pairs, metric = self._pairs, self.screen.metric
        images = images.to(self.device, self.dtype, non_blocking=True)
        targets = targets.to(self.device, non_blocking=True)
        look, logits = self._in_fast_format(
            lambda images: pairs.look(images, targets, layers, metric, gradients), images
        )
        if check:
            self._compare(logits[:_NUM_COMPARED], self._whole(images[:_NUM_COMPARED]))
        decisions = Decisions.of(logits, targets, self.tolerance)
        if bool(decisions.near.any()):
            near = decisions.near
            again = Decisions.of(self._whole(images[near]), targets[near])
            decisions.predictions[near], decisions.correct[near] = again.predictions, again.correct
        return look, decisions

    def naive_logits(self, images: Tensor, ablation: Ablation) -> Tensor:
        """Zero the weights, run the whole network on images (N, 3, H, W), put the weights back."""
        with self.weights.zeroed(ablation):
            return self._whole(images.to(self.device, self.dtype))

    def compare(self, logits: Tensor, images: Tensor, ablation: Ablation) -> None:
        """Hold logits that the fast way gave for some images against the naive way."""
        self._compare(logits, self.naive_logits(images, ablation))

    @torch.no_grad()
    def logits(self, images: Tensor, ablation: Ablation | None = None) -> Tensor:
        """Compute the (N, classes) logits of images (N, 3, H, W), intact or under an ablation, in this mode's way."""
        images = images.to(self.device, self.dtype)
        if ablation is None:
            return self._whole(images)
        if self._graph is None:
            with self.weights.zeroed(ablation):
                return self._whole(images)
        plan = self._plan(ablation.layers)
        values = self._kept_values(images, plan.frontier)
        kept = _Kept(plan, values, {step.node: step.run(values) for step in plan.first})
        with self.weights.zeroed(ablation):
            return self._rerun(kept, ablation)

    def _whole(self, images: Tensor) -> Tensor:
        return logits_of(self._net(images))

    def _measure_batch(self, images: Tensor, targets: Tensor, ablations: Sequence[Ablation]) -> Batch:
        images = images.to(self.device, self.dtype, non_blocking=True)
        targets = targets.to(self.device, non_blocking=True)
        intact = self.intact(images, targets)
        if self._graph is not None:
            try:
                return self._measure_downstream(images, targets, ablations, Batch.of(targets, intact))
            except Untraceable as reason:
                self._give_up_tracing(str(reason))
        batch = Batch.of(targets, intact)
        for ablation in ablations:
            with self.weights.zeroed(ablation):
                batch.add(Decisions.of(self._whole(images), targets))
        return batch

    def _measure_downstream(
        self, images: Tensor, targets: Tensor, ablations: Sequence[Ablation], batch: Batch
    ) -> Batch:
        """Run the intact network once, keep what lies upstream of the ablated layers, and rerun the rest for each."""
        assert self._graph is not None
        groups = [(self._plan(layers), list(members)) for layers, members in groupby(ablations, lambda one: one.layers)]
        # From the last group to the first: what each group and all later ones read, so that values are let go early.
        still_read: list[frozenset[fx.Node]] = [frozenset()]
        for plan, _ in reversed(groups):
            still_read.append(still_read[-1] | plan.frontier)
        values = self._kept_values(images, still_read.pop())
        for plan, members in groups:
            kept = _Kept(plan, {node: values[node] for node in plan.frontier}, {})
            kept.outputs = {step.node: step.run(kept.frontier) for step in plan.first}
            self._measure_group(kept, members, images, targets, batch)
            needed = still_read.pop()
            values = {node: value for node, value in values.items() if node in needed}
        return batch

    def _kept_values(self, images: Tensor, keep: frozenset[fx.Node]) -> dict[fx.Node, Any]:
        """Run the intact traced network and return what is to be kept."""
        graph = self._graph
        assert graph is not None
        return self._in_fast_format(lambda images: graph.run(images, keep)[1], images)

    def _in_fast_format(self, run: Callable[[Tensor], _T], images: Tensor) -> _T:
        """Run in the memory format that is faster where the network bears it."""
        if self._channels_last and images.ndim == 4:
            try:
                return run(images.contiguous(memory_format=torch.channels_last))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # a view that only the usual format allows; weights too choose the format
                self._channels_last = False
                self._lay_out_weights(torch.contiguous_format)
        return run(images)

    def _plan(self, layers: tuple[str, ...]) -> Downstream:
        assert self._graph is not None
        if layers not in self._plans:
            self._plans[layers] = self._graph.downstream(layers)
        return self._plans[layers]

    def _measure_group(
        self, kept: _Kept, ablations: Sequence[Ablation], images: Tensor, targets: Tensor, batch: Batch
    ) -> None:
        """Measure ablations of the same layers.

        In the first batch, the first ablation is also done naively, to see how far the two ways differ.
        """
        before = versions(kept.frontier)
        check = ablations[0].layers not in self._checked
        for ablation in ablations:
            with self.weights.zeroed(ablation):
                logits = self._rerun(kept, ablation)
                if check:
                    self._compare(logits, self._whole(images))
                    self._checked.add(ablation.layers)
                    check = False
                decisions = Decisions.of(logits, targets, self.tolerance)
                if bool(decisions.near.any()):
                    batch.num_rechecked += int(decisions.near.sum())
                    decisions = Decisions.of(self._whole(images), targets)
            batch.add(decisions)
        if versions(kept.frontier) != before:
            raise Untraceable("one of its operations writes into an activation that others read")

    def _compare(self, logits: Tensor, whole: Tensor) -> None:
        """Widen the margin under which a decision counts as near, from one ablation computed both ways."""
        difference = (whole - logits).abs().nan_to_num().max().item()
        rounding = 16 * torch.finfo(logits.dtype).eps * whole.abs().nan_to_num().max().item()
        self._largest_difference = max(self._largest_difference, difference)
        self.tolerance = max(self.tolerance, TIE_FACTOR * difference, rounding)

    def _rerun(self, kept: _Kept, ablation: Ablation) -> Tensor:
        """Compute the logits under an ablation whose weights are zero at this moment."""
        assert self._graph is not None
        parts: dict[str | None, list[Part]] = {}
        for part in ablation.parts:
            parts.setdefault(part.layer, []).append(part)
        changed: dict[fx.Node, Any] = {}
        borrowed: list[tuple[Tensor, Tensor, Tensor]] = []
        try:
            for step in kept.downstream.first:
                channels = self.weights.changed_channels(parts[step.layer])
                source = fx.map_arg(step.args, kept.frontier.__getitem__)[0]
                some = None if channels is None else some_channels(step.function, source, channels)  # type: ignore
                if some is None:
                    changed[step.node] = step.run(kept.frontier)
                    continue
                # The few new channels are written into the intact output and taken out again: cheaper than a copy.
                output, index = kept.outputs[step.node], torch.tensor(channels, device=self.device)
                borrowed.append((output, index, output[:, index]))
                output[:, index] = some
                changed[step.node] = output
            return logits_of(self._graph.rerun(kept.downstream, kept.frontier, changed))
        finally:
            for output, index, values in borrowed:
                output[:, index] = values
