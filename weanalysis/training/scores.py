"""What is added up of each batch of a run, and what it says of an epoch: of classes of images, or of their pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from weanalysis.data.masks import VOID


class Score(Protocol):
    """Sums over images, of which the first and the fourth are the loss and the number of images, in every process.

    `name` is the column of the score by which the best epoch is chosen, `label` its words, and `auxiliary` the weight
    of the losses of auxiliary classifiers.
    """

    name: str
    label: str
    auxiliary: float
    num_sums: int
    dtype: torch.dtype

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """The mean cross-entropy of a batch."""

    def total_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The sum over a batch of each image's cross-entropy."""

    def sums(self, loss: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        """What a batch adds, (num_sums,); `loss` is the sum over its images."""

    def means(self, sums: Sequence[float]) -> dict[str, float]:
        """The loss and the scores (percent) of what was added up, by their columns' names."""


class ClassScore:
    """Top-1 and top-5 accuracy of images (N,) with a class each."""

    name, label = "top1", "top-1"
    # The GoogLeNet paper's weight (C. Szegedy et al., CVPR 2015, section 5).
    auxiliary = 0.3
    num_sums, dtype = 4, torch.float32

    def __init__(self, num_classes: int) -> None:
        self._has_top5 = num_classes >= 5

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)

    def total_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, reduction="sum")

    def sums(self, loss: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
        num_images = torch.tensor(len(targets), device=loss.device)
        return torch.stack([loss, ranked[:, 0].sum(), ranked.sum(), num_images]).float()

    def means(self, sums: Sequence[float]) -> dict[str, float]:
        loss, top1, top5, num_images = sums
        top5 = top5 if self._has_top5 else math.nan
        return {"loss": loss / num_images, "top1": 100 * top1 / num_images, "top5": 100 * top5 / num_images}


class PixelScore:
    """Mean IoU of masks (N, H, W), over the classes that occur in truth; void pixels count nowhere."""

    name, label = "miou", "mean IoU"
    # H. Zhao et al., Pyramid Scene Parsing Network, CVPR 2017, section 3.3; torchvision's own recipe takes 0.5.
    auxiliary = 0.4
    # Counts of pixels are beyond what float32 tells apart.
    dtype = torch.float64

    def __init__(self, num_classes: int) -> None:
        self._num_classes, self.num_sums = num_classes, 4 + 3 * num_classes

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        total = F.cross_entropy(logits, targets, label_smoothing=smoothing, ignore_index=VOID, reduction="sum")
        return total / (targets != VOID).sum().clamp(min=1)

    def total_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.loss(logits, targets) * len(targets)

    def sums(self, loss: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
        labelled = targets != VOID
        true, predicted = targets[labelled], logits.argmax(1)[labelled]
        parts = (true[true == predicted], true, predicted)
        counts = [part.bincount(minlength=self._num_classes) for part in parts]
        nothing, num_images = loss.new_zeros(()), torch.tensor(len(targets), device=loss.device)
        first = torch.stack([loss, nothing, nothing, num_images.to(loss.dtype)])
        return torch.cat([first.to(self.dtype), *(each.to(self.dtype) for each in counts)])

    def means(self, sums: Sequence[float]) -> dict[str, float]:
        counts, size = sums[4:], self._num_classes
        right, true, predicted = (counts[low : low + size] for low in (0, size, 2 * size))
        ious = [r / (t + p - r) for r, t, p in zip(right, true, predicted, strict=True) if t > 0]
        return {"loss": sums[0] / sums[3], "miou": 100 * sum(ious) / len(ious) if ious else math.nan}


def score_for(task: str, num_classes: int) -> Score:
    """The score of a task's runs."""
    return PixelScore(num_classes) if task == "segmentation" else ClassScore(num_classes)
