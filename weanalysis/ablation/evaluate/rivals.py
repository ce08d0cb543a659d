"""Whom the label of an image competes with, and by how much it leads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# How many classes may stand above the label of a right answer.
_RIVALS = {"top1": 1, "top5": 5}


@dataclass(frozen=True)
class Rivals:
    """Whom each image's label competes with, told from the intact logits: its best rivals (N, k), and if it is right.

    k is 1, or 5 for top-5: an answer is right as long as the last of them stays below the label.
    """

    best: Tensor
    right: Tensor

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor, metric: str) -> Rivals:
        """Find them; logits (N, classes), targets (N,)."""
        others = logits.detach().float().scatter(1, targets[:, None], -torch.inf)
        best = others.topk(_RIVALS[metric], dim=1).indices
        own = logits.detach().gather(1, targets[:, None])
        return cls(best, (own > logits.detach().gather(1, best[:, -1:]))[:, 0])

    def rows(self, rows: Tensor) -> Rivals:
        """Those of some images."""
        return Rivals(self.best[rows], self.right[rows])

    def margins(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """By how much the label leads, (N,) each: before the last of its best rivals, and before a second one.

        A right answer becomes wrong only where one of the two falls below 0, and a wrong one right only where one of
        them rises above: the second one is the best of all others where the answer is right, and the worst of the
        better rivals where it is wrong; there is none for a wrong top-1 answer, whose second margin is infinite.
        """
        logits = logits.float()
        own = logits.gather(1, targets[:, None])
        of_best = own - logits.gather(1, self.best)
        beyond = own - logits.scatter(1, torch.cat([targets[:, None], self.best], 1), -torch.inf)
        better = of_best[:, :-1].amax(1) if self.best.shape[1] > 1 else torch.full_like(own[:, 0], -torch.inf)
        return of_best[:, -1], torch.where(self.right, beyond.amin(1), better)
