"""A few answers of a task that are measured once more: elsewhere, the naive way, and in batches of another size.

An answer must not hang on who measured it, nor on how many images were run at once. `Sample` is what a task keeps of
its answers for that, `Repeat` what came of measuring them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from weanalysis.ablation.studies import Ablation

if TYPE_CHECKING:
    from weanalysis.ablation.evaluate.decisions import Decisions
    from weanalysis.ablation.evaluate.network import Network

# So many answers of a task are kept, but not more than one in so many, since that is what it costs to repeat them.
MOST_REPEATED, _ONE_IN = 8, 200

# Of outputs of more numbers than that, only some are kept, evenly spaced.
_MOST_NUMBERS = 4096


@dataclass(frozen=True)
class Sample:
    """Answers under one ablation, the `place`-th of a task, as they were measured with `at_once` images in a batch.

    The batch was the images `start` … of a data set, `size` of them; these are the images at `rows` (k,) of it, with
    some numbers of their `outputs` (k, n), `predictions` and `correct` (k,), and counts of `pixels` where there are.
    """

    place: int
    start: int
    size: int
    at_once: int
    rows: np.ndarray
    outputs: np.ndarray
    predictions: np.ndarray
    correct: np.ndarray
    pixels: np.ndarray | None = None


@dataclass(frozen=True)
class Repeat:
    """What came of measuring `num_answers` again, `at_once` of them in a batch.

    Outputs differed by `difference` at most; `is_rounding` says whether that is no more than arithmetic explains. Where
    it is, `num_ties` answers are others; where it is not, `num_differed`.
    """

    num_answers: int
    num_ties: int
    num_differed: int
    difference: float
    is_rounding: bool
    at_once: int


class Sampler:
    """Takes a sample of a task's answers while these are measured: of the first ablation that changes one."""

    def __init__(self, num_answers: int):
        self._num = int(np.clip(num_answers // _ONE_IN, 1, MOST_REPEATED))
        self._ablation: Ablation | None = None
        self._sample: dict[str, Any] = {}
        self.is_done = False

    def offer(
        self,
        ablation: Ablation,
        batch: tuple[int, int, int],
        rows: np.ndarray,
        outputs: Tensor,
        decisions: Decisions,
        changed: np.ndarray,
    ) -> None:
        """Keep some of the answers that an ablation gave to images at `rows` (k,) of a batch (start, size, at once).

        Those at the places `changed` in outputs and decisions are not those of the intact network.
        """
        start, size, at_once = batch
        if self.is_done or (self._ablation is not None and not len(changed)) or not len(rows):
            return
        # So that they are run in a batch of another size.
        num = max(1, min(self._num, at_once - 1))
        others = np.setdiff1d(np.arange(len(rows)), changed)
        others = np.random.default_rng([start, size]).permutation(others)
        chosen = np.concatenate([changed[: max(1, num // 2)], others])[:num].astype(np.int64)
        index = torch.from_numpy(chosen).to(outputs.device)
        self._ablation, self.is_done = ablation, len(changed) > 0
        self._sample = {
            "start": start,
            "size": size,
            "at_once": at_once,
            "rows": rows[chosen],
            "outputs": numbers_of(outputs[index]),
            "predictions": decisions.predictions[index].cpu().numpy(),
            "correct": decisions.correct[index].cpu().numpy(),
            "pixels": None if decisions.pixels is None else decisions.pixels[index].cpu().numpy(),
        }

    def sample(self, ablations: list[Ablation]) -> Sample | None:
        """What was taken, by the place of its ablation among these; None where nothing was offered."""
        return None if self._ablation is None else Sample(ablations.index(self._ablation), **self._sample)


def numbers_of(outputs: Tensor) -> np.ndarray:
    """Some numbers of each image's outputs (N, ...), evenly spaced, (N, n): all where these are few."""
    flat = outputs.detach().reshape(len(outputs), -1)
    step = -(-flat.shape[1] * len(flat) // _MOST_NUMBERS) or 1
    return flat[:, ::step].float().cpu().numpy()


def measure_again(
    network: Network, sample: Sample, ablation: Ablation, data: Any, most_rounding: tuple[float, float]
) -> Repeat:
    """Measure a sample the naive way on images read anew, and compare; `most_rounding` is relative, and of an eps.

    A network whose answers hang on the batch is shown the same batch again. One image that was alone has company.
    """
    k, start, rows = len(sample.rows), sample.start, sample.rows.tolist()
    if network.conduct.whole_passes:
        images, targets = data.batch(start, start + sample.size)
        kept = torch.tensor(rows)
    else:
        places = [start + row for row in rows]
        if sample.at_once == 1:
            places += [place for place in (places[0] + 1, places[0] - 1) if 0 <= place < len(data)][:1]
        read = [data.batch(place, place + 1) for place in places]
        images, targets = torch.cat([one for one, _ in read]), torch.cat([one for _, one in read])
        kept = torch.arange(k)
    kept = kept.to(network.device)
    whole = network.naive(network.placed(images), ablation, start)[kept]
    again = network.decide(whole, targets.to(network.device)[kept])
    new, old = numbers_of(whole), sample.outputs
    difference = np.abs(np.nan_to_num(new) - np.nan_to_num(old)).max(1, initial=0)
    share, num_roundings = most_rounding
    most = min(share, num_roundings * torch.finfo(network.dtype).eps) * np.abs(np.nan_to_num(new)).max(initial=0)
    beyond = (difference > most) | (np.isnan(new) != np.isnan(old)).any(1)
    differs = again.predictions.cpu().numpy() != sample.predictions
    differs |= again.correct.cpu().numpy() != sample.correct
    if again.pixels is not None and sample.pixels is not None:
        differs |= (again.pixels.cpu().numpy() != sample.pixels).any((1, 2))
    return Repeat(
        num_answers=k,
        num_ties=int((differs & ~beyond).sum()),
        num_differed=int((differs & beyond).sum()),
        difference=float(difference.max(initial=0)),
        is_rounding=not beyond.any(),
        at_once=len(images),
    )
