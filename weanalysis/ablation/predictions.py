"""What a kept study's network says of single images, intact and under one of its ablations, computed anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weanalysis.ablation.behaviour import Conduct
from weanalysis.ablation.evaluate import Evaluator
from weanalysis.ablation.studies import make_study
from weanalysis.cache import Cache, safe_name
from weanalysis.data import SOURCES, MaskData, Transform, load_data
from weanalysis.errors import DataError, StudyError, WeanalysisError
from weanalysis.kinds import kind_called
from weanalysis.models import load_network


@dataclass(frozen=True)
class ShownMask:
    """One image of a segmentation study: what it is called, the pixels that the network reads (H, W, 3) as uint8.

    And the class of each pixel (H, W): in `truth`, `before` and `after` the ablation.
    """

    label: str
    pixels: np.ndarray
    truth: np.ndarray
    before: np.ndarray
    after: np.ndarray


def shown_masks(cache: Cache, about: Mapping[str, Any], position: int, image_ids: Sequence[int]) -> list[ShownMask]:
    """Compute anew what the network of a kept study says of some images, intact and under one ablation.

    `about` is what `Store.describe` says of the study, `position` that of the ablation in its table. Raises DataError
    where the images are gone, StudyError where the network's weights are, or where these alone do not make it.
    """
    data = _data(cache, about)
    place = {int(number): served for served, number in enumerate(data.ids)}
    if missing := [number for number in image_ids if number not in place]:
        raise DataError(f"{data.spec} no longer has the image number {missing[0]}; it had it when it was measured")
    served = [place[number] for number in image_ids]
    before, after = _predicted(cache, about, position, torch.stack([data[one][0] for one in served]))
    return [
        ShownMask(
            data.label(one),
            data.transform.pixels(data.picture(one)).numpy().transpose(1, 2, 0),
            data.mask(one).numpy(),
            first,
            second,
        )
        for one, first, second in zip(served, before, after, strict=True)
    ]


def _data(cache: Cache, about: Mapping[str, Any]) -> MaskData:
    """The images of a study, as its network reads them."""
    spec, classes = str(about["data"]), tuple(about.get("classes") or ())
    if spec.partition(":")[0] not in SOURCES or not about.get("transform"):
        raise DataError(f"the study was run from Python on a dataset of its own ({spec}), which is not known here")
    transform = Transform.from_description(about["transform"])
    network = SimpleNamespace(num_classes=len(classes), classes=classes, synsets=None, transform=transform)
    data = load_data(spec, seed=int(about["seed"]), model=network, cache=cache)
    if not isinstance(data, MaskData):
        raise DataError(f"{spec} has no masks any more")
    return data


@torch.no_grad()
def _predicted(cache: Cache, about: Mapping[str, Any], position: int, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The class of each pixel, (N, H, W), by the intact network and under the ablation."""
    weights = cache.weights_file(safe_name(str(about["weights_hash"])))
    if not weights.is_file():
        raise StudyError("the weights of this study are no longer in the cache")
    kept = about.get("options") or {}
    try:
        net = load_network(str(weights)).net
        options = [one.name for one in kind_called(str(about["kind"])).options if one.name in kept]
        study = make_study(str(about["kind"]), net, **{name: kept[name] for name in options})
    except WeanalysisError as error:
        raise StudyError(f"the network of this study cannot be ablated anew ({error})") from error
    if not 0 <= position < len(study.ablations):
        raise StudyError("the network of this study cannot be ablated anew: it has other ablations now")
    evaluator = Evaluator(net, "naive", conduct=Conduct(output=tuple(about.get("output") or ())))
    outputs = (evaluator.logits(images), evaluator.logits(images, study.ablations[position]))
    before, after = (one.argmax(1).numpy() for one in outputs)
    return before, after
