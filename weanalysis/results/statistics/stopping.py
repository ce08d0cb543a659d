"""When an ablation has been looked at on enough images, and what may be said of it then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from weanalysis.errors import StudyError
from weanalysis.results.statistics.paired import Floats, adjust_bh, drop_table
from weanalysis.results.statistics.sequential import sequential_interval, sequential_p_value

# Benjamini and Hochberg's share of false findings among the ablations that `--until-significant` stops.
STOPPING_Q = 0.05


@dataclass(frozen=True)
class StoppingRule:
    """An ablation is settled once its interval is at most `width` points wide, or D told from 0; either will do.

    Raises StudyError for a width that no interval has, and for a rule that never stops.

    After 500 images the first ablation has lost 100, the second none:

    >>> rule = StoppingRule(significant=True)
    >>> rule.settled(np.array([100.0, 0.0]), np.zeros(2), np.array([500.0, 500.0])).tolist()
    [True, False]
    >>> str(StoppingRule(width=0.5, significant=True))
    'until-ci 0.5 or until-significant'
    """

    width: float | None = None
    significant: bool = False

    def __post_init__(self) -> None:
        if self.width is None and not self.significant:
            raise StudyError("a stopping rule needs a width or significance")
        if self.width is not None and not 0 < self.width <= 200:
            raise StudyError(
                f"--until-ci {self.width:g} is not allowed: give the width of an interval in percentage "
                "points, above 0, such as 0.5"
            )

    @property
    def options(self) -> dict[str, Any]:
        """The rule as it stands among a study's options."""
        width = {} if self.width is None else {"until_ci": float(self.width)}
        return {**width, **({"until_significant": True} if self.significant else {})}

    @classmethod
    def of(cls, options: Mapping[str, Any] | None) -> StoppingRule | None:
        """Read the rule out of a study's options; None for a study that measures all its images."""
        wanted = options or {}
        if not {"until_ci", "until_significant"} & set(wanted):
            return None
        return cls(wanted.get("until_ci"), bool(wanted.get("until_significant")))

    def __str__(self) -> str:
        width = [] if self.width is None else [f"until-ci {self.width:g}"]
        return " or ".join([*width, *(["until-significant"] if self.significant else [])])

    def settled(self, lost: Floats, gained: Floats, num_images: Floats) -> NDArray[np.bool_]:
        """Tell which ablations are settled, from the counts of all ablations of the study so far, (num_ablations,).

        With `significant` an ablation is settled by Benjamini and Hochberg over the anytime-valid p-values of all:
        each is one over a bet's winnings (an e-value), so that the share of false findings holds however the
        ablations depend on each other and whenever each was stopped: R. Wang and A. Ramdas, False discovery rate
        control with e-values, J. R. Stat. Soc. B 84 (2022) 822-852, whose procedure this is. What it once found it
        keeps finding, since what is stopped stays as it is.
        """
        is_settled = np.zeros(len(lost), dtype=bool)
        if self.width is not None:
            low, high = sequential_interval(lost, gained, num_images)
            is_settled |= 100 * (high - low) <= self.width
        if self.significant:
            is_settled |= adjust_bh(sequential_p_value(lost, gained)) <= STOPPING_Q
        return is_settled


class Replay:
    """A study's shards looked at in their order, by which each ablation is left alone once it is settled.

    Whatever the order in which shards were measured, and how many more there are, the decisions are the same.
    `num_shards` of each ablation count; `is_open` says which are not settled.

    >>> replay = Replay(StoppingRule(significant=True), num_ablations=2)
    >>> replay.add(np.array([50, 1]), np.array([0, 0]), np.array([250, 250]))
    True
    >>> replay.is_open.tolist(), replay.num_shards.tolist()
    ([False, True], [1, 1])
    """

    def __init__(self, rule: StoppingRule, num_ablations: int):
        self.rule = rule
        self.is_open = np.ones(num_ablations, dtype=bool)
        self.num_shards = np.zeros(num_ablations, dtype=np.int64)
        self._counts = np.zeros((3, num_ablations))

    def add(self, lost: NDArray[np.int64], gained: NDArray[np.int64], num_images: NDArray[np.int64]) -> bool:
        """Look at the next shard's own counts, with num_images 0 where an ablation was not measured on it.

        False where open ablations still lack it: then nothing is decided, and no later shard may be added.
        """
        counted = self.is_open & (num_images > 0)
        self._counts[:, counted] += np.stack([lost, gained, num_images])[:, counted]
        self.num_shards[counted] += 1
        if not np.array_equal(counted, self.is_open):
            return False
        self.is_open &= ~self.rule.settled(*self._counts)
        return True


def stopped_table(counts: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Return what `drop_table` does, with intervals and p-values that hold whenever each row's ablation was stopped.

    `sequential_interval` and `sequential_p_value` take the place of Tango's and McNemar's; the q-values are those by
    which `StoppingRule` decides. NaN where num_images is 0.

    It is wider than for a number of images fixed beforehand, the price of looking often:

    >>> counts = pd.DataFrame({"lost": [20], "gained": [2], "num_images": [500]})
    >>> tables = drop_table(counts), stopped_table(counts)
    >>> [table.loc[0, ["drop", "drop_low", "drop_high"]].round(1).tolist() for table in tables]
    [[3.6, 1.9, 5.8], [3.6, 0.8, 7.3]]
    """
    table = drop_table(counts, confidence)
    lost, gained, num_images = (table[name].to_numpy(np.float64) for name in ("lost", "gained", "num_images"))
    low, high = sequential_interval(lost, gained, num_images, confidence)
    table["drop_low"], table["drop_high"] = 100 * low, 100 * high
    table["p_value"] = np.where(num_images > 0, sequential_p_value(lost, gained), np.nan)
    table["q_value"] = adjust_bh(table["p_value"])
    return table
