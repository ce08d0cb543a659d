"""A study looked at by its images: which of them hang on many ablations, on which, and what they are taken for then."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from weanalysis.results.answers import AllAnswers
from weanalysis.results.pixels import iou_of_images
from weanalysis.results.store.checked import Intact
from weanalysis.tasks import COUNTING, find_metric

# The columns in which images are told, by answers and by pixels, and those in which their ablations are.
OF_ANSWERS = ("image_id", "target", "before", "correct_before", "num_rows", "changed", "lost", "gained")
OF_PIXELS = ("image_id", "iou_before", "num_rows", "changed", "mean_drop", "largest_drop")

# Counts of pixels of so many changed images are looked at at once: of 21 classes, 63 numbers each.
_AT_ONCE = 2**14


class ImageAnswers(AllAnswers):
    """A results file as what became of each image under all ablations of a study."""

    def images(self, study_id: int, metric: str = "top1") -> pd.DataFrame:
        """One row an image of a study, in the order in which they were served: `OF_ANSWERS`.

        Its target, what the intact network answered (before) and whether that is right in the metric; under how many of
        the study's rows it was measured (num_rows), under how many of these the answer changed, turned wrong (lost)
        and turned right (gained). A stopping rule's images beyond the stop do not count. Of a screened study these are
        the changes that were computed: no image has fewer.

        Every image of this study hangs on the filter of its own colour alone:

        >>> store.images(1)[["image_id", "num_rows", "changed", "lost", "gained"]].head(2).values.tolist()
        [[0, 3, 1, 1, 0], [1, 3, 1, 1, 0]]
        """
        right = find_metric(metric, COUNTING).right
        ids, place = np.unique(self.ablation_ids(study_id), return_inverse=True)
        context_id, shards = self._shards(study_id)
        frames = []
        for number, shard in shards.items():
            if (intact := self._intact(context_id, shard)) is None:
                continue
            weight = self._rows_by_id(study_id, number, place, len(ids))
            was, num_images = right(intact.correct), len(intact.image_ids)
            sums = {name: np.zeros(num_images) for name in ("changed", "lost", "gained")}
            num_rows = 0.0
            for block, index in self._first_blocks(context_id, shard, ids):
                num_rows += weight[index[index >= 0]].sum()
                here = np.repeat(index, block.counts)
                weights = np.where(here >= 0, weight[here], 0.0)
                before, now = was[block.positions], right(block.correct)
                other = block.classes != intact.predictions[block.positions]
                for name, counted in (("changed", other), ("lost", before & ~now), ("gained", ~before & now)):
                    sums[name] += np.bincount(block.positions, weights * counted, num_images)
            columns = (intact.image_ids, intact.targets, intact.predictions, was, np.full(num_images, num_rows))
            frames.append(pd.DataFrame(dict(zip(OF_ANSWERS, (*columns, *sums.values()), strict=True))))
        counts = ["num_rows", "changed", "lost", "gained"]
        table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(OF_ANSWERS))
        return table.astype(dict.fromkeys(["image_id", "target", "before", *counts], np.int64))

    def confusion(self, study_id: int, position: int | None = None) -> pd.DataFrame:
        """How often a study's rows, or the one at `position`, turned an answer into another: before, after, count.

        Classes are numbers; the most frequent come first. Each row counts each image that it changed.

        >>> store.confusion(1).values.tolist()
        [[0, 1, 4], [1, 0, 4], [2, 0, 4]]
        """
        ids, place = np.unique(self.ablation_ids(study_id), return_inverse=True)
        chosen = np.ones(len(place), bool) if position is None else np.arange(len(place)) == position
        context_id, shards = self._shards(study_id)
        pairs: list[np.ndarray] = [np.empty((3, 0))]
        for number, shard in shards.items():
            if (intact := self._intact(context_id, shard)) is None:
                continue
            weight = self._rows_by_id(study_id, number, place, len(ids), chosen)
            for block, index in self._first_blocks(context_id, shard, ids):
                here = np.repeat(index, block.counts)
                weights = np.where(here >= 0, weight[here], 0.0)
                before = intact.predictions[block.positions]
                counts = (weights > 0) & (block.classes != before)
                both, of_pair = np.unique(
                    np.stack([before[counts], block.classes[counts]]), axis=1, return_inverse=True
                )
                if both.size:
                    pairs.append(np.vstack([both, np.bincount(of_pair.ravel(), weights[counts])]))
        table = pd.DataFrame(np.hstack(pairs).T.astype(np.int64), columns=["before", "after", "count"])
        table = table.groupby(["before", "after"], as_index=False)["count"].sum()
        return table.sort_values("count", ascending=False, kind="stable", ignore_index=True)

    def rows_changing(self, study_id: int, image_id: int, metric: str = "top1") -> pd.DataFrame:
        """The rows of a study that change the answer to an image: position, after (its class then), correct_after.

        >>> store.rows_changing(1, 5).values.tolist()
        [[2, 0, False]]
        """
        right = find_metric(metric, COUNTING).right
        ids, place = np.unique(self.ablation_ids(study_id), return_inverse=True)
        limits = self._num_shards(study_id)
        columns: list[np.ndarray] = [np.empty((3, 0), np.int64)]
        for context_id, number, shard, intact, at in self._of_image(study_id, image_id):
            counting = np.ones(len(place), bool) if limits is None else number < limits
            for block, index in self._first_blocks(context_id, shard, ids):
                here = np.repeat(index, block.counts)
                (changes,) = np.nonzero(
                    (block.positions == at) & (here >= 0) & (block.classes != intact.predictions[at])
                )
                for change in changes:
                    (rows,) = np.nonzero((place == here[change]) & counting)
                    after = np.full(len(rows), block.classes[change])
                    columns.append(np.stack([rows, after, np.full(len(rows), right(block.correct)[change])]))
        table = pd.DataFrame(np.hstack(columns).T, columns=["position", "after", "correct_after"])
        return table.astype({"correct_after": bool}).sort_values("position", ignore_index=True)

    def pixel_images(self, study_id: int) -> pd.DataFrame:
        """One row an image of a segmentation study, those whose IoU falls most on average first: `OF_PIXELS`.

        Its IoU in percent when intact, the mean over the classes that it has; under how many of the study's rows it was
        measured, how many of these changed any of its counts of pixels, and by how much its IoU falls: on average over
        all of them, and at the most.

        A network that answers the brighter of two colours, and, without its second filter, always the first:

        >>> from torch import tensor
        >>> two = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False)).eval()
        >>> two[0].weight.data = eye(2)[:, :, None, None]
        >>> scenes = [(eye(2)[:, mask], mask) for mask in (tensor([[0, 1]]), tensor([[1, 1]]))]
        >>> made = ablate(two, scenes, "channel", side="out", metric="miou", cache="pixels")
        >>> pixels = Store.open("pixels/results.sqlite")
        >>> pixels.pixel_images(1)[["image_id", "iou_before", "changed", "mean_drop", "largest_drop"]].values.tolist()
        [[1.0, 100.0, 1.0, 50.0, 100.0], [0.0, 100.0, 1.0, 37.5, 75.0]]
        """
        ids, place = np.unique(self.ablation_ids(study_id), return_inverse=True)
        context_id, shards = self._shards(study_id)
        frames = []
        for number, shard in shards.items():
            answers, before = self._intact(context_id, shard), self._intact_pixels(context_id, shard)
            if answers is None or before is None:
                continue
            weight = self._rows_by_id(study_id, number, place, len(ids))
            ious, num_images, num_rows = iou_of_images(before), len(before), 0.0
            changed, fell, most = np.zeros(num_images), np.zeros(num_images), np.zeros(num_images)
            for _, index, _, kept in self._pixel_blocks(context_id, shard, ids):
                num_rows += weight[index[index >= 0]].sum()
                of_row = index[kept.of_change]
                weights = np.where(of_row >= 0, weight[of_row], 0.0)
                for low in range(0, len(weights), _AT_ONCE):
                    some = slice(low, low + _AT_ONCE)
                    images, counts = kept.positions[some], weights[some]
                    drop = np.where(counts > 0, ious[images] - _iou_after(before[images], kept.changes[some]), 0.0)
                    changed += np.bincount(images, counts, num_images)
                    fell += np.bincount(images, counts * np.nan_to_num(drop), num_images)
                    np.fmax.at(most, images, drop)
            mean = fell / num_rows if num_rows else np.full(num_images, np.nan)
            columns = (answers.image_ids, ious, np.full(num_images, num_rows), changed, mean, most)
            frames.append(pd.DataFrame(dict(zip(OF_PIXELS, columns, strict=True))))
        table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(OF_PIXELS))
        table = table.astype(dict.fromkeys(["image_id", "num_rows", "changed"], np.int64))
        return table.sort_values("mean_drop", ascending=False, kind="stable", ignore_index=True)

    def rows_moving(self, study_id: int, image_id: int) -> pd.DataFrame:
        """The rows of a segmentation study that change an image's pixels: position, iou_after and drop in percent.

        Those by which its IoU falls most come first.

        >>> Store.open("pixels/results.sqlite").rows_moving(1, 0).values.tolist()
        [[1.0, 25.0, 75.0]]
        """
        ids, place = np.unique(self.ablation_ids(study_id), return_inverse=True)
        columns: list[np.ndarray] = [np.empty((3, 0))]
        for context_id, _, shard, _, at in self._of_image(study_id, image_id):
            for _, index, before, kept in self._pixel_blocks(context_id, shard, ids):
                of_row = index[kept.of_change]
                (changes,) = np.nonzero((kept.positions == at) & (of_row >= 0))
                own = before[[at]]
                after = _iou_after(own.repeat(len(changes), 0), kept.changes[changes])
                for row, iou in zip(of_row[changes], after, strict=True):
                    (rows,) = np.nonzero(place == row)
                    drop = float(iou_of_images(own)[0] - iou)
                    columns.append(np.stack([rows, np.full(len(rows), iou), np.full(len(rows), drop)]))
        table = pd.DataFrame(np.hstack(columns).T, columns=["position", "iou_after", "drop"])
        return table.astype({"position": np.int64}).sort_values(
            "drop", ascending=False, kind="stable", ignore_index=True
        )

    def _rows_by_id(
        self, study_id: int, number: int, place: np.ndarray, num_ids: int, chosen: np.ndarray | None = None
    ) -> np.ndarray:
        """How many of a study's rows each ablation is, of those that shard `number` counts for."""
        limits = self._num_shards(study_id)
        counting = np.ones(len(place), bool) if limits is None else number < limits
        if chosen is not None:
            counting &= chosen
        return np.bincount(place[counting], minlength=num_ids).astype(float)

    def _of_image(self, study_id: int, image_id: int) -> Iterator[tuple[int, int, tuple[int, int], Intact, int]]:
        """The shard of an image, if any: context, number, begin and end, intact answers, and the image's place."""
        context_id, shards = self._shards(study_id)
        for number, shard in shards.items():
            intact = self._intact(context_id, shard)
            if intact is not None and len(places := np.flatnonzero(intact.image_ids == image_id)):
                yield context_id, number, shard, intact, int(places[0])
                return


def _iou_after(before: np.ndarray, changes: np.ndarray) -> np.ndarray:
    """The IoU of images (M, 3, C) whose right and predicted pixels changed by (M, 2, C), in percent."""
    after = before.copy()
    after[:, 1:] += changes
    return iou_of_images(after)
