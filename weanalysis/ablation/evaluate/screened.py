"""Screened: predict every pair of an image and an ablation, compute those at risk, count what the others could hide.

All that is drawn or fitted on the way (the pilot, the law of errors, the threshold) comes from the shard and its
ablations alone, so that a shard gives the same answer whatever was measured before it.

By hand, for three images of one pixel and two kernels. A convolution reads the channels (x1, x2) with the weights
(1, -1), a ReLU follows, and of two classes the first one's logit is 0.5 a - 0.2 for the activation a, the other's 0.

    image  (x1, x2)  label  a  margin m  gradient g of m at a
    A      (3, 1)    0      2   0.8       0.5                    right, since m > 0
    B      (1, 2)    0      0  -0.2       0.5                    wrong
    C      (2, 1)    1      1  -0.3      -0.5                    wrong

1. Predict. Without the first kernel the ReLU's input is -x2, without the second x1: what a becomes is known exactly for
   every pair, from one pass over the images. The margin's change is that of a, times g, from one backward pass.

    pair   a after  change of a  change of m  m after
    A, 1   0        -2           -1.0         -0.2     flips: a right answer is lost
    B, 1   0         0            0.0         -0.2     cannot flip, since nothing changes
    C, 1   0        -1            0.5          0.2     flips: a wrong answer becomes right
    A, 2   3         1            0.5          1.3
    B, 2   1         1            0.5          0.3     flips
    C, 2   2         1           -0.5         -0.8

   Here that is exact, since all behind the ReLU is linear. In a network it is a slope, and wrong by some error.

2. Weigh. An error is told in units of the change's size: (g^2 + u^2 / 4)^(1/2) times the change of a, where u^2 is g^2
   on average over images, 0.25, and a little more (`pairs`): 0.56 times the change here. The risk of a pair is how many
   units of error make it cross 0: |m after| / size, which is 2.30 for (A, 2) and 1.42 for (C, 2). A pair that is
   predicted to flip has risk 0, and is computed whatever its size. One in which nothing changes has an infinite one.

3. Learn. The pairs that were computed show how often an error exceeds so many units: a pilot, then round by round.
   Say that it exceeds 1.42 units in 4 of 100 pairs, and 2.30 in 1 of 100.

4. Choose. Of the pairs that are left the likeliest to flip unseen are computed until what may be missed is within the
   error of D that is wanted: (C, 2) may be, and (A, 2) left out. Its chance of 0.01 is what the shard may hide of the
   second kernel: `may_lose` 0.01 images, as A is right. D of the first kernel hides nothing.

5. Draw. Pairs are drawn by lot from those that are left and computed too, whatever was predicted of them: what flips
   among these bounds what is hidden without trust in any of this, and a layer in which more flip than should is
   computed as a whole.

What was computed is exact; a pair that was not stays as it is when intact. In step 1 the change to the rival class of
now is predicted. Of a third class that the ablation may lift only the label's part of the change is (`risk`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from torch import Tensor, fx

from weanalysis.ablation.evaluate import lot as lots
from weanalysis.ablation.evaluate import risk as risks
from weanalysis.ablation.evaluate.checks import Checks
from weanalysis.ablation.evaluate.decisions import Measured, Screen
from weanalysis.ablation.evaluate.exact import Shard
from weanalysis.ablation.evaluate.network import Network
from weanalysis.ablation.evaluate.pairs import IntactPass
from weanalysis.ablation.evaluate.pooled import PairedShard
from weanalysis.ablation.evaluate.risk import ScreenSettings
from weanalysis.ablation.studies import Ablation
from weanalysis.results.store import SCREENED

# What is computed tells more of the errors than the pilot did, which may ask for more pairs, or for fewer. So it is
# looked at again whenever there are three times as many, so often at the most; the last round computes all that is
# asked for. A round goes a little beyond what is wanted, so that the next one need not make up for a few pairs.
_MOST_ROUNDS, _GROWTH, _LESS_THAN_WANTED = 8, 2, 0.85

# The usual gradient of a channel is learned from so many images: each has a label and a rival of its own.
_FOR_USUAL_SLOPES = 32

# Under which names the two margins of computed pairs are kept.
_MARGINS = ("margins", "second")


@dataclass(frozen=True)
class _Forecast:
    """What is predicted of a margin of all pairs: what it becomes, its size and its risk, (N, A) each.

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
        size, after = self.size[rows, columns], self.after[rows, columns]
        known = np.isfinite(size) & (size > 0) & np.isfinite(after)
        errors = -(margins[known] - after[known]) * np.sign(after[known]) / size[known]
        return np.nan_to_num(errors, nan=1e3, posinf=1e3, neginf=-1e3), known


@dataclass(frozen=True)
class _Predicted:
    """What is predicted of all pairs: margins (N,), whether a pair flips (N, A); of the first margin, and the second.

    The second margin is that to all classes whose own change is not predicted (`risk.risks_of_others`).
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


def measure_screened(
    network: Network, shard: Shard, ablations: Sequence[Ablation], checks: Checks, settings: ScreenSettings
) -> Measured:
    """Compute the pairs at risk, of ablations of single layers; `Measured.screen` says what may be missed.

    Raises Unsure, and Untraceable where pairs cannot be computed.
    """
    paired = PairedShard(network, shard, ablations, checks, settings.metric)
    predicted = _predict(paired)
    rng = np.random.default_rng([shard.start, len(ablations)])

    done = risks.pilot(predicted.risk, paired.columns.layers, rng)
    num_pilot = int(done.sum())
    paired.compute(done)
    predicted = _in_units_of_their_own(paired, predicted, rng)
    chance = _compute_at_risk(paired, predicted, done, settings.max_error)
    lot, distrusted = _cast_lots(paired, done, chance, predicted, rng)
    paired.check(rng)
    chance, missed, expected = _learn(paired, predicted)
    hidden = np.where(done, 0.0, chance)
    right = (predicted.margins > 0)[:, None]
    about = {
        "num_pairs": done.size,
        "num_pilot": num_pilot,
        "num_computed": int(done.sum()),
        "threshold": float(predicted.risk[~done].min(initial=np.inf)),
        "largest_chance": float(hidden.max(initial=0.0)),
        "distrusted": distrusted,
    }
    may_lose, may_gain = (hidden * right).sum(0), (hidden * ~right).sum(0)
    kept = (done.sum(0), may_lose, may_gain, missed, expected, *lot)
    back = np.argsort(paired.columns.places)
    screen = Screen(**{name: each[back] for name, each in zip(SCREENED, kept, strict=True)}, about=about)
    return replace(paired.result(), screen=screen)


def _predict(paired: PairedShard) -> _Predicted:
    """Run every batch once, and tell what each ablation would do to the margins."""
    num_images = len(paired.shard.images)
    shape = num_images, len(paired.columns.ablations)
    margins, second = np.empty((2, num_images), np.float32)
    change, size, of_any = np.empty((3, *shape), np.float32)
    first, usual = _usual_slopes(paired)
    for number, span in enumerate(paired.shard.spans):
        seen = paired.run_intact(number, gradients=True) if first is None or number else first
        margins[span], second[span] = seen.margins.cpu().numpy(), seen.second.cpu().numpy()
        for name, columns, ablations in paired.columns.groups:
            predicted = paired.pairs.predict(seen, name, ablations, usual[paired.pairs.end(name)])
            for whole, each in zip((change, size, of_any), predicted, strict=True):
                whole[span, columns] = each.cpu().numpy()
        seen.forget_predictions()
    risk, flips = risks.risks(margins, change, size)
    second_after, risk_of_others = risks.risks_of_others(second, change, of_any)
    others = _Forecast(second_after, of_any, risk_of_others)
    return _Predicted(margins, flips, (_Forecast(margins[:, None] + change, size, risk), others))


def _usual_slopes(paired: PairedShard) -> tuple[IntactPass | None, dict[fx.Node, Tensor]]:
    """The mean square of each channel's gradient, (C,), over the shard's first images.

    Their batch comes along where it holds all of them, so that it need not be run again.
    """
    wanted = min(_FOR_USUAL_SLOPES, len(paired.shard.images))
    totals: dict[fx.Node, Tensor] = {}
    first = None
    for number, span in enumerate(paired.shard.spans):
        if span.start >= wanted:
            break
        alone = span.start == 0 and span.stop >= wanted
        seen = paired.run_intact(0, gradients=True) if alone else paired.run_again(number, gradients=True)
        for node, squares in seen.squares(wanted - span.start).items():
            totals[node] = totals.get(node, 0) + squares / wanted
        first = seen if alone else None
    return first, totals


def _compute_at_risk(paired: PairedShard, predicted: _Predicted, done: np.ndarray, max_error: float) -> np.ndarray:
    """Compute, round by round, what the errors seen so far ask for, which is then `done`; return each pair's chance."""
    chance, missed, expected = _learn(paired, predicted)
    for rounds_left in reversed(range(_MOST_ROUNDS)):
        likely = np.minimum(1.0, chance * (missed + risks.PRIOR) / (expected + risks.PRIOR))
        if not (risks.choose(likely, max_error) & ~done).any():
            break
        more = risks.choose(likely, _LESS_THAN_WANTED * max_error) & ~done
        if rounds_left:
            most = _GROWTH * int((done & ~predicted.flips).sum())
            more = risks.likeliest(likely, more, max(risks.LEAST_PILOT, most))
        paired.compute(more)
        done |= more
        chance, missed, expected = _learn(paired, predicted)
    return chance


def _cast_lots(
    paired: PairedShard, done: np.ndarray, chance: np.ndarray, predicted: _Predicted, rng: np.random.Generator
) -> tuple[tuple[np.ndarray, ...], list[str]]:
    """Compute pairs drawn by lot from those that are left, and all of a layer whose predictions they contradict.

    Returns what the lot showed, (A,) each (`Screen`), and the layers. What is computed is then `done`.
    """
    layers, groups = paired.columns.layers, paired.columns.groups
    num_columns, num_layers = len(layers), len(groups)
    # A pair of which nothing changes cannot flip, whatever the network.
    left = ~done & np.isfinite(predicted.risk)
    drawn = lots.draw(left, layers, lots.size(left.size, num_layers), rng)
    before = len(paired.computed.all("rows", int))
    paired.compute(drawn)
    done |= drawn
    rows, columns = (paired.computed.all(name, int)[before:] for name in ("rows", "columns"))
    flipped = paired.flipped()[before:]
    right = paired.intact_right()[rows]
    lost, gained = (np.bincount(columns, flipped & side, num_columns) for side in (right, ~right))
    should = np.bincount(columns, chance[rows, columns], num_columns)
    distrusted = lots.contradicted(
        np.bincount(layers, lost + gained, num_layers), np.bincount(layers, should, num_layers)
    )
    rest = left & ~drawn & distrusted[layers]
    paired.compute(rest)
    done |= rest
    left &= ~rest
    names = [name for (name, _, _), bad in zip(groups, distrusted, strict=True) if bad]
    return ((left & ~drawn).sum(0), drawn.sum(0), lost, gained, should), names


def _in_units_of_their_own(paired: PairedShard, predicted: _Predicted, rng: np.random.Generator) -> _Predicted:
    """Give the predictions of each layer, then of each ablation, then of each image their own unit of error.

    The nearer a layer is to the output, and the less an ablation changes, the smaller the errors are.
    """
    computed, layers = paired.computed, paired.columns.layers
    rows, columns = computed.all("rows", int), computed.all("columns", int)
    # Drawn for all pairs, since the order in which they were computed hangs on the batch size.
    parts = rng.integers(risks.NUM_PARTS, size=predicted.risk.shape, dtype=np.uint8)[rows, columns]
    forecasts = []
    for forecast, name in zip(predicted.forecasts, _MARGINS, strict=True):
        errors, known = forecast.errors(computed.all(name, float), rows, columns)
        row, column = rows[known], columns[known]
        groups = (
            (layers[column], len(paired.columns.groups)),
            (column, len(layers)),
            (row, len(paired.shard.images)),
        )
        of_layers, of_ablations, of_images = risks.units_in_turn(errors, groups)
        unit = np.outer(of_images, of_layers[layers] * of_ablations).astype(np.float32)
        first = risks.in_units_of_others(errors, groups, parts[known])
        forecasts.append(_Forecast(forecast.after, forecast.size * unit, forecast.risk / unit, first))
    return replace(predicted, forecasts=(forecasts[0], forecasts[1]))


def _learn(paired: PairedShard, predicted: _Predicted) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The chance of each pair to flip unpredicted (N, A); how many of an ablation did, and by the laws should have.

    All from the pairs computed so far; the counts are (A,). A pair where nothing changes has no chance.
    """
    computed = paired.computed
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
    missed = unpredicted & paired.flipped()
    bands = predicted.bands
    factors = risks.factors(missed, chance[rows, columns] * unpredicted, bands[rows, columns])
    chance = np.minimum(1.0, chance * factors[bands])
    should = np.where(unpredicted, chance[rows, columns], 0.0)
    num_columns = len(paired.columns.ablations)
    return chance, np.bincount(columns, missed, num_columns), np.bincount(columns, should, num_columns)
