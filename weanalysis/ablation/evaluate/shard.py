"""A shard as pairs of an image and an ablation, many of which are computed at once, whatever their layers.

Screened: predict every pair, compute those at risk, and count what the others could hide. All that is drawn or fitted
on the way (the pilot, the law of errors, the threshold) comes from the shard and its ablations alone, so that a shard
gives the same answer whatever was measured before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from weanalysis.ablation.evaluate import risk as risks
from weanalysis.ablation.evaluate.decisions import Batch, Decisions, Measured, Screen, merge
from weanalysis.ablation.evaluate.pairs import Look, Pairs, margins_of
from weanalysis.ablation.graph import Untraceable, num_bytes, versions
from weanalysis.ablation.studies import Ablation
from weanalysis.results.store import METRICS

if TYPE_CHECKING:
    from weanalysis.ablation.evaluate.evaluator import Evaluator

# So many times a batch of pairs is computed at once. On a CPU that takes less memory than what is kept of the batch;
# a GPU needs more of them to be busy, and a batch that does not fit is halved.
_PAIRS_AT_ONCE = 4
_PAIRS_AT_ONCE_ON_GPU = 16

# What is computed tells more of the errors than the pilot did, which may ask for more pairs, or for fewer. So it is
# looked at again whenever there are three times as many, so often at the most; the last round computes all that is
# asked for. A round goes a little beyond what is wanted, so that the next one need not make up for a few pairs.
_MOST_ROUNDS, _GROWTH, _LESS_THAN_WANTED = 8, 2, 0.7

# How many of the computed pairs are computed the naive way too, in each shard.
_NUM_CHECKED = 8


@dataclass
class _Computed:
    """Pairs that were computed: (P,) each, in the order in which they were."""

    rows: list[np.ndarray] = field(default_factory=list)
    columns: list[np.ndarray] = field(default_factory=list)
    predictions: list[np.ndarray] = field(default_factory=list)
    correct: list[np.ndarray] = field(default_factory=list)
    margins: list[np.ndarray] = field(default_factory=list)

    def all(self, name: str, kind: type) -> np.ndarray:
        """One of the lists, joined."""
        return np.concatenate([np.empty(0, kind), *getattr(self, name)]).astype(kind)


@dataclass(frozen=True)
class _Predicted:
    """What is predicted of all pairs: margins (N,); their changes, the sizes of these, risk and flips (N, A).

    `first_errors` (P,) are those of the pairs that gave the sizes their units, in units that others gave.
    """

    margins: np.ndarray
    change: np.ndarray
    size: np.ndarray
    risk: np.ndarray
    flips: np.ndarray
    first_errors: np.ndarray = field(default_factory=lambda: np.empty(0))

    @cached_property
    def positive(self) -> np.ndarray:
        """Whether each margin is predicted to be positive, (N, A)."""
        return self.margins[:, None] + self.change > 0


class Shard:
    """Measures ablations of single layers on one shard: images (N, 3, H, W) and targets (N,), as they were given."""

    def __init__(self, evaluator: Evaluator, pairs: Pairs, images: Tensor, targets: Tensor, start: int):
        self._evaluator, self._pairs, self._start = evaluator, pairs, start
        size = evaluator.batch_size
        self._images = [images[low : low + size] for low in range(0, len(images), size)]
        self._targets = [targets[low : low + size] for low in range(0, len(images), size)]
        self._spans = [slice(low, min(low + size, len(images))) for low in range(0, len(images), size)]
        self._num_images = len(images)
        self._looks: list[Look | None] = []
        self._intact: list[Batch] = []
        self._num_rechecked = 0

    def _arrange(self, ablations: Sequence[Ablation]) -> None:
        """Give each ablation a column, layer by layer in the order of the forward pass."""
        self._names = names = self._pairs.in_order(dict.fromkeys(ablation.layers[0] for ablation in ablations))
        of_layer = {name: [p for p, a in enumerate(ablations) if a.layers[0] == name] for name in names}
        # Which ablation each column is.
        self._places = places = np.array([place for name in names for place in of_layer[name]], np.int64)
        ends = np.cumsum([len(of_layer[name]) for name in names]).tolist()
        self._groups = [
            (name, slice(end - len(of_layer[name]), end), tuple(ablations[p] for p in of_layer[name]))
            for name, end in zip(names, ends, strict=True)
        ]
        self._columns = [ablations[place] for place in places]
        # Which layer each column is of.
        self._layers = np.repeat(np.arange(len(names)), [len(of_layer[name]) for name in names])

    def measure(self, ablations: Sequence[Ablation]) -> Measured:
        """Compute all pairs; raise Untraceable where that cannot be."""
        self._arrange(ablations)
        computed = _Computed()
        for number in range(len(self._spans)):
            self._see(number, gradients=False)
        everything = np.ones((self._num_images, len(ablations)), bool)
        self._check(np.zeros(everything.shape))
        self._compute(everything, computed)
        return self._result(computed)

    def screen(self, ablations: Sequence[Ablation]) -> Measured:
        """Predict, compute what is at risk, and say what could be missed; raise Untraceable where that cannot be."""
        self._arrange(ablations)
        predicted = self._predict()
        rng = np.random.default_rng([self._start, len(ablations)])
        self._check(predicted.risk)

        computed = _Computed()
        done = risks.pilot(predicted.risk, rng)
        num_pilot = int(done.sum())
        self._compute(done, computed)
        predicted = self._weigh(computed, predicted, rng)
        chance, missed, expected = self._learn(computed, predicted)
        wanted = self._evaluator.screen.max_error
        for rounds_left in reversed(range(_MOST_ROUNDS)):
            likely = np.minimum(1.0, chance * (missed + risks.PRIOR) / (expected + risks.PRIOR))
            if not (risks.choose(likely, wanted) & ~done).any():
                break
            more = risks.choose(likely, _LESS_THAN_WANTED * wanted) & ~done
            if rounds_left:
                most = _GROWTH * int((done & ~predicted.flips).sum())
                more = risks.likeliest(likely, more, max(risks.LEAST_PILOT, most))
            self._compute(more, computed)
            done |= more
            chance, missed, expected = self._learn(computed, predicted)

        hidden = np.where(done, 0.0, chance)
        right = (predicted.margins > 0)[:, None]
        back = np.argsort(self._places)
        about = {
            "num_pairs": done.size, "num_pilot": num_pilot, "num_computed": int(done.sum()),
            "threshold": float(predicted.risk[~done].min(initial=np.inf)),
            "largest_chance": float(hidden.max(initial=0.0)),
        }  # fmt: skip
        measured = self._result(computed)
        measured.screen = Screen(
            done.sum(0)[back], (hidden * right).sum(0)[back], (hidden * ~right).sum(0)[back], missed[back],
            expected[back], about,
        )  # fmt: skip
        return measured

    def _see(self, number: int, gradients: bool) -> Look:
        """Look at a batch for the first time: the intact decisions; its activations are kept while there is room."""
        look, decisions = self._evaluator.look(
            self._images[number], self._targets[number], self._names, check=number == 0, gradients=gradients
        )
        self._intact.append(Batch.of(self._targets[number], decisions))
        kept = sum(num_bytes(one.values) for one in (*self._looks, look) if one is not None)
        self._looks.append(look if kept <= self._evaluator.kept_limit else None)
        return look

    def _predict(self) -> _Predicted:
        """Look at every batch once, and tell what each ablation would do to the margins."""
        num_columns = len(self._columns)
        margins = np.empty(self._num_images, np.float32)
        change, size = (np.empty((self._num_images, num_columns), np.float32) for _ in range(2))
        for number, span in enumerate(self._spans):
            look = self._see(number, gradients=True)
            margins[span] = look.margins.cpu().numpy()
            for name, columns, ablations in self._groups:
                predicted, norm = self._pairs.predict(look, name, ablations)
                change[span, columns] = predicted.cpu().numpy()
                size[span, columns] = norm.cpu().numpy()
            look.forget_predictions()
        return _Predicted(margins, change, size, *risks.risks(margins, change, size))

    def _check(self, risk: np.ndarray) -> None:
        """Compute some of the first batch's riskiest pairs both ways, in layers all over the network, before the rest.

        What is decided later hangs on the largest difference of logits that is seen here.
        """
        look, first = self._look(0), risk[self._spans[0]]
        for place in np.unique(np.linspace(0, len(self._groups) - 1, _NUM_CHECKED).astype(int)):
            name, columns, ablations = self._groups[place]
            row, column = np.unravel_index(int(np.argmin(first[:, columns])), first[:, columns].shape)
            rows, which = (torch.tensor([one], device=self._evaluator.device) for one in (row, column))
            logits = self._pairs.logits(look, [(name, ablations, rows, which)])
            self._evaluator.compare(logits, self._images[0][rows.cpu()], ablations[column])

    def _look(self, number: int) -> Look:
        """A batch's activations: those that were kept, or computed again."""
        kept = self._looks[number]
        if kept is not None:
            return kept
        return self._evaluator.look(self._images[number], self._targets[number], self._names, gradients=False)[0]

    def _compute(self, chosen: np.ndarray, computed: _Computed) -> None:
        """Compute the chosen pairs (N, A): by batches of images, many at once, in the order of the columns."""
        evaluator = self._evaluator
        on_cpu = evaluator.device.type == "cpu"
        at_once = (_PAIRS_AT_ONCE if on_cpu else _PAIRS_AT_ONCE_ON_GPU) * evaluator.batch_size
        for number, span in enumerate(self._spans):
            columns, rows = np.nonzero(chosen[span].T)
            look = self._look(number) if len(rows) else None
            for low in range(0, len(rows), at_once):
                assert look is not None
                self._compute_some(number, look, rows[low : low + at_once], columns[low : low + at_once], computed)

    def _compute_some(
        self, number: int, look: Look, some_rows: np.ndarray, columns: np.ndarray, computed: _Computed
    ) -> None:
        """Compute pairs of one batch exactly; those that hang on rounding the naive way."""
        evaluator = self._evaluator
        before = versions(look.values)
        rows = torch.from_numpy(some_rows).to(evaluator.device)
        pairs = []
        for name, span, ablations in self._groups:
            low, high = np.searchsorted(columns, (span.start, span.stop))
            if low < high:
                which = torch.from_numpy(columns[low:high] - span.start).to(evaluator.device)
                pairs.append((name, ablations, rows[low:high], which))
        logits = self._pairs.logits(look, pairs)
        if versions(look.values) != before:
            raise Untraceable("one of its operations writes into an activation that others read")
        targets = self._targets[number].to(evaluator.device)[rows]
        decisions = Decisions.of(logits, targets, evaluator.tolerance)
        margins = margins_of(logits, targets, evaluator.screen.metric)
        near = torch.nonzero(decisions.near)[:, 0]
        self._num_rechecked += len(near)
        for column in np.unique(columns[near.cpu().numpy()]):
            again = near[torch.from_numpy(columns[near.cpu().numpy()] == column).to(near.device)]
            whole = evaluator.naive_logits(self._images[number][rows[again].cpu()], self._columns[column])
            decided = Decisions.of(whole, targets[again])
            decisions.predictions[again] = decided.predictions
            decisions.correct[again] = decided.correct
            margins[again] = margins_of(whole, targets[again], evaluator.screen.metric)
        computed.rows.append(some_rows + self._spans[number].start)
        computed.columns.append(columns)
        computed.predictions.append(decisions.predictions.cpu().numpy())
        computed.correct.append(decisions.correct.cpu().numpy())
        computed.margins.append(margins.cpu().numpy())

    def _errors(self, computed: _Computed, predicted: _Predicted) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The errors of predictions towards 0 in units of their size, and their rows and columns: (P,) each.

        Where there was no prediction there is no error of it; answers that are no number are the largest errors.
        """
        rows, columns = computed.all("rows", int), computed.all("columns", int)
        size = predicted.size[rows, columns]
        margin = predicted.margins[rows] + predicted.change[rows, columns]
        known = np.isfinite(size) & (size > 0) & np.isfinite(margin)
        errors = -(computed.all("margins", float)[known] - margin[known]) * np.sign(margin[known]) / size[known]
        return np.nan_to_num(errors, nan=1e3, posinf=1e3, neginf=-1e3), rows[known], columns[known]

    def _weigh(self, computed: _Computed, predicted: _Predicted, rng: np.random.Generator) -> _Predicted:
        """Give the predictions of each layer, then of each ablation, then of each image their own unit of error.

        The nearer a layer is to the output, and the less an ablation changes, the smaller the errors are.
        """
        errors, rows, columns = self._errors(computed, predicted)
        groups = ((self._layers[columns], len(self._groups)), (columns, len(self._columns)), (rows, self._num_images))
        of_layers, of_ablations, of_images = risks.units_in_turn(errors, groups)
        unit = np.outer(of_images, of_layers[self._layers] * of_ablations).astype(np.float32)
        # Drawn for all pairs, since the order in which they were computed hangs on the batch size.
        parts = rng.integers(risks.NUM_PARTS, size=predicted.risk.shape, dtype=np.uint8)
        first = risks.in_units_of_others(errors, groups, parts[rows, columns])
        return replace(predicted, size=predicted.size * unit, risk=predicted.risk / unit, first_errors=first)

    def _learn(self, computed: _Computed, predicted: _Predicted) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The chance of each pair to flip unpredicted (N, A); how many of an ablation did, and by the laws should have.

        All from the pairs computed so far; the counts are (A,). A pair where nothing changes has no chance.
        """
        errors, rows, columns = self._errors(computed, predicted)
        errors[: len(predicted.first_errors)] = predicted.first_errors
        # Predicted flips are chosen by what is predicted of them, so that their errors are of another kind.
        alike = ~predicted.flips[rows, columns]
        laws = risks.ErrorLaws.fit(errors[alike], predicted.positive[rows, columns][alike])
        chance = laws.exceeds(predicted.risk, predicted.positive)
        rows, columns = computed.all("rows", int), computed.all("columns", int)
        bit = METRICS[self._evaluator.screen.metric]
        intact = np.concatenate([batch.correct for batch in self._intact])
        unpredicted = ~predicted.flips[rows, columns]
        missed = unpredicted & ((computed.all("correct", np.uint8) ^ intact[rows]) & bit).astype(bool)
        bands = risks.bands(predicted.risk, predicted.positive)
        factors = risks.factors(missed, chance[rows, columns] * unpredicted, bands[rows, columns])
        chance = np.minimum(1.0, chance * factors[bands])
        should = np.where(unpredicted, chance[rows, columns], 0.0)
        num_columns = len(self._columns)
        return chance, np.bincount(columns, missed, num_columns), np.bincount(columns, should, num_columns)

    def _result(self, computed: _Computed) -> Measured:
        rows, columns = computed.all("rows", np.int64), computed.all("columns", np.int64)
        predictions, correct = computed.all("predictions", np.int64), computed.all("correct", np.uint8)
        targets, intact, correct_before = (
            np.concatenate([getattr(batch, name) for batch in self._intact])
            for name in ("targets", "predictions", "correct")
        )
        shard = Batch(targets, intact, correct_before, num_rechecked=self._num_rechecked)
        changed = (predictions != shard.predictions[rows]) | (correct != shard.correct[rows])
        order = np.lexsort((rows, columns))
        order = order[changed[order]]
        bounds = np.searchsorted(columns[order], np.arange(len(self._columns) + 1))
        for column in np.argsort(self._places):
            part = order[bounds[column] : bounds[column + 1]]
            shard.changes.append((rows[part], predictions[part], correct[part]))
        return merge([shard], self._start)
