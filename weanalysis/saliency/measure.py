"""The whole saliency map of a network: every criterion, for every weight, kernel, channel and layer at once, kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from weanalysis.ablation.inputs import as_model, multipliers_of
from weanalysis.ablation.preparation import Prepared, prepare_on
from weanalysis.ablation.studies import Layer, find_layers
from weanalysis.ablation.studies.layers import select_layers
from weanalysis.cache import Cache, find_cache
from weanalysis.data import GivenImages, ImageData, as_images
from weanalysis.devices import find_devices
from weanalysis.errors import StudyError, unknown_name
from weanalysis.models import Model
from weanalysis.provenance import called_as
from weanalysis.results.saliency import WEIGHT, MappedLayer, SaliencyMaps, load_maps, save_maps
from weanalysis.results.store import content_key
from weanalysis.saliency.criteria import CRITERIA
from weanalysis.saliency.evidence import Evidence, batch_norms_after, gather

# Part of every key: maps of another version are never reused.
SALIENCY_VERSION = 1

_FROM_DATA = ("gradients", "activations")


@dataclass(frozen=True)
class MeasuredMaps:
    """Saliency maps, with those of single weights, and where they are kept; `lacking` criteria are NaN everywhere.

    >>> from torch import rand
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> measured = saliency_maps(net, [(rand(3, 4, 4), k % 4) for k in range(8)], "l1,bn-gamma", cache="cache")
    >>> measured.maps.of("l1", "filter", "0").shape, measured.weights.of("l1", "weight", "0").shape
    ((4,), (4, 3, 3, 3))
    >>> list(measured.lacking), measured.reused
    (['bn-gamma'], False)
    """

    maps: SaliencyMaps
    weights: SaliencyMaps
    path: Path
    lacking: dict[str, str]
    reused: bool


def parse_criteria(criteria: str | Sequence[str] | None) -> tuple[str, ...]:
    """Read "taylor,l2", a list, or None for all; raise StudyError for a name that is not in CRITERIA.

    >>> parse_criteria("Taylor, l2")
    ('taylor', 'l2')
    >>> parse_criteria("taylr")
    Traceback (most recent call last):
        ...
    weanalysis.errors.StudyError: unknown criterion 'taylr': did you mean taylor or taylor-mean?
    """
    names = list(CRITERIA) if criteria is None else criteria.split(",") if isinstance(criteria, str) else criteria
    chosen = tuple(dict.fromkeys(name.strip().lower() for name in names if name.strip()))
    for name in chosen:
        if name not in CRITERIA:
            raise StudyError(unknown_name("criterion", name, CRITERIA))
    if not chosen:
        raise StudyError(f"no criterion was given: choose from {', '.join(CRITERIA)}, or leave it out for all")
    return chosen


def saliency_maps(
    model: Model | nn.Module,
    data: Any,
    criteria: str | Sequence[str] | None = None,
    layers: str | None = None,
    *,
    cache: Cache | str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    report: Callable[[int, int, float], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> MeasuredMaps:
    """Score every unit of a network's convolutions under some criteria, in one pass over the images, and keep it.

    `model`: a `Model` or any `nn.Module` with (images, classes) logits; its weights, gradients and modes are not
    touched. An excited network is scored on its folded weights, those that a study zeroes. `data`: an `ImageData`, or
    any map-style dataset of (FloatTensor(3, H, W), class index). `criteria`: names in CRITERIA (None: all). `layers`:
    a glob, or several with commas. The same question is answered from the cache. `report(done, total, seconds left)`
    is called as it goes, `say` with lines for a person. Raises WeanalysisError for unusable input, and where the
    network lacks what every criterion asked for needs.

    >>> import weanalysis as wa
    >>> model = wa.load_model("resnet20", weights="none", num_classes=10)
    >>> data = wa.load_data("digits", image_size=16, num_images=20)
    >>> maps = saliency_maps(model, data, "taylor,l1", layers="layer1*").maps
    >>> maps.of("taylor", "kernel", "layer1.0.conv1").shape
    (16, 16)
    """
    command = called_as(saliency_maps, locals())
    say = say or (lambda line: None)
    chosen = parse_criteria(criteria)
    if batch_size is not None and batch_size < 1:
        raise StudyError(f"a batch size of {batch_size} is not allowed: give 1 or more")
    device = find_devices(device)[0]
    cache = (cache if isinstance(cache, Cache) else find_cache(cache)).ready()
    subject = _prepared(model, data, chosen, layers, batch_size, say)
    lacking = _said_lacking(chosen, subject, say)
    settings = subject.settings(chosen)
    key = content_key(settings)
    path, of_weights = cache.saliency_file(key), cache.saliency_file(f"{key}-weights")
    if path.is_file() and of_weights.is_file():
        maps, weights = load_maps(path), load_maps(of_weights)
        return MeasuredMaps(maps, _with_those_of_weights(weights, subject.net, subject.layers), path, lacking, True)

    began = time.perf_counter()
    seen = _gathered(subject, chosen, device, batch_size, report)
    about = {
        **{name: value for name, value in settings.items() if name not in ("layers", "criteria")},
        "model": subject.given.name,
        "weights": subject.given.weights,
        "data": subject.images.spec,
        "lacking": lacking,
        "skipped": [list(pair) for pair in subject.skipped],
        "seconds": time.perf_counter() - began,
        "created": time.time(),
        "formulas": {name: CRITERIA[name].formula for name in chosen},
        "sources": {name: CRITERIA[name].source for name in chosen},
        "command": command,
    }
    units, single = _score(seen, chosen)
    maps = SaliencyMaps(subject.mapped, chosen, about, units)
    # What follows from the weights alone need not lie on disk a second time.
    from_data = {key: scores for key, scores in single.items() if CRITERIA[key[0]].needs in _FROM_DATA}
    weights = SaliencyMaps(subject.mapped, chosen, about, from_data)
    save_maps(weights, of_weights)
    save_maps(maps, path)
    return MeasuredMaps(maps, _with_those_of_weights(weights, subject.net, subject.layers), path, lacking, False)


@dataclass(frozen=True)
class _Subject:
    """A network that is scored, with the images, the layers chosen, and what criteria need beside its weights."""

    given: Model
    prepared: Prepared
    images: ImageData | GivenImages
    layers: list[Layer]
    skipped: list[tuple[str, str]]
    learned: dict[str, Tensor]
    gamma: dict[str, Tensor]

    @property
    def net(self) -> nn.Module:
        return self.prepared.model.net

    @property
    def mapped(self) -> tuple[MappedLayer, ...]:
        return tuple(
            MappedLayer(layer.name, layer.depth, layer.kind, layer.conv.groups, layer.shape, layer.kernel_size)
            for layer in self.layers
        )

    def settings(self, chosen: Sequence[str]) -> dict[str, Any]:
        """All that the scores depend on."""
        plain, learned = self.prepared.model, self.learned
        return {
            "architecture": plain.architecture,
            "weights_hash": plain.weights_hash,
            "fingerprint": self.images.fingerprint,
            "seed": self.images.seed,
            "num_images": len(self.images),
            "criteria": list(chosen),
            "layers": [layer.name for layer in self.layers],
            "version": SALIENCY_VERSION,
            # m is folded away, so that the weights alone do not tell two networks apart.
            "multipliers": content_key({name: m.tolist() for name, m in learned.items()}) if learned else None,
        }


def _prepared(
    model: Model | nn.Module,
    data: Any,
    chosen: Sequence[str],
    layers: str | None,
    batch_size: int | None,
    say: Callable[[str], None],
) -> _Subject:
    given, images = as_model(model), as_images(data)
    learned = multipliers_of(given)
    prepared = prepare_on(given, images, batch_size)
    for note in prepared.notes:
        say(note)
    skipped: list[tuple[str, str]] = []
    selected = select_layers(find_layers(prepared.model.net), layers, skipped)
    gamma = {}
    if any(CRITERIA[name].needs == "batch norm" for name in chosen):
        gamma = batch_norms_after(prepared.model.net, selected, images.batch(0, 1)[0])
    return _Subject(given, prepared, images, selected, skipped, learned, gamma)


def _said_lacking(chosen: Sequence[str], subject: _Subject, say: Callable[[str], None]) -> dict[str, str]:
    """Tell a person what criteria lack, and which layers are left out; raise StudyError where no criterion is left."""
    lacking = _lacking(chosen, subject.layers, subject.learned, subject.gamma)
    if len(lacking) == len(chosen):
        raise StudyError(
            f"{'; '.join(lacking.values())}: choose another criterion from "
            f"{', '.join(name for name in CRITERIA if name not in lacking)}"
        )
    for line in lacking.values():
        say(f"{line}: its scores are missing (NaN)")
    if own := [layer for layer, reason in subject.skipped if "own forward" in reason]:
        say(f"left out, since they make their weight in their own forward: {', '.join(own)}")
    return lacking


def _gathered(
    subject: _Subject,
    chosen: Sequence[str],
    device: str,
    batch_size: int | None,
    report: Callable[[int, int, float], None] | None,
) -> dict[str, Evidence]:
    """What the criteria score, by layer, from one pass over the images."""
    needs = {CRITERIA[name].needs for name in chosen}
    seen = gather(
        subject.net,
        subject.layers,
        subject.images,
        gradients="gradients" in needs,
        activations="activations" in needs,
        device=device,
        batch_size=batch_size,
        output=subject.prepared.conduct.output,
        report=report,
    )
    return {
        name: replace(
            evidence,
            gamma=subject.gamma[name].to(device) if name in subject.gamma else None,
            multiplier=subject.learned[name].to(device) if name in subject.learned else None,
        )
        for name, evidence in seen.items()
    }


def _with_those_of_weights(weights: SaliencyMaps, net: nn.Module, layers: Sequence[Layer]) -> SaliencyMaps:
    """Add the scores of single weights under the criteria that need the weights alone."""
    alone = [name for name in weights.criteria if CRITERIA[name].needs == "weights"]
    _, single = _score(gather(net, layers, None, gradients=False, activations=False), alone)
    return replace(weights, maps={**weights.maps, **single})


def _lacking(chosen: Sequence[str], layers: Sequence[Layer], learned: Any, gamma: Any) -> dict[str, str]:
    """Say, for each criterion that no selected layer has what it needs for, what is missing."""
    has = {"LWE": any(layer.name in learned for layer in layers), "batch norm": bool(gamma)}
    missing = {
        "LWE": "the selected layers have no LWE, so no multipliers",
        "batch norm": "no batch norm stands right behind a selected layer, so there is no gamma",
    }
    return {
        name: f"{name}: {missing[CRITERIA[name].needs]}" for name in chosen if not has.get(CRITERIA[name].needs, True)
    }


Scored = dict[tuple[str, str], dict[str, np.ndarray]]


def _score(seen: dict[str, Evidence], criteria: Sequence[str]) -> tuple[Scored, Scored]:
    """Compute all scores: those of units, and apart from them, since they are many, those of single weights."""
    units: Scored = {}
    weights: Scored = {}
    with torch.no_grad():
        for layer, evidence in seen.items():
            for criterion in criteria:
                for unit, values in CRITERIA[criterion].score(evidence).items():
                    target = weights if unit == WEIGHT else units
                    array = values.float().cpu().contiguous().numpy()
                    target.setdefault((criterion, unit), {})[layer] = array
    return units, weights
