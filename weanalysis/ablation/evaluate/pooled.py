"""A shard as pairs of an image and an ablation, many of which are computed at once, whatever their layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from weanalysis.ablation.evaluate.checks import Checks
from weanalysis.ablation.evaluate.decisions import Batch, Decisions, Measured, merge_batches
from weanalysis.ablation.evaluate.exact import Shard
from weanalysis.ablation.evaluate.network import Network
from weanalysis.ablation.evaluate.pairs import IntactPass, Pairs
from weanalysis.ablation.graph import Untraceable, num_bytes, versions
from weanalysis.ablation.studies import Ablation
from weanalysis.tasks import find_metric

# So many times a batch of pairs is computed at once. On a CPU that takes less memory than what is kept of the batch;
# a GPU needs more of them to be busy, and a batch that does not fit is halved.
_PAIRS_AT_ONCE = 4
_PAIRS_AT_ONCE_ON_GPU = 16

# In each shard, so many images of one ablation in so many layers are decided the naive way too.
_LAYERS_CHECKED, _IMAGES_CHECKED = 8, 4

# Of the first batch, so many images' intact logits are computed both ways.
_NUM_COMPARED = 8


def measure_pooled(network: Network, shard: Shard, ablations: Sequence[Ablation], checks: Checks) -> Measured:
    """Compute all pairs of an image and an ablation, of all layers at once; for ablations of single layers.

    Some pairs are checked. Raises Unsure, and Untraceable where pairs cannot be computed.
    """
    paired = PairedShard(network, shard, ablations, checks, "top1")
    for number in range(len(shard.spans)):
        paired.run_intact(number, gradients=False)
    paired.compute(np.ones((len(shard.images), len(ablations)), bool))
    paired.check(np.random.default_rng([shard.start, len(ablations)]))
    return paired.result()


@dataclass
class Computed:
    """Pairs that were computed: (P,) each, in the order in which they were."""

    rows: list[np.ndarray] = field(default_factory=list)
    columns: list[np.ndarray] = field(default_factory=list)
    predictions: list[np.ndarray] = field(default_factory=list)
    correct: list[np.ndarray] = field(default_factory=list)
    margins: list[np.ndarray] = field(default_factory=list)
    second: list[np.ndarray] = field(default_factory=list)
    values: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, rows: np.ndarray, columns: np.ndarray, decisions: Decisions, margins: Tensor, second: Tensor) -> None:
        """Add pairs of images (their places in the shard) and columns, with what became of them."""
        self.rows.append(rows)
        self.columns.append(columns)
        self.predictions.append(decisions.predictions.cpu().numpy())
        self.correct.append(decisions.correct.cpu().numpy())
        self.margins.append(margins.cpu().numpy())
        self.second.append(second.cpu().numpy())
        for name, values in decisions.values.items():
            self.values.setdefault(name, []).append(values.cpu().numpy())

    def all(self, name: str, kind: type) -> np.ndarray:
        """One of the lists, joined."""
        return np.concatenate([np.empty(0, kind), *getattr(self, name)]).astype(kind)


@dataclass(frozen=True)
class Columns:
    """Ablations of single layers in the order in which they are computed: layer by layer, from the input on.

    `groups` has each layer's name, its columns and its ablations; `places` (A,) tells which of the ablations given a
    column is, `layers` (A,) of which group it is.
    """

    ablations: list[Ablation]
    groups: list[tuple[str, slice, tuple[Ablation, ...]]]
    places: np.ndarray
    layers: np.ndarray

    @classmethod
    def of(cls, pairs: Pairs, ablations: Sequence[Ablation]) -> Columns:
        """Give each ablation a column."""
        names = pairs.in_order(dict.fromkeys(ablation.layers[0] for ablation in ablations))
        of_layer = {name: [p for p, a in enumerate(ablations) if a.layers[0] == name] for name in names}
        places = np.array([place for name in names for place in of_layer[name]], np.int64)
        ends = np.cumsum([len(of_layer[name]) for name in names]).tolist()
        groups = [
            (name, slice(end - len(of_layer[name]), end), tuple(ablations[p] for p in of_layer[name]))
            for name, end in zip(names, ends, strict=True)
        ]
        layers = np.repeat(np.arange(len(names)), [len(of_layer[name]) for name in names])
        return cls([ablations[place] for place in places], groups, places, layers)

    @property
    def names(self) -> list[str]:
        """The layers' names, from the input on."""
        return [name for name, _, _ in self.groups]


class PairedShard:
    """A shard of images and ablations of single layers, whose pairs are computed some at a time: `computed` so far.

    `metric` is that whose margins are told of computed pairs.
    """

    def __init__(
        self, network: Network, shard: Shard, ablations: Sequence[Ablation], checks: Checks, metric: str
    ) -> None:
        assert network.pairs is not None
        self.network, self.shard, self.pairs, self._checks = network, shard, network.pairs, checks
        self.columns, self.computed = Columns.of(network.pairs, ablations), Computed()
        self._metric = find_metric(metric)
        self._passes: list[IntactPass | None] = []
        self._intact: list[Batch] = []
        self._num_rechecked = 0

    def run_intact(self, number: int, gradients: bool) -> IntactPass:
        """Run the next batch for the first time: the intact decisions; its activations are kept while there is room."""
        network, checks, targets = self.network, self._checks, self.shard.targets[self.shard.spans[number]]
        images = network.placed(self.shard.images[self.shard.spans[number]])
        targets = targets.to(network.device, non_blocking=True)
        seen, logits = network.run_intact(images, targets, self.columns.names, self._metric.name, gradients)
        if number == 0:
            whole = network.whole(images[:_NUM_COMPARED])
            checks.compare(logits[:_NUM_COMPARED], whole, tuple(self.columns.names))
        decisions = network.decide(logits, targets, checks.tolerance)
        if bool(decisions.near.any()):
            near = decisions.near
            decisions.replace(near, network.decide(network.whole(images[near]), targets[near]))
        self._intact.append(Batch.of(targets, decisions))
        kept = sum(num_bytes(one.values) for one in (*self._passes, seen) if one is not None)
        self._passes.append(seen if kept <= self.shard.most_kept_bytes else None)
        return seen

    def run_again(self, number: int, gradients: bool) -> IntactPass:
        """Run a batch whose decisions are known, or of no interest."""
        span, network = self.shard.spans[number], self.network
        images, targets = network.placed(self.shard.images[span]), self.shard.targets[span].to(network.device)
        return network.run_intact(images, targets, self.columns.names, self._metric.name, gradients)[0]

    def compute(self, chosen: np.ndarray) -> None:
        """Compute the chosen pairs (N, A): by batches of images, many at once, in the order of the columns."""
        on_cpu = self.network.device.type == "cpu"
        at_once = (_PAIRS_AT_ONCE if on_cpu else _PAIRS_AT_ONCE_ON_GPU) * self.shard.batch_size
        for number, span in enumerate(self.shard.spans):
            columns, rows = np.nonzero(chosen[span].T)
            if not len(rows):
                continue
            seen = self._passes[number] or self.run_again(number, gradients=False)
            for low in range(0, len(rows), at_once):
                self._compute_some(number, seen, rows[low : low + at_once], columns[low : low + at_once])

    def _compute_some(self, number: int, seen: IntactPass, some_rows: np.ndarray, columns: np.ndarray) -> None:
        """Compute pairs of one batch exactly; those that hang on rounding the naive way."""
        network, span = self.network, self.shard.spans[number]
        before = versions(seen.values)
        rows = torch.from_numpy(some_rows).to(network.device)
        pairs = []
        for name, group, ablations in self.columns.groups:
            low, high = np.searchsorted(columns, (group.start, group.stop))
            if low < high:
                which = torch.from_numpy(columns[low:high] - group.start).to(network.device)
                pairs.append((name, ablations, rows[low:high], which))
        logits = self.pairs.logits(seen, pairs)
        if versions(seen.values) != before:
            raise Untraceable("one of its operations writes into an activation that others read")
        targets = self.shard.targets[span].to(network.device)[rows]
        decisions = network.decide(logits, targets, self._checks.tolerance)
        rivals = seen.rivals.rows(rows)
        margins, second = rivals.margins(logits, targets)
        near = torch.nonzero(decisions.near)[:, 0]
        self._num_rechecked += len(near)
        for column in np.unique(columns[near.cpu().numpy()]):
            again = near[torch.from_numpy(columns[near.cpu().numpy()] == column).to(near.device)]
            images = network.placed(self.shard.images[span][rows[again].cpu()])
            whole = network.naive(images, self.columns.ablations[column])
            decisions.replace(again, network.decide(whole, targets[again]))
            margins[again], second[again] = rivals.rows(again).margins(whole, targets[again])
        self.computed.add(some_rows + span.start, columns, decisions, margins, second)
        self._offer(number, some_rows, columns, logits, decisions)

    def _offer(self, number: int, rows: np.ndarray, columns: np.ndarray, logits: Tensor, decisions: Decisions) -> None:
        """Offer computed pairs of one ablation to be measured once more: of one that changed an answer, if any did."""
        if self._checks.sampler.is_done:
            return
        span, intact = self.shard.spans[number], self._intact[number]
        changed = decisions.predictions.cpu().numpy() != intact.predictions[rows]
        changed |= decisions.correct.cpu().numpy() != intact.correct[rows]
        column = columns[int(changed.argmax())]  # the first one where none is
        mine = np.flatnonzero(columns == column)
        index = torch.from_numpy(mine).to(logits.device)
        self._checks.sampler.offer(
            self.columns.ablations[column],
            (self.shard.start + span.start, span.stop - span.start, len(rows)),
            rows[mine],
            logits[index],
            decisions.of_rows(index),
            np.flatnonzero(changed[mine]),
        )

    def check(self, rng: np.random.Generator) -> None:
        """Decide some of the computed pairs the naive way too: of layers drawn by lot, images of one ablation each."""
        computed, network = self.computed, self.network
        rows, columns = computed.all("rows", int), computed.all("columns", int)
        predictions, correct = computed.all("predictions", np.int64), computed.all("correct", np.uint8)
        layers = self.columns.layers[columns]
        present = np.unique(layers)
        for layer in rng.choice(present, min(_LAYERS_CHECKED, len(present)), replace=False):
            column = columns[rng.choice(np.flatnonzero(layers == layer))]
            some = rng.permutation(np.flatnonzero(columns == column))[:_IMAGES_CHECKED]
            images, targets = (given[torch.from_numpy(rows[some])] for given in (self.shard.images, self.shard.targets))
            ablation = self.columns.ablations[column]
            naive = network.decide(network.naive(network.placed(images), ablation), targets.to(network.device))
            differs = naive.predictions.cpu().numpy() != predictions[some]
            self._checks.count(differs | (naive.correct.cpu().numpy() != correct[some]), ablation)

    def intact_right(self) -> np.ndarray:
        """Whether each image is right when intact, in the metric, (N,)."""
        return self._metric.right(np.concatenate([batch.correct for batch in self._intact]))

    def flipped(self) -> np.ndarray:
        """Whether the correctness of each computed pair changed, (P,)."""
        right = self._metric.right(self.computed.all("correct", np.uint8))
        return right != self.intact_right()[self.computed.all("rows", int)]

    def result(self) -> Measured:
        """What the computed pairs changed, ablation by ablation as they were given; others changed nothing."""
        computed, num_columns, places = self.computed, len(self.columns.ablations), self.columns.places
        rows, columns = computed.all("rows", np.int64), computed.all("columns", np.int64)
        predictions, correct = computed.all("predictions", np.int64), computed.all("correct", np.uint8)
        targets, intact, before = (
            np.concatenate([getattr(batch, name) for batch in self._intact])
            for name in ("targets", "predictions", "correct")
        )
        changed = (predictions != intact[rows]) | (correct != before[rows])
        order = np.lexsort((rows, columns))
        order = order[changed[order]]
        bounds = np.searchsorted(columns[order], np.arange(num_columns + 1))
        parts = [order[bounds[column] : bounds[column + 1]] for column in np.argsort(places)]
        changes = [(rows[part], predictions[part], correct[part]) for part in parts]
        values: dict[str, np.ndarray] = {}
        new_values: list[dict[str, np.ndarray]] = []
        if len(rows) == len(self.shard.images) * num_columns:
            new_values = [{} for _ in places]
            for name, of_pairs in computed.values.items():
                values[name] = np.concatenate([batch.values[name] for batch in self._intact])
                new = np.empty((num_columns, len(self.shard.images)), np.float32)
                new[places[columns], rows] = np.concatenate(of_pairs)
                for each, row in zip(new_values, new, strict=True):
                    each[name] = row
        shard = Batch(targets, intact, before, values, changes, new_values, self._num_rechecked)
        return merge_batches([shard], self.shard.start)
