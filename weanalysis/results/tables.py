"""The store as everyone reads it: a study's table, its intact answers, and the images that an ablation changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from weanalysis.errors import StoreError
from weanalysis.results.images import ImageAnswers
from weanalysis.results.pixels import classes_of
from weanalysis.results.store import COLUMNS
from weanalysis.results.store.checked import Intact
from weanalysis.tasks import (
    CLASSIFICATION,
    COUNTING,
    IOU_OF_CLASS,
    METRICS,
    NUMBERS,
    SEGMENTATION,
    Metric,
    find_metric,
    metrics_of_task,
)

if TYPE_CHECKING:
    from weanalysis.results.statistics import Comparison


# The columns in which changed images are told.
CHANGED = ("image_id", "target", "before", "after", "correct_before", "correct_after")


class Store(ImageAnswers):
    """The results file of a cache, opened for reading, and what follows from it.

    `Store.open(path)` opens it; use it as a context manager or close it. What measures writes with `store.Writer`.

    >>> from torch import eye, nn
    >>> from weanalysis import ablate
    >>> net = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> net[0].weight.data = eye(3)[:, :, None, None]
    >>> images = [((1 + eye(3)[k % 3])[:, None, None].expand(3, 4, 4), k % 3) for k in range(12)]
    >>> made = ablate(net, images, "channel", side="out", name="colours", cache="cache")
    >>> store = Store.open("cache/results.sqlite")
    >>> store.table(store.find("colours"))["drop"].equals(made["drop"])
    True
    """

    def table(self, study_id: int, metric: str | None = None, confidence: float = 0.95) -> pd.DataFrame:
        """The study's table, one row an ablation, with the contract's columns (`COLUMNS`), as far as it has come.

        A row's numbers are over the images measured for it so far (`num_images`); with none they are NaN. A study with
        a stopping rule has anytime-valid intervals and p-values, and no image beyond where its rule stopped the row.
        Raises StoreError for an unknown metric.

        >>> store.table(1)[["layer", "selection", "out_channel", "intact", "drop"]].round(1).values.tolist()
        [['0', 'filter', 0.0, 100.0, 33.3], ['0', 'filter', 1.0, 100.0, 33.3], ['0', 'filter', 2.0, 100.0, 33.3]]
        """
        # Imported here: scipy's half second is not for `weanalysis list`.
        from weanalysis.results.statistics import drop_table, mean_table, stopped_table

        about = self.describe(study_id)
        asked = self._metric(about, metric)
        table = self.labels(study_id)
        if asked.counts_images:
            for column, values in self.counts(study_id, asked.name).items():
                table[column] = values
            table = (stopped_table if self.stopping_rule(study_id) else drop_table)(table, confidence)
            table["num_flipped"] = table["lost"] + table["gained"]
        elif asked.aggregate is not None:
            table = table.join(self._aggregated(study_id, asked, len(table), confidence))
            table["num_flipped"] = np.nan
        else:
            for column, values in self.moments(study_id, asked.statistic).items():
                table[column] = values
            table = mean_table(table, asked.worse, confidence)
            table["num_flipped"] = np.nan
        table.insert(0, "study", about["kind"])
        table["metric"], table["evaluate"] = asked.name, about["evaluate"]
        table["num_evaluated"] = table["num_images"]
        table["screen_low"] = table["screen_high"] = table["drop"]
        if about["evaluate"] == "screened":
            self._add_screen(table, study_id, confidence)
        return table[list(COLUMNS)]

    def _aggregated(self, study_id: int, metric: Metric, num_rows: int, confidence: float) -> pd.DataFrame:
        """What is told of a study's rows in a metric that is a function of all answers."""
        from weanalysis.results.statistics import adjust_bh, linear_columns

        assert metric.aggregate is not None
        parts = [pd.DataFrame(columns=["num_images", "intact", "ablated", "drop", "drop_low", "drop_high", "p_value"])]
        for rows, before, after in self.answers(study_id, metric.statistic):
            linear = (metric.aggregate(before), metric.aggregate(after))
            parts.append(linear_columns(*linear, metric.worse, confidence).set_axis(rows, axis=0))
        table = pd.concat(parts).reindex(range(num_rows)).astype(float)
        table["num_images"] = table["num_images"].fillna(0).astype(np.int64)
        table["q_value"] = adjust_bh(table["p_value"])
        return table

    def metrics(self, study_id: int) -> list[str]:
        """The metrics in which a study can be read, its own first; one run answers all of them.

        >>> store.metrics(1)
        ['top1', 'loss', 'macro-f1', 'ece']
        """
        about = self.describe(study_id)
        names = [str(about["metric"])]
        known = about.get("num_classes")
        num_classes = known if isinstance(known, int) and known > 0 else math.inf
        for metric in _metrics_of(about).values():
            if metric.name in names or metric.guesses >= num_classes:  # top-5 of four classes is always right
                continue
            try:
                self._metric(about, metric.name)
            except StoreError:
                continue
            whole = metric.aggregate is None or self.keeps_all(study_id, metric.statistic)
            if whole and self._has_any(study_id, metric.statistic):
                names.append(metric.name)
        return names

    def _has_any(self, study_id: int, statistic: str) -> bool:
        """Whether a statistic is kept for any ablation of a study; that of answers always is."""
        context_id, shards = self._shards(study_id)
        ids = self.ablation_ids(study_id)
        return statistic == "correct" or any(
            np.isin(ids, self.done(context_id, *shard, statistic)).any() for shard in shards.values()
        )

    @staticmethod
    def _metric(about: Mapping[str, Any], name: str | None) -> Metric:
        """The metric asked for, or the study's own.

        Raises StoreError for one that is unknown, that was not screened for, or in which a rule that stopped the study
        early leaves no interval that holds.
        """
        name = name or str(about["metric"])
        known = _metrics_of(about)
        if about.get("task") == SEGMENTATION and name.startswith(IOU_OF_CLASS):
            known[name] = _iou_metric(about, name)
        if name not in known:  # a caller's own may be named without its hash, where that says which
            named = [one.name for one in known.values() if one.is_own and one.label == name]
            if len(named) != 1:
                without = " is unknown"
                if name in METRICS or name.startswith(IOU_OF_CLASS):
                    without = f", since {_no_class(about)}" if about.get("task") else " is one of segmentations"
                raise StoreError(f"metric {name!r}{without}: choose from {', '.join(known)}")
            name = named[0]
        metric, again = known[name], f"run it with --metric {name}"
        if about["evaluate"] == "screened" and name != about["screen"]["metric"]:
            again += ", or with --evaluate exact" if metric.counts_images else " and --evaluate exact"
            raise StoreError(
                f"study {about['id']} was screened for {about['screen']['metric']}, so that changes of {name} were "
                f"left out; {again}"
            )
        if about.get("stopping") and not metric.counts_images:
            raise StoreError(
                f"study {about['id']} was stopped early by what its {about['metric']} showed (--{about['stopping']}), "
                f"so that no interval of its {name} holds; {again} and without that rule"
            )
        return metric

    @classmethod
    def _counted(cls, about: Mapping[str, Any], name: str | None) -> Metric:
        """The metric in which images are right or wrong: that asked for, the study's own, or else top-1."""
        metric = cls._metric(about, name)
        if metric.counts_images:
            return metric
        if about.get("task"):
            raise StoreError(f"no image of study {about['id']} has a class, so that none is right or wrong")
        if name is not None:
            counting = ", ".join(one.name for one in METRICS.values() if one.counts_images)
            raise StoreError(f"no image is right or wrong in {name}: choose from {counting}")
        return find_metric("top1")

    def _add_screen(self, table: pd.DataFrame, study_id: int, confidence: float) -> None:
        """Put how many images were computed, and what the others may hide, into a screened study's table.

        That gives the bounds of D on all of them, and makes the p-values what they are if as much is hidden.
        """
        from weanalysis.results.statistics import adjust_bh, hidden_flips, mcnemar_of_screened, screen_bounds

        counted = self.screen_counts(study_id)
        hidden = hidden_flips(counted, table["layer"])
        lost, gained = table["lost"], table["gained"]
        low, high = screen_bounds(lost, gained, table["num_images"], hidden, confidence)
        table["num_evaluated"] = counted["num_evaluated"].astype(np.int64)
        table["screen_low"], table["screen_high"] = 100 * low, 100 * high
        table["p_value"] = np.where(table["num_images"] > 0, mcnemar_of_screened(lost, gained, hidden), np.nan)
        table["q_value"] = adjust_bh(table["p_value"])

    def screening(self, study_id: int, confidence: float = 0.95) -> pd.DataFrame:
        """What pairs drawn by lot say of a screened study's layers, one row each, and of all: layer is None there.

        Columns num_left (pairs of an image and an ablation that were not computed and can change), lot_drawn and
        lot_flipped (drawn from these by lot and computed; how many of them flipped), most_hidden (no more of those left
        flip, by that count alone, whatever the network, each row for itself), distrusted (shards in which the layer
        was computed on all images, since the lot contradicted the predictions).

        >>> table = ablate(net, images, "channel", side="out", evaluate="screened", name="screened", cache="cache")
        >>> store.screening(store.find("screened"))[["num_left", "lot_drawn"]].values.tolist()
        [[0.0, 0.0], [0.0, 0.0]]
        """
        from weanalysis.results.statistics import most_by_lot

        of_row = self.labels(study_id)["layer"].fillna("").to_numpy(str)
        layers, place = np.unique(of_row, return_inverse=True)
        left, drawn, flipped, weight, distrusted = np.zeros((5, len(layers)))
        for places, numbers, about in self.screens(study_id):
            here = [
                np.bincount(place[places], values, len(layers))
                for values in (numbers["num_left"], numbers["lot_drawn"], numbers["lot_lost"] + numbers["lot_gained"])
            ]
            hides = here[0] > 0
            left, drawn, flipped = left + here[0], drawn + hides * here[1], flipped + hides * here[2]
            with np.errstate(divide="ignore", invalid="ignore"):
                weight = np.where(hides, np.maximum(weight, here[0] / here[1]), weight)
            distrusted += np.isin(layers, about.get("distrusted", ()))
        table = pd.DataFrame(
            {
                "layer": layers,
                "num_left": left,
                "lot_drawn": drawn,
                "lot_flipped": flipped,
                "most_hidden": np.minimum(most_by_lot(flipped, weight, confidence), left),
                "distrusted": distrusted,
            }
        )
        all_ = table.drop(columns="layer").sum()
        all_["most_hidden"] = min(float(most_by_lot(flipped.sum(), weight.max(initial=0), confidence)), left.sum())
        return pd.concat([table[table["layer"] != ""], pd.DataFrame([{"layer": None, **all_}])], ignore_index=True)

    def intact(self, study_id: int) -> pd.DataFrame:
        """One row an image measured so far: image_id, target, prediction of the intact network, and if it is right.

        That is by each metric in which an image is, top1 and top5.

        All but the first are NaN where images have no class.

        >>> store.intact(1)[["target", "prediction", "top1"]].head(3).values.tolist()
        [[0, 0, True], [1, 1, True], [2, 2, True]]
        """
        context_id, shards = self._shards(study_id)
        frames = []
        for shard in shards.values():
            answers = self._intact(context_id, shard)
            if answers is not None:
                frames.append(
                    pd.DataFrame(
                        {
                            "image_id": answers.image_ids,
                            "target": answers.targets,
                            "prediction": answers.predictions,
                            **{name: METRICS[name].right(answers.correct) for name in COUNTING},
                        }
                    )
                )
        columns = ["image_id", "target", "prediction", *COUNTING]
        table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)
        return table[["image_id"]].reindex(columns=columns) if self.has_no_classes(study_id) else table

    def has_no_classes(self, study_id: int) -> bool:
        """Whether a study's images have no class: its pixels have, or there are but numbers of its caller's.

        >>> store.has_no_classes(1)
        False
        """
        return bool(self.describe(study_id).get("task"))

    def changes(self, study_id: int, position: int, metric: str | None = None) -> pd.DataFrame:
        """The images that the ablation at `position` of the study's table changed.

        Columns image_id, target, before, after (predicted classes), correct_before, correct_after (in the
        metric). Images whose class changed from one wrong answer to another are included.

        Without the first filter, the images of the first class are taken for the second:

        >>> store.changes(1, 0)[["image_id", "before", "after", "correct_after"]].values.tolist()
        [[0, 0, 1, False], [3, 0, 1, False], [6, 0, 1, False], [9, 0, 1, False]]
        """
        right = self._counted(self.describe(study_id), metric).right
        frames = [_changed(intact, *changed, right) for intact, changed in self._shards_of_ablation(study_id, position)]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(CHANGED))

    def all_changes(self, study_id: int, metric: str | None = None) -> pd.DataFrame:
        """The images that each ablation of a study changed, in one pass over the file: `changes` for every position.

        Columns as there, and position; a row an ablation and image.

        >>> store.all_changes(1).groupby("position").size().tolist()
        [4, 4, 4]
        """
        right = self._counted(self.describe(study_id), metric).right
        ids, place = np.unique(self.ablation_ids(study_id), return_inverse=True)
        plan = pd.DataFrame({"ablation": place, "position": np.arange(len(place))})
        limits = self._num_shards(study_id)
        context_id, shards = self._shards(study_id)
        frames = []
        for number, shard in shards.items():
            intact = self._intact(context_id, shard)
            if intact is None:
                continue
            counting = plan if limits is None else plan[number < limits]
            for block, index in self._first_blocks(context_id, shard, ids):
                changed = _changed(intact, block.positions, block.classes, block.correct, right)
                frames.append(changed.assign(ablation=np.repeat(index, block.counts)).merge(counting, on="ablation"))
        columns = ["position", *CHANGED]
        return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)

    def correctness(self, study_id: int, position: int, metric: str | None = None) -> pd.Series:
        """Whether each image measured under an ablation is right with it (bool), by image_id.

        >>> store.correctness(1, 0).head(4).tolist()
        [False, True, True, False]
        """
        right = self._counted(self.describe(study_id), metric).right
        pieces = []
        for intact, (places, _, correct) in self._shards_of_ablation(study_id, position):
            after = intact.correct.copy()
            after[places] = correct
            pieces.append(pd.Series(right(after), intact.image_ids))
        return pd.concat(pieces) if pieces else pd.Series(dtype=bool)

    def _shards_of_ablation(
        self, study_id: int, position: int
    ) -> Iterator[tuple[Intact, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        """For each shard measured under an ablation: the intact row, and places, classes and correctness it changed."""
        ids = self.ablation_ids(study_id)
        if not 0 <= position < len(ids):
            raise StoreError(f"study {study_id} has no ablation {position}")
        ablation_id = int(ids[position])
        context_id, shards = self._shards(study_id)
        limits = self._num_shards(study_id)
        for number, shard in shards.items():
            if limits is not None and number >= limits[position]:
                break
            intact = self._intact(context_id, shard)
            for block in self._blocks(context_id, shard, ablation_id, ablation_id):
                changed = block.changes_of(ablation_id)
                if changed is not None and intact is not None:
                    yield intact, changed
                    break

    def compare(self, study_id: int, first: int, second: int, metric: str | None = None) -> Comparison:
        """Compare two ablations of a study, by their positions, on the images measured under both.

        The difference is D of the second minus D of the first, in the metric's unit: of accuracies with a paired
        interval and McNemar's exact test, of means with Student's t over the images whose changes are kept. Raises
        StudyError where they have no image in common.

        >>> compared = store.compare(1, 0, 1)
        >>> compared.difference, compared.num_images
        (0.0, 12)
        """
        from weanalysis.results.statistics import Comparison, compare_correctness, compare_values

        asked = self._metric(self.describe(study_id), metric)
        if asked.aggregate is not None:
            return self._compare_aggregated(study_id, first, second, asked)
        if not asked.counts_images:
            one, other = (self.value_changes(study_id, place, asked.statistic) for place in (first, second))
            one_id, other_id = one.pop("image_id"), other.pop("image_id")
            one_drop, other_drop = (asked.worse * (side["after"] - side["before"]) for side in (one, other))
            table = self.table(study_id, metric).iloc[[first, second]]
            if (table["num_images"].to_numpy() > [len(one_id), len(other_id)]).any():
                # Those that changed most are kept alone: the difference is known, how sure it is is not.
                apart = float(table["drop"].iloc[1] - table["drop"].iloc[0])
                return Comparison(apart, np.nan, np.nan, np.nan, int(table["num_images"].min()))
            return compare_values((one_id, one_drop), (other_id, other_drop))
        one, other = self.correctness(study_id, first, metric), self.correctness(study_id, second, metric)
        # D is what accuracy loses: D of the second minus D of the first is the first's accuracy minus the second's.
        return compare_correctness(other.index, other.to_numpy(), one.index, one.to_numpy())

    def _compare_aggregated(self, study_id: int, first: int, second: int, metric: Metric) -> Comparison:
        """Compare two ablations in a metric that is a function of all answers; NaN unless both saw the same images."""
        from weanalysis.results.statistics import Comparison, compare_linear

        assert metric.aggregate is not None
        for rows, _, after in self.answers(study_id, metric.statistic):
            if {first, second} <= set(rows.tolist()):
                places = [rows.tolist().index(one) for one in (first, second)]
                one, two = (metric.aggregate(after.of_networks([place])) for place in places)
                return compare_linear(one, two, metric.worse)
        return Comparison(np.nan, np.nan, np.nan, np.nan, 0)


def _metrics_of(about: Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics that a study may have: those of classes, where its images have one, and its caller's own."""
    own = {one["name"]: find_metric(one["name"]) for one in about.get("own_metrics") or ()}
    task = about.get("task") or CLASSIFICATION
    return own if task == NUMBERS else {**metrics_of_task(task), **own}


def _iou_metric(about: Mapping[str, Any], name: str) -> Metric:
    """The metric of one class of a study; raise StoreError where it has no such class."""
    of_class, classes = name.removeprefix(IOU_OF_CLASS), classes_of(about)
    if of_class not in classes:
        raise StoreError(f"no class of study {about['id']} is called {of_class!r}: choose from {', '.join(classes)}")
    return find_metric(name)


def _no_class(about: Mapping[str, Any]) -> str:
    """Say of a study that its images have no class."""
    return f"the images of study {about['id']} have no class{' but for each pixel' * (about['task'] == SEGMENTATION)}"


def _changed(
    intact: Intact,
    places: np.ndarray,
    classes: np.ndarray,
    correct: np.ndarray,
    right: Callable[[np.ndarray], np.ndarray],
) -> pd.DataFrame:
    """The images at these places of a shard, what the network said of them before and after, and if that was right."""
    values = (
        intact.image_ids[places],
        intact.targets[places],
        intact.predictions[places],
        classes,
        right(intact.correct[places]),
        right(correct),
    )
    return pd.DataFrame(dict(zip(CHANGED, values, strict=True)))
