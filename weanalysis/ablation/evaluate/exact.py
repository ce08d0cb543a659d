"""Batch by batch: the naive way, and the exact one, which computes again what lies downstream of the zeroed weights.

The images of a shard come in batches. Of each, the intact network's answers are computed once; then each ablation's
answers, by the whole network (naive) or, from the activations that were kept, by what lies downstream (exact).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from torch import Tensor

from weanalysis.ablation.evaluate.checks import Checks, unsure_where_it_fails
from weanalysis.ablation.evaluate.decisions import Batch, Decisions, Measured, merge_batches
from weanalysis.ablation.evaluate.network import Network
from weanalysis.ablation.evaluate.twin import Kept
from weanalysis.ablation.graph import Untraceable, versions
from weanalysis.ablation.studies import Ablation


@dataclass(frozen=True)
class Shard:
    """The images `start` … of a data set, (N, 3, H, W) and (N,), to be measured in batches of `batch_size`.

    Of the shard's activations as many as `most_kept_bytes` may be kept.
    """

    images: Tensor
    targets: Tensor
    start: int
    batch_size: int
    most_kept_bytes: int

    @property
    def spans(self) -> list[slice]:
        """Which images each batch has."""
        lows = range(0, len(self.images), self.batch_size)
        return [slice(low, min(low + self.batch_size, len(self.images))) for low in lows]

    def batches(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Images, targets, and the place of the first one in the data set, batch by batch."""
        for span in self.spans:
            yield self.images[span], self.targets[span], self.start + span.start


def measure_naive(network: Network, shard: Shard, ablations: Sequence[Ablation], checks: Checks) -> Measured:
    """Zero the weights and run the whole network, for each batch and ablation."""
    batches = []
    for images, targets, start in shard.batches():
        images, targets = network.placed(images), targets.to(network.device, non_blocking=True)
        batch = Batch.of(network.task.kept_classes(targets), network.intact(images, targets, start))
        for ablation in ablations:
            logits = network.naive(images, ablation, start)
            decisions = network.decide(logits, targets)
            batch.add(decisions)
            _offer(checks, ablation, start, logits, decisions, batch)
        batches.append(batch)
    return merge_batches(batches, shard.start)


def measure_exact(network: Network, shard: Shard, ablations: Sequence[Ablation], checks: Checks) -> Measured:
    """Compute again, for each batch and ablation, what lies downstream of the zeroed weights.

    For each group of ablations of the same layers one of them is checked, in a batch drawn by lot. Those of layers in
    which the twin is not believed are measured the naive way. Raises Unsure, and Untraceable.
    """
    lows = range(0, len(shard.images), shard.batch_size)
    rng = np.random.default_rng([shard.start, len(ablations)])
    drawn = {(int(rng.integers(low, high)), int(rng.choice(lows))) for low, high in _groups(ablations)}
    batches = []
    for low, (images, targets, start) in zip(lows, shard.batches(), strict=True):
        images, targets = network.placed(images), targets.to(network.device, non_blocking=True)
        exact = _ExactBatch(network, checks, images, targets, start)
        batches.append(exact.measure(ablations, {place for place, at in drawn if at == low}))
    return merge_batches(batches, shard.start)


class _ExactBatch:
    """One batch of placed images, the `start`-th … of the data set, and what ablations change among them."""

    def __init__(self, network: Network, checks: Checks, images: Tensor, targets: Tensor, start: int):
        self._network, self._checks = network, checks
        self._images, self._targets, self._start = images, targets, start
        self._batch = Batch.of(network.task.kept_classes(targets), network.intact(images, targets, start))

    def measure(self, ablations: Sequence[Ablation], checked: set[int]) -> Batch:
        """Measure ablations; those at the places `checked` both ways."""
        network, twin, images = self._network, self._network.twin, self._images
        spans = _groups(ablations)
        plans = [
            twin.plan(ablations[low].layers) if twin and network.is_fast(ablations[low].layers) else None
            for low, _ in spans
        ]
        # From the last group to the first: what each group and all later ones read, so that values are let go early.
        still_read: list[frozenset] = [frozenset()]
        for plan in reversed(plans):
            still_read.append(still_read[-1] | plan.frontier if plan else still_read[-1])
        needed = still_read.pop()
        values = twin.values(images, needed) if twin and any(plans) else {}
        for plan, (low, high) in zip(plans, spans, strict=True):
            if plan is None:
                for ablation in ablations[low:high]:
                    naive = network.naive(images, ablation, self._start)
                    decisions = network.decide(naive, self._targets)
                    self._batch.add(decisions)
                    _offer(self._checks, ablation, self._start, naive, decisions, self._batch)
            else:
                assert twin is not None
                with unsure_where_it_fails(ablations[low].layers):
                    kept = twin.keep(plan, values)
                self._measure_group(
                    kept, ablations[low:high], {place - low for place in checked if low <= place < high}
                )
            needed = still_read.pop()
            values = {node: value for node, value in values.items() if node in needed}
        return self._batch

    def _measure_group(self, kept: Kept, ablations: Sequence[Ablation], checked: set[int]) -> None:
        """Measure ablations of the same layers from what was kept for them; those at the places `checked` both ways."""
        network, checks, twin = self._network, self._checks, self._network.twin
        assert twin is not None
        before = versions(kept.frontier)
        for place, ablation in enumerate(ablations):
            whole = None
            with network.zeroed(ablation):
                with unsure_where_it_fails(ablation.layers):
                    logits = twin.rerun(kept, ablation, network.weights)
                decisions = network.decide(logits, self._targets, checks.tolerance)
                num_near = int(decisions.near.sum())
                if place in checked or (num_near and network.task.has_classes):
                    whole = network.whole(self._images)
                elif num_near:
                    self._decide_near(decisions)
            if whole is not None:
                naive = network.decide(whole, self._targets)
                if num_near:
                    decisions = self._with_near(decisions, naive)
                if place in checked:
                    checks.compare_answers(logits, whole, ablation, decisions, naive)
            self._batch.add(decisions, num_near)
            if place in checked:
                _offer(checks, ablation, self._start, logits, decisions, self._batch)
        if versions(kept.frontier) != before:
            raise Untraceable("one of its operations writes into an activation that others read")

    def _decide_near(self, decisions: Decisions) -> None:
        """Decide the images that are near by the whole network, of these alone: one in each batch is, of masks."""
        (rows,) = decisions.near.nonzero(as_tuple=True)
        whole = self._network.whole(self._images[rows])
        decisions.replace(rows, self._network.decide(whole, self._targets[rows]))

    def _with_near(self, decisions: Decisions, naive: Decisions) -> Decisions:
        """What was decided, where some images are near: all the naive way, of masks those that are."""
        if self._network.task.has_classes:
            return naive
        (rows,) = decisions.near.nonzero(as_tuple=True)
        decisions.replace(rows, naive.of_rows(rows))
        return decisions


def _offer(checks: Checks, ablation: Ablation, start: int, logits: Tensor, decisions: Decisions, batch: Batch) -> None:
    """Offer what was added last to a batch to be measured once more."""
    if checks.sampler.is_done:
        return
    changed = batch.changes[-1][0]
    if batch.pixel_changes:
        changed = np.union1d(changed, batch.pixel_changes[-1][0])
    size = len(logits)
    checks.sampler.offer(ablation, (start, size, size), np.arange(size), logits, decisions, changed)


def _groups(ablations: Sequence[Ablation]) -> list[tuple[int, int]]:
    """Where ablations of the same layers that follow one another begin and end."""
    sizes = [len(list(members)) for _, members in groupby(ablations, lambda one: one.layers)]
    ends = np.cumsum(sizes).tolist()
    return [(end - size, end) for size, end in zip(sizes, ends, strict=True)]
