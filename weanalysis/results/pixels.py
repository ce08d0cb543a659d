"""What each network of a segmentation study says of each image, as counts of pixels by class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from weanalysis.results.counts import Counts
from weanalysis.tasks import Metric
from weanalysis.tasks.pixels import PixelCounts, class_ious

# The columns in which changed images are told: IoU in percent, the mean over the classes that the image has.
IOU_CHANGED = ("image_id", "iou_before", "iou_after", "drop", "pixels_changed")


class PixelAnswers(Counts):
    """A results file as what each network answered of the pixels of each image.

    A network that answers the brighter of two colours, and, without its second filter, always the first:

    >>> from torch import eye, nn, tensor
    >>> from weanalysis import Store, ablate
    >>> net = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False)).eval()
    >>> net[0].weight.data = eye(2)[:, :, None, None]
    >>> masks = [tensor([[k, 1]]) for k in (0, 1)]
    >>> scenes = [(eye(2)[:, mask], mask) for mask in masks]
    >>> table = ablate(net, scenes, "channel", side="out", metric="miou", cache="pixels")
    >>> store = Store.open("pixels/results.sqlite")
    >>> table["drop"].tolist()
    [0.0, 87.5]
    """

    def _pixels_of(
        self, context_id: int, shard: tuple[int, int], ids: np.ndarray, classes: tuple[str, ...]
    ) -> tuple[PixelCounts, PixelCounts]:
        """Of one shard: the intact answers, and those under the ablations `ids` (A,)."""
        before = right = predicted = np.empty(0, np.int64)
        for _, index, intact, kept in self._pixel_blocks(context_id, shard, ids):
            if not len(before):
                before = intact
                right, predicted = (np.repeat(intact[None, :, which], len(ids), 0) for which in (1, 2))
            row = index[kept.of_change]
            here = row >= 0
            right[row[here], kept.positions[here]] += kept.changes[here, 0]
            predicted[row[here], kept.positions[here]] += kept.changes[here, 1]
        assert len(before)
        true = before[:, 0]
        return (
            PixelCounts(true, before[None, :, 1], before[None, :, 2], classes),
            PixelCounts(true, right, predicted, classes),
        )

    def intact_value(self, study_id: int, metric: Metric) -> float:
        """What the intact network has in a metric of pixels, on all images that are there; NaN without any.

        >>> from weanalysis.tasks import find_metric
        >>> store.intact_value(1, find_metric("miou"))
        100.0
        """
        context_id, shards = self._shards(study_id)
        classes, parts = classes_of(self.describe(study_id)), []
        for shard in shards.values():
            intact = self._intact_pixels(context_id, shard)
            if intact is not None:
                parts.append(PixelCounts(intact[:, 0], intact[None, :, 1], intact[None, :, 2], classes))
        assert metric.aggregate is not None
        return float(metric.aggregate(PixelCounts.joined(parts)).values[0]) if parts else math.nan

    def pixel_changes(self, study_id: int, position: int) -> pd.DataFrame:
        """The images of which the ablation at `position` changed how many pixels are of a class: `IOU_CHANGED`.

        IoU is the mean over the classes that the image has, in percent; `drop` is its decrease, `pixels_changed` how
        many pixels at least have another class. Those that fell most come first.

        >>> store.pixel_changes(1, 1)[["image_id", "iou_before", "iou_after", "pixels_changed"]].values.tolist()
        [[1.0, 100.0, 0.0, 2.0], [0.0, 100.0, 25.0, 1.0]]
        """
        ids = self.ablation_ids(study_id)[[position]]
        context_id, shards = self._shards(study_id)
        columns_of: dict[str, list[np.ndarray]] = {name: [] for name in IOU_CHANGED}
        for shard in shards.values():
            for _, index, before, kept in self._pixel_blocks(context_id, shard, ids):
                chosen = index[kept.of_change] >= 0
                places, changes = kept.positions[chosen], kept.changes[chosen]
                answers = self._intact(context_id, shard)
                if answers is None or not len(places):
                    continue
                after = before[places].copy()
                after[:, 1:] += changes
                ious = [iou_of_images(each) for each in (before[places], after)]
                moved = np.maximum(changes[:, 1], 0).sum(1)
                columns = (answers.image_ids[places], *ious, ious[0] - ious[1], moved)
                for name, values in zip(IOU_CHANGED, columns, strict=True):
                    columns_of[name].append(values)
        table = pd.DataFrame({name: np.concatenate([np.empty(0), *parts]) for name, parts in columns_of.items()})
        return table.astype({"image_id": np.int64}).sort_values("drop", ascending=False, ignore_index=True)

    def class_table(self, study_id: int, position: int) -> pd.DataFrame:
        """The IoU of each class, intact and under the ablation at `position`, in percent, over the images that it has.

        Columns class, num_images (that have the class), before, after and drop; NaN for a class that occurs nowhere.

        >>> store.class_table(1, 1)[["class", "before", "after"]].round(1).values.tolist()
        [['0', 100.0, 25.0], ['1', 100.0, 0.0]]
        """
        ids = self.ablation_ids(study_id)[[position]]
        about = self.describe(study_id)
        context_id, shards = self._shards(study_id)
        measured = [shard for shard in shards.values() if np.isin(ids, self.done(context_id, *shard, "pixels")).all()]
        columns = ["class", "num_images", "before", "after", "drop"]
        if not measured:
            return pd.DataFrame(columns=columns)
        parts = [self._pixels_of(context_id, shard, ids, classes_of(about)) for shard in measured]
        before, after = (PixelCounts.joined(each) for each in zip(*parts, strict=True))
        one, two = class_ious(before)[0], class_ious(after)[0]
        occurs = before.true.any(0)
        names = [*before.classes, *map(str, range(len(before.classes), len(one)))]
        values = (names, (before.true > 0).sum(0), np.where(occurs, one, np.nan), np.where(occurs, two, np.nan))
        table = pd.DataFrame(dict(zip(columns, values, strict=False)))
        return table.assign(drop=table["before"] - table["after"])


def classes_of(about: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a study's classes, as far as they are known."""
    return tuple(about.get("classes") or ())


def iou_of_images(counts: np.ndarray) -> np.ndarray:
    """The mean IoU of each image in percent, over the classes that it has, from (N, 3, C) counts; NaN without any."""
    true, right, predicted = (counts[:, which].astype(np.float64) for which in range(3))
    has = true > 0
    iou = np.divide(right, true + predicted - right, out=np.zeros_like(true), where=has)
    num_classes = has.sum(1)
    return np.divide(100 * iou.sum(1), num_classes, out=np.full(len(true), np.nan), where=num_classes > 0)
