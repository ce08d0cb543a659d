"""A study in the results file, as the one process that runs it writes it and looks at what is there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from weanalysis.ablation.evaluate import Measured
from weanalysis.ablation.progress import Tally
from weanalysis.ablation.schedule import Task
from weanalysis.ablation.setup import Setup
from weanalysis.ablation.stopping import Needs
from weanalysis.errors import StudyError
from weanalysis.results import Store
from weanalysis.results.store import LABELS, Writer, shards_of

# Of each number of an image, such as the loss, a study keeps the change under every ablation for so many pairs of them,
# 2 bytes each; beyond that, for those images of each ablation and shard that changed most (6 bytes each).
MOST_NUMBERS_KEPT = 2**26


class StudyRecord:
    """A study that is begun, or taken up again, in the results file; `ids` are those of its ablations, in order."""

    def __init__(self, writer: Writer, store: Store, setup: Setup):
        self.store, self._writer, self._setup = store, writer, setup
        study, settings, num_images = setup.study, setup.settings, len(setup.images)
        plan = [(one.key, {label.name: getattr(one, label.name) for label in LABELS}) for one in study.ablations]
        num_numbers = len(study.ablations) * num_images
        # Of how many images of a shard the change of a number is kept for each ablation; None: of all.
        self._most_kept = None
        if num_numbers > MOST_NUMBERS_KEPT:
            self._most_kept = max(1, MOST_NUMBERS_KEPT * settings.shard_size // num_numbers)
            if settings.metric.needs_all_numbers:
                raise StudyError(
                    f"{len(study.ablations):,} ablations on {num_images:,} images are more than {MOST_NUMBERS_KEPT:,} "
                    f"numbers, of which not all are kept, and {settings.metric.name} needs all: give fewer --images"
                )
        self.context_id = writer.context(setup.context)
        # What was measured before in other metrics of the caller's stays readable.
        known = store.own_metrics(self.context_id, study.key)
        # What was measured twice when the study was run before.
        self.repeated = store.repeated(self.context_id, study.key)
        about = {
            **setup.about,
            **({"repeated": self.repeated} if self.repeated else {}),
            "own_metrics": list({one["name"]: one for one in known + setup.about["own_metrics"]}.values()),
        }
        self.study_id = writer.begin_study(
            self.context_id, study.key, study.kind, setup.name, settings.metric.name, num_images, plan, about
        )
        self.ids = store.ablation_ids(self.study_id)

    def needs(self) -> Needs:
        """What is yet to be measured, by what lies in the file now."""
        settings = self._setup.settings
        return Needs(self.store, self.study_id, shards_of(len(self._setup.images), settings.shard_size), settings.rule)

    def tally(self) -> Tally:
        """The counts of what lies in the file now."""
        return Tally(self.store, self.study_id, self._setup.metric, self.ids)

    def write(self, task: Task, measured: Measured, done: int, total: int) -> None:
        """Keep what a task measured, and that `done` of `total` pairs are done with it."""
        ids, image_ids = self.ids[list(task.places)], self._setup.images.ids[task.start : task.stop]
        self._writer.write(self.context_id, ids, image_ids, measured, self.study_id, done, total, self._most_kept)

    def forget(self, layers: Collection[str]) -> int:
        """Drop what is kept of these layers' ablations; return in how many shards it was."""
        touched = [not set(layers).isdisjoint(ablation.layers) for ablation in self._setup.study.ablations]
        return self._writer.forget(self.context_id, self.ids[np.array(touched)])

    def annotate(self, more: Mapping[str, Any]) -> None:
        """Add to what is said about the study."""
        self._writer.annotate(self.study_id, more)

    def set_state(self, state: str, done: int, total: int) -> None:
        """Say how the study ended."""
        self._writer.set_state(self.study_id, state, done, total)
