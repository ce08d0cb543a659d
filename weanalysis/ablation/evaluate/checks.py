"""The fast ways held to the naive one while a task is measured: what differs by rounding, and what by a fault."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from weanalysis.ablation.copies import first_line
from weanalysis.ablation.evaluate.decisions import Decisions
from weanalysis.ablation.evaluate.repeats import Sampler
from weanalysis.ablation.graph import Untraceable
from weanalysis.ablation.studies import Ablation
from weanalysis.devices import is_out_of_memory
from weanalysis.errors import WeanalysisError

# An image whose decision hangs on less than this many times the largest difference seen between the two ways
# is decided by the naive way. What is seen later may be larger by the second number: the first leaves room for that.
TIE_FACTOR, _ROOM = 100.0, 10.0

# Logits that differ by more than this many roundings, or by this share of the largest one, differ by a fault.
MOST_ROUNDINGS, MOST_SHARE = 2.0**14, 0.1


class Unsure(Exception):
    """Answers of the fast way in the task in hand may be wrong: it must be measured again.

    `layers` are those that are measured the naive way from now on; none where a wider tolerance is enough.
    """

    def __init__(self, layers: tuple[str, ...], reason: str):
        super().__init__(reason)
        self.layers, self.reason = layers, reason


class Checks:
    """What the answers of a task that were computed both ways said so far.

    `tolerance` is by how much a decision must be clear to be believed, `largest_difference` that of logits. Of
    `num_checked` answers `num_differed` differed, those of earlier tries counted in. `tie_share` of the
    usual room for ties is enough for the task. The `sampler` keeps some of `num_answers` to be measured once more.
    """

    def __init__(
        self,
        tolerance: float = 0.0,
        largest_difference: float = 0.0,
        num_differed: int = 0,
        tie_share: float = 1.0,
        num_answers: int = 0,
    ):
        self.tolerance, self.largest_difference = tolerance, largest_difference
        self._tie_share = tie_share
        self.sampler = Sampler(num_answers)
        self.num_checked, self.num_differed = 0, num_differed

    def compare(self, logits: Tensor, whole: Tensor, layers: tuple[str, ...]) -> float:
        """Widen the tolerance by what logits of both ways differ; return the difference.

        Raises Unsure where that is no rounding.
        """
        difference = (whole - logits).abs().nan_to_num().max().item()
        largest, eps = whole.abs().nan_to_num().max().item(), torch.finfo(logits.dtype).eps
        fault = bool((whole.isnan() != logits.isnan()).any())
        if fault or difference > min(MOST_SHARE, MOST_ROUNDINGS * eps) * largest:
            raise Unsure(
                layers,
                f"the fast way gives other logits than the whole network (by up to {difference:.2g}, of {largest:.2g})",
            )
        self.largest_difference = max(self.largest_difference, difference)
        self.tolerance = max(self.tolerance, TIE_FACTOR * self._tie_share * difference, 16 * eps * largest)
        return difference

    def compare_answers(
        self, logits: Tensor, whole: Tensor, ablation: Ablation, decisions: Decisions, naive: Decisions
    ) -> None:
        """Hold the fast way's logits and decisions to the naive ones; raise Unsure where others are not safe."""
        tolerance = self.tolerance
        difference = self.compare(logits, whole, ablation.layers)
        self.count(naive.differs(decisions).cpu().numpy(), ablation)
        if difference * TIE_FACTOR * self._tie_share > _ROOM * tolerance:
            raise Unsure((), "rounding is larger than it seemed")

    def count(self, differs: np.ndarray, ablation: Ablation) -> None:
        """Count answers that were checked; raise Unsure where one differs."""
        self.num_checked += len(differs)
        if num_differing := int(differs.sum()):
            self.num_differed += num_differing
            raise Unsure(
                ablation.layers, f"{num_differing} of {len(differs)} answers checked differ from the whole network's"
            )


@contextmanager
def unsure_where_it_fails(layers: tuple[str, ...]) -> Iterator[None]:
    """Give the fast way up for these layers where it raises: a hook may count on the whole of an activation."""
    try:
        yield
    except (WeanalysisError, Untraceable):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise Unsure(layers, f"the fast way fails ({type(error).__name__}: {first_line(error)})") from error
