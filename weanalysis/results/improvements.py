"""Detrimental weights: which ablations of a study improve the network, and how large a gain could have been missed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from weanalysis.errors import StudyError
from weanalysis.kinds import kind_of, kinds_where
from weanalysis.results.tables import Store
from weanalysis.tasks import COUNTING, SEGMENTATION, find_metric

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Improvements:
    """What was searched (`num_tested` ablations), and what was found.

    `table` has the study's rows that improve the network on the choosing half, with D, its interval and the one-sided
    p- and q-value (Benjamini and Hochberg over the chosen) on the confirming half, and `confirmed`; the best D first.
    `largest_missed` (points): no ablation that is not confirmed improves the network by more, with 95 % confidence for
    all of them together; NaN where all are confirmed. `num_images` are those of the choosing and confirming half.

    >>> rows = pd.DataFrame({"drop": [-2.0], "confirmed": [True]})
    >>> improvements = Improvements(rows, num_tested=64, num_images=(250, 250), largest_missed=0.8)
    >>> improvements.num_confirmed, improvements.missed
    (1, 'What is not confirmed improves the network by at most 0.80 points (95 % confidence, all ablations together).')
    """

    table: pd.DataFrame
    num_tested: int
    num_images: tuple[int, int]
    largest_missed: float

    @property
    def num_confirmed(self) -> int:
        return int(self.table["confirmed"].sum())

    @property
    def missed(self) -> str:
        """Word how large an improvement could have been missed; empty where all are confirmed."""
        if self.largest_missed != self.largest_missed:
            return ""
        sure = "(95 % confidence, all ablations together)"
        if self.largest_missed <= 0:
            return f"Nothing else improves the network at all {sure}."
        return f"What is not confirmed improves the network by at most {self.largest_missed:.2f} points {sure}."

    def summary(self) -> dict[str, Any]:
        """Return it as `--json` prints it.

        >>> improvements.summary()["num_confirmed"], improvements.summary()["rows"]
        (1, [{'drop': -2.0, 'confirmed': True}])
        """
        from weanalysis.results.export import to_json_rows, to_json_value

        return {
            "num_tested": self.num_tested,
            "num_chosen": len(self.table),
            "num_confirmed": self.num_confirmed,
            "num_images": list(self.num_images),
            "largest_missed": to_json_value(self.largest_missed),
            "rows": to_json_rows(self.table),
        }


def find_improvements(store: Store, study_id: int, metric: str | None = None) -> Improvements:
    """Search a study for weights whose removal improves the network: chosen on one half, confirmed on the other.

    See `statistics.confirm_improvements` for the tests. Raises StudyError for a study of a kind that is not
    `searchable`, one with a stopping rule (its images were not chosen beforehand), one whose answers were not all
    computed, and where a half has no image.

    The last of three filters outvotes the others, which are right:

    >>> from torch import eye, nn, tensor
    >>> from weanalysis import ablate
    >>> net = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> net[0].weight.data = tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [2.0, 2.0, 2.0]])[:, :, None, None]
    >>> images = [(eye(3)[k % 2][:, None, None].expand(3, 4, 4), k % 2) for k in range(30)]
    >>> table = ablate(net, images, "channel", side="out", cache="cache")
    >>> with Store.open("cache/results.sqlite") as store:
    ...     improvements = find_improvements(store, 1)
    >>> improvements.table[["out_channel", "drop", "confirmed"]].values.tolist()
    [[2.0, -100.0, True]]
    """
    about = store.describe(study_id)
    metric = metric or str(about["metric"])
    check_findable(about["kind"], metric, about["evaluate"], about.get("stopping"))
    from weanalysis.results.statistics import confirm_improvements

    halves = [pd.DataFrame(store.counts(study_id, metric, half)) for half in (0, 1)]
    measured = (halves[0]["num_images"] > 0) & (halves[1]["num_images"] > 0)
    if not measured.any():
        raise StudyError(f"{about['name']} has no image in one of the halves yet: measure two images or more")
    confirmation = confirm_improvements(halves[0][measured], halves[1][measured], SIGNIFICANCE)
    labels = store.table(study_id, metric)[["layer", "depth", "selection", "out_channel", "in_channel", "num_weights"]]
    chosen = confirmation.table[confirmation.table["chosen"]].drop(columns="chosen")
    table = labels.loc[chosen.index].join(chosen).sort_values(["confirmed", "drop"], ascending=[False, True])
    return Improvements(
        table.rename_axis("position").reset_index(),
        int(measured.sum()),
        (int(halves[0]["num_images"].max()), int(halves[1]["num_images"].max())),
        confirmation.largest_missed,
    )


def check_findable(kind: str, metric: str, evaluate: str, stopping: object) -> None:
    """Raise StudyError for a study in which improvements cannot be searched."""
    if find_metric(metric).tasks == (SEGMENTATION,):
        raise StudyError(
            f"--find detrimental counts images that turn right or wrong, and of masks ({metric}) none does"
        )
    if metric not in COUNTING:
        raise StudyError(
            f"--find detrimental counts images that turn right or wrong: use --metric {' or '.join(COUNTING)}, not "
            f"{metric}"
        )
    if not kind_of(kind).searchable:
        searchable = ", ".join(kinds_where(lambda one: one.searchable))
        raise StudyError(f"--find detrimental needs a study of {searchable}, not {kind}")
    if evaluate not in ("exact", "naive"):
        raise StudyError(f"--find detrimental needs computed answers: use --evaluate exact, not {evaluate}")
    if stopping:
        raise StudyError(
            "--find detrimental needs all images for every ablation; leave --until-ci and --until-significant out"
        )
