"""D_L and D_H of a multiplier study: what the weights of the lowest and of the highest multiplier are needed for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from weanalysis.results.tables import Store

if TYPE_CHECKING:
    from weanalysis.results.statistics import Comparison

# What a study ranks by multiplier (its option multiplier_of), in words.
RANKED = {"channel": "input channel", "kernel": "kernel"}


@dataclass(frozen=True)
class Contrast:
    """The rows of a study in which every layer at once lost its lowest, highest or randomly drawn units (§4.2).

    `lowest` and `highest` are the rows of D_L and D_H; `comparison` is D_H minus D_L on the same images, None until
    both have been measured; `random` has the random draws. `unit` words what is ranked: "input channel" or "kernel".
    """

    unit: str
    lowest: pd.Series
    highest: pd.Series
    comparison: Comparison | None
    random: pd.DataFrame

    def summary(self) -> dict[str, Any]:
        """Return d_low, d_high, d_high_minus_d_low, their intervals and p-value; of what is not measured, nothing."""
        if self.comparison is None:
            return {}
        low, high, apart = self.lowest, self.highest, self.comparison
        return {
            "multiplier_of": self.unit.split()[-1],
            "d_low": low["drop"],
            "d_low_interval": [low["drop_low"], low["drop_high"]],
            "d_high": high["drop"],
            "d_high_interval": [high["drop_low"], high["drop_high"]],
            "d_high_minus_d_low": apart.difference,
            "d_high_minus_d_low_interval": [apart.difference_low, apart.difference_high],
            "d_high_minus_d_low_p_value": apart.p_value,
        }


def ranked_unit(options: dict[str, Any] | None) -> str:
    """Word what a multiplier study with these options ranks: "input channel" or "kernel"."""
    return RANKED.get((options or {}).get("multiplier_of", "channel"), RANKED["channel"])


def lowest_and_highest(
    store: Store, study_id: int, metric: str | None = None, table: pd.DataFrame | None = None
) -> Contrast | None:
    """Return D_L and D_H of a study with their difference on the same images; None for a study without them.

    `table` is the study's, where it has been read already. Raises StoreError as the store does.
    """
    table = store.table(study_id, metric) if table is None else table
    everywhere = table[table["layer"].isna() & table["fraction"].isna()]
    lowest, highest, random = (everywhere[everywhere["selection"] == name] for name in ("lowest", "highest", "random"))
    if lowest.empty or highest.empty:
        return None
    low, high = lowest.iloc[0], highest.iloc[0]
    measured = low["num_images"] > 0 and high["num_images"] > 0
    comparison = store.compare(study_id, int(low.name), int(high.name), metric) if measured else None
    unit = ranked_unit(store.describe(study_id).get("options"))
    return Contrast(unit, low, high, comparison, random)
