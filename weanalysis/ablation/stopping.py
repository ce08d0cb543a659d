"""Which ablations still need which shards: all of them at once, or round by round where a rule stops some early."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from weanalysis.results import Store
from weanalysis.results.statistics import Replay, StoppingRule
from weanalysis.tasks import find_metric

# A shard of images (start, stop), and the positions of the ablations that are to be measured on it.
Need = tuple[tuple[int, int], np.ndarray]


class Needs:
    """What a study has yet to measure, each ablation once however often the plan names it.

    Without a rule that is everything at once. With one it comes in rounds of a few shards, so that as many processes
    are kept busy: the rule decides shard by shard in their order, from what lies in the store, and what was measured
    beyond the deciding shard is left out. So a study stops at the same images whatever the number of
    processes, and whether it was interrupted or not.
    """

    def __init__(self, store: Store, study_id: int, shards: list[tuple[int, int]], rule: StoppingRule | None):
        self._store, self._study_id, self._shards = store, study_id, shards
        about = store.describe(study_id)
        self._context_id, self._metric = int(about["context_id"]), find_metric(str(about["metric"]))
        self._ids = store.ablation_ids(study_id)
        _, places = np.unique(self._ids, return_index=True)
        self._places_once = np.sort(places)
        self._replay = Replay(rule, len(self._ids)) if rule else None
        self._next_shard = 0
        self._look()

    @property
    def num_settled(self) -> int:
        """How many rows of the plan the rule has settled; 0 without one."""
        return 0 if self._replay is None else int((~self._replay.is_open).sum())

    @property
    def num_needed(self) -> int:
        """How many (ablation, shard) pairs the answer rests on, taking it that what is open stays open."""
        if self._replay is None:
            return len(self._places_once) * len(self._shards)
        used = np.where(self._replay.is_open, len(self._shards), self._replay.num_shards)
        return int(used[self._places_once].sum())

    def left(self) -> list[Need]:
        """All that is not measured yet, taking it that what is open stays open."""
        self._look()
        return list(self._missing(len(self._shards)))

    def rounds(self, num_shards: int) -> Iterator[list[Need]]:
        """Yield what to measure next, until nothing is left; the caller puts it in the store before asking again.

        A round goes over `num_shards` shards at most where there is a rule.
        """
        if self._replay is None:
            yield self.left()
            return
        while self._goes_on():
            before = self._next_shard
            yield list(self._missing(before + num_shards))
            self._look()
            if self._next_shard == before:  # the round was not measured: the study is being stopped
                return

    def _goes_on(self) -> bool:
        assert self._replay is not None
        return self._next_shard < len(self._shards) and bool(self._replay.is_open.any())

    def _missing(self, stop: int) -> Iterator[Need]:
        open_places = self._places_once
        if self._replay is not None:
            open_places = open_places[self._replay.is_open[open_places]]
        for shard in self._shards[self._next_shard : stop]:
            done = self._store.done(self._context_id, *shard, self._metric.statistic)
            places = open_places[~np.isin(self._ids[open_places], done)]
            if len(places):
                yield shard, places

    def _look(self) -> None:
        """Let the rule look at the shards that are there, up to the first that open ablations lack."""
        while self._replay is not None and self._goes_on():
            shard = self._shards[self._next_shard]
            # A shard that is not there in full is looked at once it is: the replay takes each one once.
            done = self._store.done(self._context_id, *shard, self._metric.statistic)
            if not np.isin(self._ids[self._replay.is_open], done).all():
                return
            counts = self._store.shard_counts(self._study_id, shard, self._metric.name)
            self._replay.add(counts["lost"], counts["gained"], counts["num_images"])
            self._next_shard += 1
