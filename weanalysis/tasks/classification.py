"""Classification: logits and a class index give an answer, whether it is right, and the numbers of each image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weanalysis.errors import StudyError
from weanalysis.tasks.own import OwnMetric

# Rows of probabilities sum to 1 but for rounding.
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Classification:
    """How the outputs (N, classes) of a network are read: as logits, or as `probabilities`; and by an `own` metric."""

    probabilities: bool = False
    own: OwnMetric | None = None

    # An image counts among those of its class, and pairs of an image and an ablation can be screened.
    has_classes = True
    # How much of the engine's room for ties (`evaluate.checks`) is enough.
    tie_share = 1.0

    @classmethod
    def of(cls, outputs: Tensor) -> Classification:
        """Tell from outputs for some images whether they are probabilities: none outside [0, 1], and rows sum to 1."""
        if outputs.ndim != 2:
            return cls()
        outputs = outputs.float()
        within = bool(((outputs >= 0) & (outputs <= 1)).all())
        return cls(within and bool(((outputs.sum(1) - 1).abs() < _SUM_TOLERANCE).all()))

    def kept_classes(self, targets: Tensor) -> Tensor:
        """The class index of each image, (N,)."""
        return targets

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise StudyError for NaN among the intact network's outputs, or for a class that it does not have."""
        if outputs.isnan().any():
            raise StudyError("the intact network's outputs hold NaN, so nothing can be measured; check its weights")
        if int(targets.max()) >= outputs.shape[1]:
            raise StudyError(
                f"the data has class {int(targets.max())}, but the network's outputs are 0 to "
                f"{outputs.shape[1] - 1}; give data or weights with the same classes"
            )

    def answers(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The class of each image (−1: NaN), and its bits of correctness (`Metric.bit`): (N,) each."""
        outputs = outputs.float()
        invalid = outputs.isnan().any(1)
        predictions = torch.where(invalid, -1, outputs.argmax(1))
        top5 = (outputs > outputs.gather(1, targets[:, None])).sum(1) < 5
        return predictions, (predictions == targets).to(torch.uint8) + 2 * (top5 & ~invalid).to(torch.uint8)

    def near(self, outputs: Tensor, tolerance: float) -> Tensor:
        """Which images' answers hang on less than the tolerance, or are NaN, (N,)."""
        outputs = outputs.float()
        near = outputs.isnan().any(1)
        if tolerance > 0:
            largest = outputs.topk(min(6, outputs.shape[1]), dim=1).values
            near |= (largest[:, 0] - largest[:, min(1, largest.shape[1] - 1)]) < tolerance
            if largest.shape[1] == 6:
                near |= (largest[:, 4] - largest[:, 5]) < tolerance
        return near

    def statistics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The numbers of each image by their names, (N,) each, in float32.

        "loss" is the cross-entropy in nats, infinite where the target's probability is 0; "confidence" is the largest
        probability. Both are NaN where outputs that are read as probabilities are none. An own metric's are among them.

        >>> import torch
        >>> numbers = Classification().statistics(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        >>> [(name, round(float(values), 4)) for name, values in numbers.items()]
        [('loss', 0.6931), ('confidence', 0.5)]
        """
        own = {} if self.own is None else {self.own.about.statistic: self.own.numbers(outputs, targets)}
        outputs = outputs.float()
        if self.probabilities:
            outputs = torch.where(((outputs < 0) | (outputs > 1)).any(1, keepdim=True), torch.nan, outputs)
            loss = -outputs.gather(1, targets[:, None])[:, 0].log()
            return {"loss": loss, "confidence": outputs.max(1).values, **own}
        logs = nn.functional.log_softmax(outputs, 1)
        loss = nn.functional.nll_loss(logs, targets, reduction="none")
        return {"loss": loss, "confidence": logs.max(1).values.exp(), **own}

    def pixels(self, outputs: Tensor, targets: Tensor) -> None:
        """No pixel has a class of its own."""
