"""What to prune: a score of every unit, from a criterion or from a study's measured D, and the lowest of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from weanalysis.ablation.studies import Layer
from weanalysis.errors import StudyError
from weanalysis.kinds import KINDS, channels_of
from weanalysis.results import Store
from weanalysis.results.saliency import SaliencyMaps

Unit = Literal["kernel", "channel"]
Scope = Literal["network", "layer"]
Scores = dict[str, NDArray[np.float64]]

# The kind of study that measures every unit that can be pruned, by the unit.
_MEASURED_BY = {kind.prunes.unit: kind for kind in KINDS.values() if kind.prunes}
# What a unit is called in a study's column `selection`.
SELECTIONS = {unit: kind.prunes.selection for unit, kind in _MEASURED_BY.items() if kind.prunes}


def scores_of_criterion(maps: SaliencyMaps, criterion: str, unit: Unit) -> Scores:
    """Return a criterion's scores by layer, (Out, In/groups) or (Out,) of filters; layers without are left out."""
    by_layer = {layer.name: maps.of(criterion, SELECTIONS[unit], layer.name) for layer in maps.layers}
    return {name: scores.astype(np.float64) for name, scores in by_layer.items() if not np.isnan(scores).any()}


def scores_of_study(
    store: Store, study_id: int, layers: list[Layer], weights_hash: str, unit: Unit, metric: str | None = None
) -> Scores:
    """Return the measured D of every unit by layer, in a metric, as `scores_of_criterion` does.

    Raises StudyError for a study of another kind or of other weights, and where a unit of a layer that the study speaks
    of was not measured, or not on all of the study's images.
    """
    about = store.describe(study_id)
    kind = _MEASURED_BY[unit]
    assert kind.prunes is not None
    command = f"weanalysis ablate --study {kind.name} {kind.prunes.options}"
    if about["kind"] != kind.name:
        raise StudyError(
            f"{about['name']} is a {about['kind']} study; to prune a {unit} by its measured D give a "
            f"{kind.name} study ({command})"
        )
    if about["weights_hash"] != weights_hash:
        raise StudyError(
            f"{about['name']} measured other weights ({about['model']}, {about['weights']}) than these; "
            "give the network that the study was run with"
        )
    table = store.table(study_id, metric)
    rows = table[(table["selection"] == SELECTIONS[unit]) & (table["num_images"] == about["num_images"])]
    by_layer: Scores = {}
    for layer in layers:
        if layer.name not in set(table["layer"].dropna()):
            continue
        own = rows[rows["layer"] == layer.name]
        scores = np.full(layer.shape if unit == "kernel" else layer.shape[:1], np.nan)
        columns = channels_of(SELECTIONS[unit]) or ()
        scores[tuple(own[column].to_numpy(dtype=np.int64) for column in columns)] = own["drop"]
        if missing := int(np.isnan(scores).sum()):
            raise StudyError(
                f"{about['name']} measured {scores.size - missing:,} of the {scores.size:,} "
                f"{SELECTIONS[unit]}s of {layer.name} on all its images, and what was not measured cannot "
                f"be ranked; measure them all ({command}), or prune by a criterion"
            )
        by_layer[layer.name] = scores
    if not by_layer:
        raise StudyError(f"{about['name']} measured no {SELECTIONS[unit]} of the selected layers")
    return by_layer


def choose_lowest(
    scores: Mapping[str, NDArray[np.float64]], sparsity: float, scope: Scope
) -> dict[str, NDArray[np.bool_]]:
    """Mark the share `sparsity` of units with the lowest scores, of all together or of each layer; equal ones in order.

    The best unit of a layer is always kept, since a layer without any would cut the network in two.
    """
    chosen = {}
    if scope == "layer":
        for name, values in scores.items():
            marks = np.zeros(values.size, bool)
            marks[np.argsort(values, axis=None, kind="stable")[: round(sparsity * values.size)]] = True
            chosen[name] = marks.reshape(values.shape)
    else:
        pooled = np.concatenate([values.ravel() for values in scores.values()])
        marks = np.zeros(len(pooled), bool)
        marks[np.argsort(pooled, kind="stable")[: round(sparsity * len(pooled))]] = True
        ends = np.cumsum([values.size for values in scores.values()])[:-1]
        for (name, values), part in zip(scores.items(), np.split(marks, ends), strict=True):
            chosen[name] = part.reshape(values.shape)
    for name, marked in chosen.items():
        if marked.all():
            marked[np.unravel_index(np.argmax(scores[name]), marked.shape)] = False
    return chosen
