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
from torch import Tensor, fx

from weanalysis.ablation.evaluate import lot as lots
from weanalysis.ablation.evaluate import risk as risks
from weanalysis.ablation.evaluate.decisions import Batch, Measured, Screen, merge_batches
from weanalysis.ablation.evaluate.pairs import Look, Pairs
from weanalysis.ablation.graph import Untraceable, num_bytes, versions
from weanalysis.ablation.studies import Ablation
from weanalysis.results.store import SCREENED
from weanalysis.tasks import find_metric

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

# The usual gradient of a channel is learned from so many images: each has a label and a rival of its own.
_FOR_USUAL_SLOPES = 32

# Under which names the two margins of computed pairs are kept.
_MARGINS = ("margins", "second")

# In each shard, so many images of one ablation in so many layers are decided the naive way too.
_LAYERS_CHECKED, _IMAGES_CHECKED = 8, 4


@dataclass
class _Computed:
    """Pairs that were computed: (P,) each, in the order in which they were."""

    rows: list[np.ndarray] = field(default_factory=list)
    columns: list[np.ndarray] = field(default_factory=list)
    predictions: list[np.ndarray] = field(default_factory=list)
    correct: list[np.ndarray] = field(default_factory=list)
    margins: list[np.ndarray] = field(default_factory=list)
    second: list[np.ndarray] = field(default_factory=list)
    values: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def all(self, name: str, kind: type) -> np.ndarray:
        """One of the lists, joined."""
        return np.concatenate([np.empty(0, kind), *getattr(self, name)]).astype(kind)


@dataclass(frozen=True)
class _Forecast:
    """What is predicted of a margin of all pairs: what it becomes, (N, A) or (N, 1); size and risk, (N, A).

    `first_errors` (P,) are those of the pairs that gave the sizes their units, in units that others gave.
    """

    after: np.ndarray
    size: np.ndarray
    risk: np.ndarray
    first_errors: np.ndarray = field(default_factory=lambda: np.empty(0))

    def errors(self, margins: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The errors towards 0 in units of their size, given what became of pairs (P,); and which pairs have one.

        Where there was no prediction there is no error of it; answers that are no number are the largest errors.
        """
        size, after = self.size[rows, columns], self.after[rows, columns if self.after.shape[1] > 1 else 0]
        known = np.isfinite(size) & (size > 0) & np.isfinite(after)
        errors = -(margins[known] - after[known]) * np.sign(after[known]) / size[known]
        return np.nan_to_num(errors, nan=1e3, posinf=1e3, neginf=-1e3), known


@dataclass(frozen=True)
class _Predicted:
    """What is predicted of all pairs: margins (N,), whether a pair flips (N, A); of the first margin, and the second.

    The second margin is that to all classes that no prediction is made of, so that it is predicted to stay.
    """

    margins: np.ndarray
    flips: np.ndarray
    forecasts: tuple[_Forecast, _Forecast]

    @cached_property
    def risk(self) -> np.ndarray:
        """The smaller risk of each pair, (N, A); 0 where it is predicted to flip, infinite where it cannot."""
        return np.minimum(self.forecasts[0].risk, self.forecasts[1].risk)

    @cached_property
    def positive(self) -> np.ndarray:
        """Whether each margin is predicted to be positive, (N, A)."""
        return self.forecasts[0].after > 0

    @cached_property
    def bands(self) -> np.ndarray:
        """The octave of risk in which each pair lies, (N, A)."""
        return risks.bands(self.risk, self.positive)


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
        self._metric = find_metric(evaluator.screen.metric)

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
        self._compute(np.ones((self._num_images, len(ablations)), bool), computed)
        self._check(computed, np.random.default_rng([self._start, len(ablations)]))
        return self._result(computed)

    def screen(self, ablations: Sequence[Ablation]) -> Measured:
        """Predict, compute what is at risk, and say what could be missed; raise Untraceable where that cannot be."""
        self._arrange(ablations)
        predicted = self._predict()
        rng = np.random.default_rng([self._start, len(ablations)])

        computed = _Computed()
        done = risks.pilot(predicted.risk, self._layers, rng)
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

        lot, distrusted = self._cast_lots(done, chance, computed, predicted, rng)
        self._check(computed, rng)
        chance, missed, expected = self._learn(computed, predicted)
        hidden = np.where(done, 0.0, chance)
        right = (predicted.margins > 0)[:, None]
        back = np.argsort(self._places)
        about = {
            "num_pairs": done.size,
            "num_pilot": num_pilot,
            "num_computed": int(done.sum()),
            "threshold": float(predicted.risk[~done].min(initial=np.inf)),
            "largest_chance": float(hidden.max(initial=0.0)),
            "distrusted": distrusted,
        }
        measured = self._result(computed)
        may_lose, may_gain = (hidden * right).sum(0), (hidden * ~right).sum(0)
        kept = (done.sum(0), may_lose, may_gain, missed, expected, *lot)
        measured.screen = Screen(**{name: each[back] for name, each in zip(SCREENED, kept, strict=True)}, about=about)
        return measured

    def _cast_lots(
        self,
        done: np.ndarray,
        chance: np.ndarray,
        computed: _Computed,
        predicted: _Predicted,
        rng: np.random.Generator,
    ) -> tuple[tuple[np.ndarray, ...], list[str]]:
        """Compute pairs drawn by lot from those that are left, and all of a layer whose predictions they contradict.

        Returns what the lot showed, (A,) each (`Screen`), and the layers. What is computed is then `done`.
        """
        # A pair of which nothing changes cannot flip, whatever the network.
        left = ~done & np.isfinite(predicted.risk)
        drawn = lots.draw(left, self._layers, lots.size(left.size, len(self._groups)), rng)
        before = len(computed.all("rows", int))
        self._compute(drawn, computed)
        done |= drawn
        rows, columns = (computed.all(name, int)[before:] for name in ("rows", "columns"))
        flipped = self._flipped(computed)[before:]
        right = self._intact_right()[rows]
        num_columns, num_layers = len(self._columns), len(self._groups)
        lost, gained = (np.bincount(columns, flipped & side, num_columns) for side in (right, ~right))
        should = np.bincount(columns, chance[rows, columns], num_columns)
        distrusted = lots.contradicted(
            np.bincount(self._layers, lost + gained, num_layers), np.bincount(self._layers, should, num_layers)
        )
        rest = left & ~drawn & distrusted[self._layers]
        self._compute(rest, computed)
        done |= rest
        left &= ~rest
        names = [name for (name, _, _), bad in zip(self._groups, distrusted, strict=True) if bad]
        return ((left & ~drawn).sum(0), drawn.sum(0), lost, gained, should), names

    def _intact_right(self) -> np.ndarray:
        """Whether each image is right when intact, in the metric that is screened for, (N,)."""
        return self._metric.right(np.concatenate([batch.correct for batch in self._intact]))

    def _flipped(self, computed: _Computed) -> np.ndarray:
        """Whether the correctness of each computed pair changed, (P,)."""
        return self._metric.right(computed.all("correct", np.uint8)) != self._intact_right()[computed.all("rows", int)]

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
        shape = self._num_images, len(self._columns)
        margins, second = np.empty((2, self._num_images), np.float32)
        change, size, of_any = np.empty((3, *shape), np.float32)
        first, usual = self._usual_slopes()
        for number, span in enumerate(self._spans):
            look = self._see(number, True) if first is None or number else first
            margins[span], second[span] = look.margins.cpu().numpy(), look.second.cpu().numpy()
            for name, columns, ablations in self._groups:
                told = self._pairs.predict(look, name, ablations, usual[self._pairs.end(name)])
                for found, each in zip((change, size, of_any), told, strict=True):
                    found[span, columns] = each.cpu().numpy()
            look.forget_predictions()
        risk, flips = risks.risks(margins, change, size)
        others = _Forecast(second[:, None], of_any, risks.risks_of_others(second, of_any))
        return _Predicted(margins, flips, (_Forecast(margins[:, None] + change, size, risk), others))

    def _usual_slopes(self) -> tuple[Look | None, dict[fx.Node, Tensor]]:
        """The mean square of each channel's gradient, (C,), over the shard's first images.

        Their batch comes along where it holds all of them, so that it need not be looked at again.
        """
        wanted = min(_FOR_USUAL_SLOPES, self._num_images)
        totals: dict[fx.Node, Tensor] = {}
        first = None
        for number, span in enumerate(self._spans):
            if span.start >= wanted:
                break
            alone = span.start == 0 and span.stop >= wanted
            look = self._see(0, True) if alone else self._again(number, True)
            for node, squares in look.squares(wanted - span.start).items():
                totals[node] = totals.get(node, 0) + squares / wanted
            first = look if alone else None
        return first, totals

    def _check(self, computed: _Computed, rng: np.random.Generator) -> None:
        """Decide some of the computed pairs the naive way too: of layers drawn by lot, images of one ablation each."""
        rows, columns = computed.all("rows", int), computed.all("columns", int)
        predictions, correct = computed.all("predictions", np.int64), computed.all("correct", np.uint8)
        layers, size = self._layers[columns], len(self._images[0])
        present = np.unique(layers)
        for layer in rng.choice(present, min(_LAYERS_CHECKED, len(present)), replace=False):
            column = columns[rng.choice(np.flatnonzero(layers == layer))]
            some = rng.permutation(np.flatnonzero(columns == column))[:_IMAGES_CHECKED]
            images, targets = (
                torch.stack([parts[row // size][row % size] for row in rows[some]])
                for parts in (self._images, self._targets)
            )
            self._evaluator.check(images, targets, self._columns[column], predictions[some], correct[some])

    def _look(self, number: int) -> Look:
        """A batch's activations: those that were kept, or computed again."""
        return self._looks[number] or self._again(number, gradients=False)

    def _again(self, number: int, gradients: bool) -> Look:
        """Look at a batch whose decisions are known, or of no interest."""
        return self._evaluator.look(self._images[number], self._targets[number], self._names, gradients=gradients)[0]

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
        decisions = evaluator.decide(logits, targets, evaluator.tolerance)
        rivals = look.rivals.rows(rows)
        margins, second = rivals.margins(logits, targets)
        near = torch.nonzero(decisions.near)[:, 0]
        self._num_rechecked += len(near)
        for column in np.unique(columns[near.cpu().numpy()]):
            again = near[torch.from_numpy(columns[near.cpu().numpy()] == column).to(near.device)]
            whole = evaluator.naive_logits(self._images[number][rows[again].cpu()], self._columns[column])
            decisions.replace(again, evaluator.decide(whole, targets[again]))
            margins[again], second[again] = rivals.rows(again).margins(whole, targets[again])
        computed.rows.append(some_rows + self._spans[number].start)
        computed.columns.append(columns)
        computed.predictions.append(decisions.predictions.cpu().numpy())
        computed.correct.append(decisions.correct.cpu().numpy())
        computed.margins.append(margins.cpu().numpy())
        computed.second.append(second.cpu().numpy())
        for name, values in decisions.values.items():
            computed.values.setdefault(name, []).append(values.cpu().numpy())

    def _weigh(self, computed: _Computed, predicted: _Predicted, rng: np.random.Generator) -> _Predicted:
        """Give the predictions of each layer, then of each ablation, then of each image their own unit of error.

        The nearer a layer is to the output, and the less an ablation changes, the smaller the errors are.
        """
        rows, columns = computed.all("rows", int), computed.all("columns", int)
        # Drawn for all pairs, since the order in which they were computed hangs on the batch size.
        parts = rng.integers(risks.NUM_PARTS, size=predicted.risk.shape, dtype=np.uint8)[rows, columns]
        weighed = []
        for forecast, name in zip(predicted.forecasts, _MARGINS, strict=True):
            errors, known = forecast.errors(computed.all(name, float), rows, columns)
            row, column = rows[known], columns[known]
            groups = ((self._layers[column], len(self._groups)), (column, len(self._columns)), (row, self._num_images))
            of_layers, of_ablations, of_images = risks.units_in_turn(errors, groups)
            unit = np.outer(of_images, of_layers[self._layers] * of_ablations).astype(np.float32)
            first = risks.in_units_of_others(errors, groups, parts[known])
            weighed.append(_Forecast(forecast.after, forecast.size * unit, forecast.risk / unit, first))
        return replace(predicted, forecasts=(weighed[0], weighed[1]))

    def _learn(self, computed: _Computed, predicted: _Predicted) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The chance of each pair to flip unpredicted (N, A); how many of an ablation did, and by the laws should have.

        All from the pairs computed so far; the counts are (A,). A pair where nothing changes has no chance.
        """
        rows, columns = computed.all("rows", int), computed.all("columns", int)
        unpredicted = ~predicted.flips[rows, columns]
        chance = np.zeros(predicted.flips.shape, np.float32)
        for forecast, name in zip(predicted.forecasts, _MARGINS, strict=True):
            errors, known = forecast.errors(computed.all(name, float), rows, columns)
            errors[: len(forecast.first_errors)] = forecast.first_errors
            # Predicted flips are chosen by what is predicted of them, so that their errors are of another kind.
            alike = unpredicted[known]
            laws = risks.ErrorLaws.fit(errors[alike], predicted.positive[rows, columns][known][alike])
            chance += laws.exceeds(forecast.risk, predicted.positive)
        chance = np.minimum(1.0, chance)
        missed = unpredicted & self._flipped(computed)
        bands = predicted.bands
        factors = risks.factors(missed, chance[rows, columns] * unpredicted, bands[rows, columns])
        chance = np.minimum(1.0, chance * factors[bands])
        should = np.where(unpredicted, chance[rows, columns], 0.0)
        num_columns = len(self._columns)
        return chance, np.bincount(columns, missed, num_columns), np.bincount(columns, should, num_columns)

    def _result(self, computed: _Computed) -> Measured:
        rows, columns = computed.all("rows", np.int64), computed.all("columns", np.int64)
        predictions, correct = computed.all("predictions", np.int64), computed.all("correct", np.uint8)
        targets, intact, before = (
            np.concatenate([getattr(batch, name) for batch in self._intact])
            for name in ("targets", "predictions", "correct")
        )
        shard = Batch(targets, intact, before, num_rechecked=self._num_rechecked)
        changed = (predictions != shard.predictions[rows]) | (correct != shard.correct[rows])
        order = np.lexsort((rows, columns))
        order = order[changed[order]]
        bounds = np.searchsorted(columns[order], np.arange(len(self._columns) + 1))
        for column in np.argsort(self._places):
            part = order[bounds[column] : bounds[column + 1]]
            shard.changes.append((rows[part], predictions[part], correct[part]))
        if len(rows) == self._num_images * len(self._columns):
            shard.new_values = [{} for _ in self._columns]
            for name, values in computed.values.items():
                shard.values[name] = np.concatenate([batch.values[name] for batch in self._intact])
                new = np.empty((len(self._columns), self._num_images), np.float32)
                new[self._places[columns], rows] = np.concatenate(values)
                for each, row in zip(shard.new_values, new, strict=True):
                    each[name] = row
        return merge_batches([shard], self._start)
