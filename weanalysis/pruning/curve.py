"""What pruned networks score on the same images as the intact one: of classes of images, or of their pixels."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
from torch import Tensor, nn, no_grad

from weanalysis.ablation.behaviour import Conduct
from weanalysis.ablation.evaluate import Decisions, logits_of
from weanalysis.data import check_targets
from weanalysis.devices import precision
from weanalysis.results.statistics import adjust_bh, chance_note, drop_table, linear_columns, mean_table
from weanalysis.tasks import METRICS, SEGMENTATION
from weanalysis.tasks.classification import Classification
from weanalysis.tasks.numbers import OutputTask
from weanalysis.tasks.pixels import PixelCounts
from weanalysis.tasks.segmentation import Segmentation

_COLUMNS = ["intact", "ablated", "drop", "drop_low", "drop_high", "p_value", "q_value", "num_images", "num_flipped"]


class _Tally(Protocol):
    """Adds up, batch by batch, what the intact network and the others decide."""

    task: OutputTask

    def check(self, images: Any, outputs: Tensor, targets: Tensor) -> None:
        """Raise WeanalysisError where the first batch's targets are not of the network's classes."""

    def add(self, decisions: Sequence[Decisions], targets: Tensor) -> None:
        """Add a batch: what the intact network decides, then what the others do."""

    def table(self, num_images: int, say: Callable[[str], None]) -> pd.DataFrame:
        """A row a pruned network."""


class _Classes:
    """Which images the networks have right."""

    def __init__(self, probabilities: bool, num_pruned: int):
        self.task: OutputTask = Classification(probabilities)
        self._lost, self._gained = np.zeros(num_pruned, int), np.zeros(num_pruned, int)
        self._num_correct, self._num_classes = 0, 0

    def check(self, images: Any, outputs: Tensor, targets: Tensor) -> None:
        self._num_classes = outputs.shape[1]
        check_targets(images, self._num_classes)

    def add(self, decisions: Sequence[Decisions], targets: Tensor) -> None:
        intact, *others = [one.predictions == targets for one in decisions]
        self._num_correct += int(intact.sum())
        for place, own in enumerate(others):
            self._lost[place] += int((intact & ~own).sum())
            self._gained[place] += int((~intact & own).sum())

    def table(self, num_images: int, say: Callable[[str], None]) -> pd.DataFrame:
        counts = {"num_correct": self._num_correct, "lost": self._lost, "gained": self._gained}
        table = drop_table(pd.DataFrame({"num_images": num_images, **counts}))
        table["num_flipped"] = table["lost"] + table["gained"]
        if note := chance_note(self._num_correct, num_images, self._num_classes):
            say(note)
        return table[_COLUMNS]


class _Pixels:
    """How many pixels of each class the networks have right."""

    def __init__(self, probabilities: bool):
        self.task: OutputTask = Segmentation(probabilities)
        self._counts: list[np.ndarray] = []

    def check(self, images: Any, outputs: Tensor, targets: Tensor) -> None:
        Segmentation().check(outputs, targets)

    def add(self, decisions: Sequence[Decisions], targets: Tensor) -> None:
        self._counts.append(np.stack([one.pixels.cpu().numpy() for one in decisions if one.pixels is not None]))

    def table(self, num_images: int, say: Callable[[str], None]) -> pd.DataFrame:
        metric, counts = METRICS["miou"], np.concatenate(self._counts, 1)
        assert metric.aggregate is not None
        networks = PixelCounts(counts[0, :, 0], counts[:, :, 1], counts[:, :, 2])
        before = metric.aggregate(networks.of_networks([0]))
        after = metric.aggregate(networks.of_networks(list(range(1, len(counts)))))
        table = linear_columns(before, after, metric.worse, 0.95)
        return table.assign(q_value=adjust_bh(table["p_value"]), num_flipped=np.nan)[_COLUMNS]


def curve_table(
    nets: Sequence[nn.Module],
    conduct: Conduct,
    images: Any,
    device: str,
    batch_size: int,
    report: Callable[[int, int, float], None] | None,
    say: Callable[[str], None],
) -> pd.DataFrame:
    """Compare each other network with the first one over all images: its score, and its mean loss; see `run.Pruned`."""
    intact, num_pruned = copy.deepcopy(nets[0]).to(device).eval(), len(nets) - 1
    tally: _Tally = (
        _Pixels(conduct.probabilities) if images.task == SEGMENTATION else _Classes(conduct.probabilities, num_pruned)
    )
    losses = np.zeros((3, num_pruned))
    done, began = 0, time.perf_counter()
    while done < len(images):
        batch, targets = (tensor.to(device) for tensor in images.batch(done, min(done + batch_size, len(images))))
        with no_grad(), precision(batch.device):
            outputs = [logits_of(net(batch), conduct.output) for net in (intact, *nets[1:])]
        if done == 0:
            tally.check(images, outputs[0], targets)
        decisions = [Decisions.of(logits, targets, task=tally.task) for logits in outputs]
        tally.add(decisions, targets)
        loss, *others = (one.values["loss"].double().cpu().numpy() for one in decisions)
        apart = np.stack(others) - loss
        losses += [np.full(len(others), loss.sum()), apart.sum(1), (apart**2).sum(1)]
        done += len(targets)
        if report:
            report(done, len(images), (time.perf_counter() - began) / done * (len(images) - done))
    return tally.table(done, say).join(_loss_columns(done, *losses))


def _loss_columns(num_images: int, intact: np.ndarray, change: np.ndarray, squares: np.ndarray) -> pd.DataFrame:
    """What becomes of the mean loss, from sums over the images: a row a pruned network."""
    moments = pd.DataFrame({"num_images": num_images, "intact": intact, "change": change, "squares": squares})
    table = mean_table(moments, METRICS["loss"].worse)
    names = {"intact": "loss_intact", "ablated": "loss", "drop": "loss_drop", "drop_low": "loss_low"}
    names["drop_high"] = "loss_high"
    return table[list(names)].rename(columns=names)
