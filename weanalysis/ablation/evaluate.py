"""From a batch of images and a list of ablations to the images whose prediction changed.

Two ways that agree image by image: `naive` zeroes the weights and runs the whole network; `exact` runs it once
and then recomputes, for each ablation, only what lies downstream of the zeroed weights.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx, nn

from weanalysis.ablation.graph import Downstream, Graph, Untraceable
from weanalysis.ablation.studies import Ablation, Part
from weanalysis.ablation.weights import Weights, some_channels
from weanalysis.errors import DeviceError, StudyError

Mode = Literal["exact", "naive"]

# An image whose decision hangs on less than this many times the largest difference seen between the two ways
# is decided by the naive way.
TIE_FACTOR = 100.0


@dataclass
class Measured:
    """What a list of ablations changed among the images `start` … `stop`−1 of a data set's served order.

    Intact, per image: `targets`, `predictions`, `top5` (whether the target is among the five largest logits).
    `counts[a]` images changed under ablation a; their places in the shard, new classes and new correctness
    (bit 0 top-1, bit 1 top-5) follow one another in `positions`, `classes`, `correct`, ablation by ablation.
    An image counts as changed if its class or its top-5 correctness did.
    """

    start: int
    stop: int
    targets: np.ndarray
    predictions: np.ndarray
    top5: np.ndarray
    counts: np.ndarray
    positions: np.ndarray
    classes: np.ndarray
    correct: np.ndarray
    largest_difference: float = 0.0
    num_rechecked: int = 0
    seconds: float = 0.0


@dataclass
class Decisions:
    """Per image: the predicted class (−1: NaN), whether the target is first, in the first 5, and whether it is near."""

    predictions: Tensor
    correct: Tensor
    near: Tensor

    @staticmethod
    def of(logits: Tensor, targets: Tensor, tolerance: float = 0.0) -> Decisions:
        """Decide from logits (N, classes), and tell which images hang on less than the tolerance."""
        logits = logits.float()
        predictions = logits.argmax(1)
        of_target = logits.gather(1, targets[:, None])
        top5 = (logits > of_target).sum(1) < 5
        invalid = logits.isnan().any(1)
        predictions = torch.where(invalid, -1, predictions)
        correct = (predictions == targets).to(torch.uint8) + 2 * (top5 & ~invalid).to(torch.uint8)
        near = invalid.clone()
        if tolerance > 0:
            largest = logits.topk(min(6, logits.shape[1]), dim=1).values
            near |= (largest[:, 0] - largest[:, min(1, largest.shape[1] - 1)]) < tolerance
            if largest.shape[1] == 6:
                near |= (largest[:, 4] - largest[:, 5]) < tolerance
        return Decisions(predictions, correct, near)


def logits_of(output: Any) -> Tensor:
    """Take the (N, classes) logits out of what a network returns; raise StudyError where there are none."""
    if isinstance(output, Mapping):
        output = output.get("logits", output.get("out", next(iter(output.values()), None)))
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise StudyError(f"the network's output is {shape}, not (images, classes) logits; give a classifier")
    return output


@dataclass
class _Batch:
    """What the ablations changed in one batch: per ablation, the places, new classes and new correctness."""

    targets: np.ndarray
    predictions: np.ndarray
    correct: np.ndarray
    changes: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    num_rechecked: int = 0

    @classmethod
    def of(cls, targets: Tensor, intact: Decisions) -> _Batch:
        return cls(targets.cpu().numpy(), intact.predictions.cpu().numpy(), intact.correct.cpu().numpy())

    def add(self, decisions: Decisions) -> None:
        predictions, correct = decisions.predictions.cpu().numpy(), decisions.correct.cpu().numpy()
        (places,) = np.nonzero((predictions != self.predictions) | (correct != self.correct))
        self.changes.append((places, predictions[places], correct[places]))


def _merge(batches: Sequence[_Batch], start: int) -> Measured:
    """Put the batches of a shard together, ablation by ablation."""
    sizes = [len(batch.targets) for batch in batches]
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    num_ablations = len(batches[0].changes)
    ordered = [
        (places + offset, classes, correct)
        for a in range(num_ablations)
        for offset, (places, classes, correct) in zip(offsets, (b.changes[a] for b in batches), strict=True)
    ]
    counts = np.array([sum(len(batch.changes[a][0]) for batch in batches) for a in range(num_ablations)], np.int32)

    def joined(column: int, kind: type) -> np.ndarray:
        return np.concatenate([np.empty(0, kind), *(row[column] for row in ordered)]).astype(kind)

    intact = np.concatenate([batch.correct for batch in batches])
    return Measured(
        start=start,
        stop=start + sum(sizes),
        targets=np.concatenate([batch.targets for batch in batches]).astype(np.int32),
        predictions=np.concatenate([batch.predictions for batch in batches]).astype(np.int32),
        top5=(intact & 2).astype(bool),
        counts=counts,
        positions=joined(0, np.int32),
        classes=joined(1, np.int32),
        correct=joined(2, np.uint8),
        num_rechecked=sum(batch.num_rechecked for batch in batches),
    )


@dataclass
class _Kept:
    """One batch's activations that the ablations of some layers read, and the intact outputs of those layers."""

    downstream: Downstream
    frontier: dict[fx.Node, Any]
    outputs: dict[fx.Node, Tensor]

    @property
    def versions(self) -> list[int]:
        """How often each kept tensor was written to."""
        return [value._version for value in self.frontier.values() if isinstance(value, Tensor)]


class Evaluator:
    """Measures ablations of one network; works on a copy of its own, so the caller's weights are never touched.

    `mode` "exact" falls back to whole forward passes where the network cannot be traced; `note` then says so.
    Memory: the network, one batch's kept activations, and one batch of images; independent of the number of
    images and ablations. Raises StudyError for outputs that are no logits or hold NaN.
    """

    def __init__(
        self,
        net: nn.Module,
        mode: Mode = "exact",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 50,
    ):
        self.mode, self.device, self.dtype, self.batch_size = mode, torch.device(device), dtype, batch_size
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
        self._largest_difference = self._tolerance = 0.0
        twin = None
        if mode == "exact":
            try:
                # Merging a batch norm rounds the weights: harmless in float32, not in 16 bits.
                twin = copy.deepcopy(self._net)
                self._graph = Graph(twin, fold=dtype == torch.float32)
                twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            except Untraceable as reason:
                self._give_up_tracing(str(reason))
        self.weights = Weights(self._net, twin if self._graph is not None else None)

    def _give_up_tracing(self, reason: str) -> None:
        self._graph = None
        self.weights = Weights(self._net)
        self.note = f"the network cannot be traced ({reason}): every ablation runs the whole network"

    def cost(self, ablation: Ablation) -> float:
        """The part of a forward pass that an ablation repeats, in steps of the traced network (0 to 1)."""
        if self._graph is None:
            return 1.0
        return len(self._plan(ablation.layers).steps) / len(self._graph.steps)

    @torch.no_grad()
    def kept_bytes(self, image: Tensor, ablations: Sequence[Ablation]) -> int:
        """Bytes of activations that measuring these ablations keeps for one image (1, 3, H, W)."""
        if self._graph is None:
            return 0
        groups = {ablation.layers for ablation in ablations}
        frontier = frozenset[fx.Node]().union(*(self._plan(layers).frontier for layers in groups))
        values = self._kept_values(image.to(self.device, self.dtype), frontier)
        return sum(value.nbytes for value in values.values() if isinstance(value, Tensor))

    @torch.no_grad()
    def measure(self, images: Tensor, targets: Tensor, ablations: Sequence[Ablation], start: int = 0) -> Measured:
        """Measure ablations on images (N, 3, H, W) with class indices (N,), which are `start` … of the data set."""
        began = time.perf_counter()
        self._checked, self._tolerance, self._largest_difference = set(), 0.0, 0.0
        batches = [
            self._measure_batch(images[low : low + self.batch_size], targets[low : low + self.batch_size], ablations)
            for low in range(0, len(images), self.batch_size)
        ]
        measured = _merge(batches, start)
        measured.largest_difference = self._largest_difference
        measured.seconds = time.perf_counter() - began
        return measured

    @torch.no_grad()
    def intact(self, images: Tensor, targets: Tensor) -> Decisions:
        """Decide one batch with the untouched network; raise StudyError for NaN or for a class it does not have."""
        logits = self._whole(images.to(self.device, self.dtype))
        if logits.isnan().any():
            raise StudyError("the intact network's outputs hold NaN, so nothing can be measured; check its weights")
        if int(targets.max()) >= logits.shape[1]:
            raise StudyError(f"the data has class {int(targets.max())}, but the network's outputs are 0 to "
                             f"{logits.shape[1] - 1}; give data or weights with the same classes")
        return Decisions.of(logits, targets.to(self.device))

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

    def _measure_batch(self, images: Tensor, targets: Tensor, ablations: Sequence[Ablation]) -> _Batch:
        images = images.to(self.device, self.dtype, non_blocking=True)
        targets = targets.to(self.device, non_blocking=True)
        intact = self.intact(images, targets)
        if self._graph is not None:
            try:
                return self._measure_downstream(images, targets, ablations, _Batch.of(targets, intact))
            except Untraceable as reason:
                self._give_up_tracing(str(reason))
        batch = _Batch.of(targets, intact)
        for ablation in ablations:
            with self.weights.zeroed(ablation):
                batch.add(Decisions.of(self._whole(images), targets))
        return batch

    def _measure_downstream(
        self, images: Tensor, targets: Tensor, ablations: Sequence[Ablation], batch: _Batch
    ) -> _Batch:
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
        """Run the intact traced network, in the memory format that is faster where the network bears it."""
        assert self._graph is not None
        if self._channels_last and images.ndim == 4:
            try:
                return self._graph.run(images.contiguous(memory_format=torch.channels_last), keep)[1]
            except RuntimeError:  # a view that only the usual format allows
                self._channels_last = False
        return self._graph.run(images, keep)[1]

    def _plan(self, layers: tuple[str, ...]) -> Downstream:
        assert self._graph is not None
        if layers not in self._plans:
            self._plans[layers] = self._graph.downstream(layers)
        return self._plans[layers]

    def _measure_group(
        self, kept: _Kept, ablations: Sequence[Ablation], images: Tensor, targets: Tensor, batch: _Batch
    ) -> None:
        """Measure ablations of the same layers.

        In the first batch, the first ablation is also done naively, to see how far the two ways differ.
        """
        versions = kept.versions
        check = ablations[0].layers not in self._checked
        for ablation in ablations:
            with self.weights.zeroed(ablation):
                logits = self._rerun(kept, ablation)
                if check:
                    self._compare(logits, self._whole(images))
                    self._checked.add(ablation.layers)
                    check = False
                decisions = Decisions.of(logits, targets, self._tolerance)
                if bool(decisions.near.any()):
                    batch.num_rechecked += int(decisions.near.sum())
                    decisions = Decisions.of(self._whole(images), targets)
            batch.add(decisions)
        if kept.versions != versions:
            raise Untraceable("one of its operations writes into an activation that others read")

    def _compare(self, logits: Tensor, whole: Tensor) -> None:
        """Widen the margin under which a decision counts as near, from one ablation computed both ways."""
        difference = (whole - logits).abs().nan_to_num().max().item()
        rounding = 16 * torch.finfo(logits.dtype).eps * whole.abs().nan_to_num().max().item()
        self._largest_difference = max(self._largest_difference, difference)
        self._tolerance = max(self._tolerance, TIE_FACTOR * difference, rounding)

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
                channels = self._changed_channels(parts[step.layer])
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

    def _changed_channels(self, parts: Sequence[Part]) -> list[int] | None:
        """The output channels that change when the parts of one layer are zeroed; None for all of them."""
        channels: set[int] = set()
        for part in parts:
            some = self.weights.changed_channels(part)
            if some is None:
                return None
            channels.update(some)
        return sorted(channels)
