"""Classification: logits and a class index give an answer, whether it is right, and its loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

# Rows of probabilities sum to 1 but for rounding.
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Classification:
    """How the outputs (N, classes) of a network are read: as logits, or as `probabilities`."""

    probabilities: bool = False

    @classmethod
    def of(cls, outputs: Tensor) -> Classification:
        """Tell from outputs for some images whether they are probabilities: none outside [0, 1], and rows sum to 1."""
        outputs = outputs.float()
        within = bool(((outputs >= 0) & (outputs <= 1)).all())
        return cls(within and bool(((outputs.sum(1) - 1).abs() < _SUM_TOLERANCE).all()))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The cross-entropy of each image in nats, (N,), in float32; infinite where the target's probability is 0.

        >>> import torch
        >>> Classification().loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        tensor([0.6931])
        """
        if self.probabilities:
            return -outputs.float().gather(1, targets[:, None])[:, 0].log()
        return nn.functional.cross_entropy(outputs.float(), targets, reduction="none")
