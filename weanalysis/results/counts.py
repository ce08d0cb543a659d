"""What is counted of the changes kept, shard by shard, for any metric and any part of the images."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from weanalysis.results.store import SCREENED, Reader
from weanalysis.tasks import COUNTING, find_metric

if TYPE_CHECKING:  # scipy's half second is not for `weanalysis list`
    from weanalysis.results.statistics import StoppingRule


class Counts(Reader):
    """A results file as numbers: how many images each ablation of a study lost and gained."""

    def __init__(self, connection: sqlite3.Connection, path: Path):
        super().__init__(connection, path)
        self._replayed: dict[int, tuple[float, np.ndarray]] = {}

    def counts(self, study_id: int, metric: str, half: int | None = None) -> dict[str, np.ndarray]:
        """Count, for each ablation of a study, images measured (num_images), right when intact, lost and gained: (A,).

        `half` 0 or 1 counts every other image alone, in the order they were served: a choice made on one half can be
        confirmed on the other, and more images leave both halves what they were.

        >>> {name: values.tolist() for name, values in store.counts(1, "top1").items()}
        {'num_images': [12, 12, 12], 'num_correct': [12, 12, 12], 'lost': [4, 4, 4], 'gained': [0, 0, 0]}
        """
        ids, place = np.unique(self.ablation_ids(study_id), return_inverse=True)
        limits = self._num_shards(study_id)
        sums = {name: np.zeros(len(place), np.int64) for name in ("num_images", "num_correct", "lost", "gained")}
        context_id, shards = self._shards(study_id)
        for number, shard in shards.items():
            counted = self._count(context_id, shard, ids, metric, half)
            for name, sum_ in sums.items():
                sum_ += counted[name][place] * (True if limits is None else number < limits)
        return sums

    def moments(self, study_id: int, statistic: str) -> dict[str, np.ndarray]:
        """Sum a number of each image over those of which every ablation has it, an entry an ablation.

        num_images; `intact`, the sum when intact; `change` and `squares`, the sums of its changes and their squares;
        (A,) each, in the statistic's unit.

        >>> moments = store.moments(1, "loss")
        >>> (moments["change"] / moments["num_images"]).round(2).tolist()
        [0.34, 0.34, 0.34]
        """
        ids, place = np.unique(self.ablation_ids(study_id), return_inverse=True)
        sums = {name: np.zeros(len(ids)) for name in ("num_images", "intact", "change", "squares")}
        context_id, shards = self._shards(study_id)
        for shard in shards.values():
            for _, index, intact, values in self._valued_blocks(context_id, shard, ids, statistic):
                here = index >= 0
                of_shard = (len(intact), intact.sum(dtype=np.float64), values.sums[here], values.squares[here])
                for name, each in zip(sums, of_shard, strict=True):
                    sums[name][index[here]] += each
        return {name: values[place] for name, values in sums.items()}

    def value_changes(self, study_id: int, position: int, statistic: str) -> dict[str, np.ndarray]:
        """The images whose number an ablation changed, as far as these are kept: image_id, before, after, (K,) each.

        >>> changes = store.value_changes(1, 0, "loss")
        >>> changes["image_id"][:3].tolist(), (changes["after"] - changes["before"])[:3].round(2).tolist()
        ([0, 1, 2], [1.31, -0.14, -0.14])
        """
        ids = self.ablation_ids(study_id)[[position]]
        context_id, shards = self._shards(study_id)
        columns: dict[str, list[np.ndarray]] = {"image_id": [], "before": [], "after": []}
        for shard in shards.values():
            for block, index, before, values in self._valued_blocks(context_id, shard, ids, statistic):
                (row,) = np.nonzero(index >= 0)
                for one in row[:1]:
                    intact = self._intact(context_id, shard)
                    assert intact is not None and block.stop == shard[1]
                    places = np.arange(len(before)) if values.positions is None else values.positions[one]
                    columns["image_id"].append(intact.image_ids[places])
                    columns["before"].append(before[places])
                    columns["after"].append(before[places] + values.changes[one].astype(np.float32))
        types = {"image_id": np.int64, "before": np.float64, "after": np.float64}
        return {name: np.concatenate([np.empty(0, types[name]), *parts]) for name, parts in columns.items()}

    def screen_counts(self, study_id: int) -> dict[str, np.ndarray]:
        """Sum, for each ablation of a screened study, what is kept of its screening, (A,) each.

        See `ablation.evaluate.decisions.Screen` for what these are. Raises StoreError for a study that is not screened.

        >>> table = ablate(net, images, "channel", side="out", evaluate="screened", name="screened", cache="cache")
        >>> store.screen_counts(store.find("screened"))["num_evaluated"].tolist()
        [12.0, 12.0, 12.0]
        """
        sums = {name: np.zeros(len(self.ablation_ids(study_id))) for name in SCREENED}
        for places, numbers, _ in self.screens(study_id):
            for name, sum_ in sums.items():
                sum_[places] += numbers[name]
        return sums

    def shard_counts(self, study_id: int, shard: tuple[int, int], metric: str) -> dict[str, np.ndarray]:
        """The same as `counts`, of one shard (start, stop) alone and whatever a stopping rule leaves out.

        >>> store.shard_counts(1, (0, 12), "top1")["lost"].tolist()
        [4, 4, 4]
        """
        ids, place = np.unique(self.ablation_ids(study_id), return_inverse=True)
        counted = self._count(int(self.describe(study_id)["context_id"]), shard, ids, metric)
        return {name: values[place] for name, values in counted.items()}

    def _count(
        self, context_id: int, shard: tuple[int, int], ids: np.ndarray, metric: str, half: int | None = None
    ) -> dict[str, np.ndarray]:
        """Count for the ablations `ids`, sorted and different, what changed in one shard; 0 where not measured."""
        right = find_metric(metric, COUNTING).right
        counted = {name: np.zeros(len(ids), np.int64) for name in ("num_images", "num_correct", "lost", "gained")}
        intact = self._intact(context_id, shard)
        if intact is None:
            return counted
        before = right(intact.correct)
        chosen = np.ones(len(before), bool) if half is None else np.arange(*shard) % 2 == half
        for block, index in self._first_blocks(context_id, shard, ids):
            counted["num_images"][index[index >= 0]] = int(chosen.sum())
            counted["num_correct"][index[index >= 0]] = int(before[chosen].sum())
            of_change = np.where(chosen[block.positions], np.repeat(index, block.counts), -1)
            was, now = before[block.positions], right(block.correct)
            for name, changed in (("lost", was & ~now), ("gained", ~was & now)):
                counted[name] += np.bincount(of_change[changed & (of_change >= 0)], minlength=len(ids))
        return counted

    def stopping_rule(self, study_id: int) -> StoppingRule | None:
        """The rule by which a study's ablations stop before its last image; None where they do not.

        >>> store.stopping_rule(1) is None
        True
        """
        about = self.describe(study_id)
        if not about.get("stopping"):
            return None
        from weanalysis.results.statistics import StoppingRule

        return StoppingRule.of(about["options"])

    def _num_shards(self, study_id: int) -> np.ndarray | None:
        """How many shards, from the first on, count for each row of a study with a stopping rule; None without one."""
        rule = self.stopping_rule(study_id)
        if rule is None:
            return None
        from weanalysis.results.statistics import Replay

        about = self.describe(study_id)
        if (known := self._replayed.get(study_id)) is not None and known[0] == about["updated"]:
            return known[1]
        replay = Replay(rule, len(self.ablation_ids(study_id)))
        for place, (number, shard) in enumerate(self._shards(study_id)[1].items()):
            if number != place:  # a shard before it was not measured yet
                break
            counted = self.shard_counts(study_id, shard, about["metric"])
            if not replay.add(counted["lost"], counted["gained"], counted["num_images"]):
                break
        self._replayed[study_id] = about["updated"], replay.num_shards
        return replay.num_shards
