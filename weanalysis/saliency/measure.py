"""The whole saliency map of a network: every criterion, for every weight, kernel, channel and layer at once, kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from weanalysis.ablation.inputs import as_model, multipliers_of
from weanalysis.ablation.preparation import prepare_on
from weanalysis.ablation.studies import Layer, find_layers
from weanalysis.ablation.studies.layers import select_layers
from weanalysis.cache import Cache, find_cache
from weanalysis.data import as_images
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
class Measured:
    """Saliency maps, with those of single weights, and where they are kept; `lacking` criteria are NaN everywhere."""

    maps: SaliencyMaps
    weights: SaliencyMaps
    path: Path
    lacking: dict[str, str]
    reused: bool


def parse_criteria(criteria: str | Sequence[str] | None) -> tuple[str, ...]:
    """Read "taylor,l2", a list, or None for all; raise StudyError for a name that is not in CRITERIA."""
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
) -> Measured:
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
    given, images = as_model(model), as_images(data)
    learned = multipliers_of(given)
    prepared = prepare_on(given, images, batch_size)
    plain = prepared.model
    for note in prepared.notes:
        say(note)
    skipped: list[tuple[str, str]] = []
    selected = select_layers(find_layers(plain.net), layers, skipped)
    gamma = {}
    if any(CRITERIA[name].needs == "batch norm" for name in chosen):
        gamma = batch_norms_after(plain.net, selected, images.batch(0, 1)[0])
    lacking = _lacking(chosen, selected, learned, gamma)
    if len(lacking) == len(chosen):
        raise StudyError(
            f"{'; '.join(lacking.values())}: choose another criterion from "
            f"{', '.join(name for name in CRITERIA if name not in lacking)}"
        )
    for line in lacking.values():
        say(f"{line}: its scores are missing (NaN)")
    if own := [layer for layer, reason in skipped if "own forward" in reason]:
        say(f"left out, since they make their weight in their own forward: {', '.join(own)}")

    settings = {
        "architecture": plain.architecture,
        "weights_hash": plain.weights_hash,
        "fingerprint": images.fingerprint,
        "seed": images.seed,
        "num_images": len(images),
        "criteria": list(chosen),
        "layers": [layer.name for layer in selected],
        "version": SALIENCY_VERSION,
        # m is folded away, so that the weights alone do not tell two networks apart.
        "multipliers": content_key({name: m.tolist() for name, m in learned.items()}) if learned else None,
    }
    key = content_key(settings)
    path = cache.saliency_file(key)
    of_weights = cache.saliency_file(f"{key}-weights")
    if path.is_file() and of_weights.is_file():
        maps, weights = load_maps(path), load_maps(of_weights)
        return Measured(maps, _with_those_of_weights(weights, plain.net, selected), path, lacking, True)

    needs = {CRITERIA[name].needs for name in chosen}
    began = time.perf_counter()
    seen = gather(
        plain.net,
        selected,
        images,
        gradients="gradients" in needs,
        activations="activations" in needs,
        device=device,
        batch_size=batch_size,
        output=prepared.conduct.output,
        report=report,
    )
    for name, evidence in seen.items():
        evidence.gamma = gamma[name].to(device) if name in gamma else None
        evidence.multiplier = learned[name].to(device) if name in learned else None
    mapped = tuple(
        MappedLayer(layer.name, layer.depth, layer.kind, layer.conv.groups, layer.shape, layer.kernel_size)
        for layer in selected
    )
    about = {
        **{name: value for name, value in settings.items() if name not in ("layers", "criteria")},
        "model": given.name,
        "weights": given.weights,
        "data": images.spec,
        "lacking": lacking,
        "skipped": [list(pair) for pair in skipped],
        "seconds": time.perf_counter() - began,
        "created": time.time(),
        "formulas": {name: CRITERIA[name].formula for name in chosen},
        "sources": {name: CRITERIA[name].source for name in chosen},
        "command": command,
    }
    units, single = _score(seen, chosen)
    maps = SaliencyMaps(mapped, chosen, about, units)
    # What follows from the weights alone need not lie on disk a second time.
    from_data = {key: found for key, found in single.items() if CRITERIA[key[0]].needs in _FROM_DATA}
    weights = SaliencyMaps(mapped, chosen, about, from_data)
    save_maps(weights, of_weights)
    save_maps(maps, path)
    return Measured(maps, _with_those_of_weights(weights, plain.net, selected), path, lacking, False)


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
