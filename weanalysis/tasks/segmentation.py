"""Segmentation: logits and a mask give, for each image, how many pixels of each class are true, right and predicted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weanalysis.errors import StudyError
from weanalysis.tasks.own import OwnMetric
from weanalysis.tasks.pixels import VOID

__all__ = ["VOID", "Segmentation"]


@dataclass(frozen=True)
class Segmentation:
    """How the outputs (N, classes, H, W) of a network are read: as logits, or as `probabilities`.

    Targets are masks (N, H, W) of class indices, VOID where a pixel has no class. An `own` metric reads both too.

    Two images of two pixels, the last of which has no class; of three classes, all pixels are answered by the first:

    >>> outputs = torch.zeros(2, 3, 1, 2)
    >>> outputs[:, 0] = 1
    >>> targets = torch.tensor([[[0, 1]], [[0, VOID]]])
    >>> task = Segmentation()
    >>> task.check(outputs, targets)
    >>> task.pixels(outputs, targets)[0].tolist()
    [[1, 1, 0], [1, 0, 0], [2, 0, 0]]
    >>> task.statistics(outputs, targets)["loss"].round(decimals=2)
    tensor([1.0500, 0.5500])
    """

    probabilities: bool = False
    own: OwnMetric | None = None

    # No image is right or wrong as a whole.
    has_classes = False
    # The largest difference, which sets the room for ties, is one of many thousand pixels, of which many are near.
    tie_share = 0.1

    def kept_classes(self, targets: Tensor) -> Tensor:
        """What stands for the class of each image, (N,): 0."""
        return torch.zeros(len(targets), dtype=torch.int64, device=targets.device)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise StudyError for NaN among the intact network's outputs, another size, or a class that it lacks."""
        if outputs.isnan().any():
            raise StudyError("the intact network's outputs hold NaN, so nothing can be measured; check its weights")
        if outputs.shape[-2:] != targets.shape[-2:]:
            sizes = (f"{high} x {wide}" for high, wide in (outputs.shape[-2:], targets.shape[-2:]))
            raise StudyError(
                "the network answers {} places and the masks have {}: give a network that answers each pixel (bring "
                "its output to the size of its input)".format(*sizes)
            )
        labelled = targets[targets != VOID]
        largest = int(labelled.max()) if len(labelled) else 0
        if largest >= outputs.shape[1] or (len(labelled) and int(labelled.min()) < 0):
            label = largest if largest >= outputs.shape[1] else int(labelled.min())
            raise StudyError(
                f"a mask has the label {label}, and the network's classes are 0 to {outputs.shape[1] - 1} ({VOID}: "
                "void); give data or weights with the same classes"
            )

    def answers(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """What stands for the answer of each image (−1: NaN), and for its correctness: (N,) each, the same for all."""
        invalid = outputs.flatten(1).isnan().any(1)
        return -invalid.to(torch.int64), torch.zeros(len(outputs), dtype=torch.uint8, device=outputs.device)

    def near(self, outputs: Tensor, tolerance: float) -> Tensor:
        """Which images have a pixel whose class hangs on less than the tolerance, or NaN, (N,)."""
        outputs = outputs.float()
        near = outputs.flatten(1).isnan().any(1)
        if tolerance > 0 and outputs.shape[1] > 1:
            largest = outputs.topk(2, dim=1).values
            near |= ((largest[:, 0] - largest[:, 1]) < tolerance).flatten(1).any(1)
        return near

    def statistics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The numbers of each image by their names, (N,) each, in float32.

        "loss" is the mean cross-entropy of its pixels in nats, NaN for an image that has void ones alone. An own
        metric's are among them.
        """
        own = {} if self.own is None else {self.own.about.statistic: self.own.numbers(outputs, targets)}
        outputs = outputs.float()
        if self.probabilities:
            outputs = torch.where(((outputs < 0) | (outputs > 1)).any(1, keepdim=True), torch.nan, outputs)
            logs = outputs.log()
        else:
            logs = nn.functional.log_softmax(outputs, 1)
        loss = nn.functional.nll_loss(logs, targets, reduction="none", ignore_index=VOID)
        return {"loss": loss.flatten(1).sum(1) / (targets != VOID).flatten(1).sum(1), **own}

    def pixels(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """How many pixels of each image are of each class: in truth, right, and predicted, (N, 3, classes) int32.

        A pixel whose outputs are NaN is predicted to be of no class.

        >>> outputs = torch.tensor([[[[1.0, 0.0, 1.0]], [[0.0, 1.0, 0.0]]]])
        >>> Segmentation().pixels(outputs, torch.tensor([[[0, 0, VOID]]])).tolist()
        [[[2, 0], [1, 0], [1, 1]]]
        """
        num_images, num_classes = outputs.shape[:2]
        predicted = torch.where(outputs.isnan().any(1), num_classes, outputs.argmax(1))
        labelled = targets != VOID
        row = torch.arange(num_images, device=outputs.device)[:, None, None].expand_as(targets)

        def count(classes: Tensor, which: Tensor) -> Tensor:
            places = (row * (num_classes + 1) + classes)[which]
            return places.bincount(minlength=num_images * (num_classes + 1)).reshape(num_images, -1)[:, :num_classes]

        parts = ((targets, labelled), (predicted, labelled & (predicted == targets)), (predicted, labelled))
        return torch.stack([count(*part) for part in parts], 1).int()
