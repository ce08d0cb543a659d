"""A task without classes: outputs and targets are whatever a caller's own metric reads, of which its numbers follow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weanalysis.errors import StudyError
from weanalysis.tasks.classification import Classification
from weanalysis.tasks.own import OwnMetric
from weanalysis.tasks.segmentation import Segmentation


@dataclass(frozen=True)
class Numbers:
    """Outputs and targets, (N, ...) each, of which an `own` metric gives a number an image. No image has a class."""

    own: OwnMetric

    has_classes = False
    tie_share = 1.0

    def kept_classes(self, targets: Tensor) -> Tensor:
        """What stands for the class of each image, (N,): 0."""
        return torch.zeros(len(targets), dtype=torch.int64, device=targets.device)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise StudyError for NaN among the intact network's outputs."""
        if outputs.isnan().any():
            raise StudyError("the intact network's outputs hold NaN, so nothing can be measured; check its weights")

    def answers(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What stands for the answer of each image (−1: NaN), and for its correctness: (N,) each, the same for all."""
        invalid = self.near(outputs)
        return -invalid.to(torch.int64), torch.zeros(len(outputs), dtype=torch.uint8, device=outputs.device)

    def near(self, outputs: Tensor, tolerance: float = 0.0) -> Tensor:
        """Which images are to be decided by the whole network, (N,): those that hold NaN."""
        return outputs.isnan().reshape(len(outputs), -1).any(1)

    def statistics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The numbers of each image by their name, (N,), in float32."""
        return {self.own.about.statistic: self.own.numbers(outputs, targets)}

    def pixels(self, outputs: Tensor, targets: Tensor) -> None:
        """No pixel has a class."""


# What a network's outputs and targets may mean.
OutputTask = Classification | Segmentation | Numbers
