"""What the pages read: the store, and the weights and multipliers that studies left. Nothing here writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from safetensors import SafetensorError, safe_open

from weanalysis import comparison
from weanalysis.cache import Cache, find_cache, safe_name
from weanalysis.errors import StoreError, StudyError
from weanalysis.results import Improvements, Store, find_improvements
from weanalysis.results.contrast import Contrast, lowest_and_highest
from weanalysis.results.findings import repeated_words
from weanalysis.results.multipliers import load_multipliers, natural
from weanalysis.results.pruning import PruningCurve, list_curves
from weanalysis.results.saliency import SaliencyMaps, list_maps, load_maps
from weanalysis.results.spreads import changes_by_layer, spreads_of, trend_words
from weanalysis.results.statistics import trend_of_spread
from weanalysis.tasks import find_metric

_STUDY_COLUMNS = [
    *("id", "name", "kind", "model", "weights", "data", "metric", "state"),
    *("num_images", "done", "total", "updated", "stopping", "measured_as", "note"),
]


def cache() -> Cache:
    return find_cache()


def studies(*kinds: str) -> pd.DataFrame:
    """Return the studies of `kinds` (all where none is named), the last changed first; empty without a store."""
    if not cache().results.is_file():
        return pd.DataFrame(columns=_STUDY_COLUMNS)
    with Store.open(cache().results) as store:
        table = store.studies()
    if kinds and len(table):
        table = table[table["kind"].isin(kinds)]
    return table.reset_index(drop=True)


def identities(table: pd.DataFrame) -> dict[int, comparison.Identity]:
    """Tell by its number of what network and training each study of a table is, and what was measured."""
    states = zip(map(int, table["id"]), map(float, table["updated"]), map(str, table["name"]), strict=True)
    return _identities(str(cache().root), tuple(states))


@st.cache_data(show_spinner=False, max_entries=16)
def _identities(root: str, states: tuple[tuple[int, float, str], ...]) -> dict[int, comparison.Identity]:
    kept = Cache(Path(root))
    with Store.open(kept.results) as store:
        return {number: comparison.identify_study(store.describe(number), kept) for number, *_ in states}


def identity(study: pd.Series) -> comparison.Identity:
    """Tell of what network and training a study is, and what was measured."""
    return identities(pd.DataFrame([study]))[int(study["id"])]


def labels(table: pd.DataFrame) -> dict[int, str]:
    """Return words that tell each study of a table from the others, by its number."""
    return comparison.distinct_words(identities(table).values())


def unreadable() -> list[str]:
    """Return a line for each study that is in the store but cannot be read."""
    if not cache().results.is_file():
        return []
    with Store.open(cache().results) as store:
        return list(store.unreadable().values())


def table(study: pd.Series) -> pd.DataFrame:
    """Return the rows of a study as they are now."""
    return _table(str(cache().results), int(study["id"]), study["metric"], float(study["updated"]))


@st.cache_data(show_spinner=False, max_entries=32)
def _table(path: str, study_id: int, metric: str, updated: float) -> pd.DataFrame:
    """Read a study once for every state it was in, which `updated` tells apart."""
    with Store.open(path) as store:
        return store.table(study_id, metric)


def changes(study: pd.Series, position: int) -> pd.DataFrame:
    """Return the images that the ablation in row `position` of a study's table changed."""
    return _changes(
        str(cache().results), int(study["id"]), position, answers_in(study["metric"]), float(study["updated"])
    )


@st.cache_data(show_spinner=False, max_entries=64)
def _changes(path: str, study_id: int, position: int, metric: str, updated: float) -> pd.DataFrame:
    with Store.open(path) as store:
        return store.changes(study_id, position, metric)


def images(study: pd.Series) -> pd.DataFrame:
    """Return under how many rows of a study each of its images changes; of segmentation, by how much its IoU falls."""
    return _of_images(str(cache().results), int(study["id"]), answers_in(study["metric"]), float(study["updated"]))


@st.cache_data(show_spinner="Going over the images…", max_entries=16)
def _of_images(path: str, study_id: int, metric: str, updated: float) -> pd.DataFrame:
    with Store.open(path) as store:
        in_pixels = find_metric(metric).statistic == "pixels"
        return store.pixel_images(study_id) if in_pixels else store.images(study_id, metric)


def rows_of_image(study: pd.Series, image_id: int) -> pd.DataFrame:
    """Return the rows of a study that change one image, by their position in its table."""
    metric = answers_in(study["metric"])
    with Store.open(cache().results) as store:
        if find_metric(metric).statistic == "pixels":
            return store.rows_moving(int(study["id"]), image_id)
        return store.rows_changing(int(study["id"]), image_id, metric)


def confusion(study: pd.Series, position: int | None = None) -> pd.DataFrame:
    """Return how often the rows of a study, or one of them, turned an answer into another: before, after, count."""
    return _confusion(str(cache().results), int(study["id"]), position, float(study["updated"]))


@st.cache_data(show_spinner=False, max_entries=64)
def _confusion(path: str, study_id: int, position: int | None, updated: float) -> pd.DataFrame:
    with Store.open(path) as store:
        return store.confusion(study_id, position)


def most_hidden(study: pd.Series) -> float:
    """Return how many changes, at the most, a screened study left out of all its rows and images."""
    with Store.open(cache().results) as store:
        return float(store.screening(int(study["id"]))["most_hidden"].iloc[-1])


def value_changes(study: pd.Series, position: int, statistic: str) -> pd.DataFrame:
    """Return the images whose number an ablation changed, as far as these are kept: image_id, before, after."""
    with Store.open(cache().results) as store:
        changes = pd.DataFrame(store.value_changes(int(study["id"]), position, statistic))
    return changes.astype({"image_id": int})


def pixel_changes(study: pd.Series, position: int) -> pd.DataFrame:
    """Return the images in which an ablation changed pixels, those whose IoU fell most first."""
    return _pixels(str(cache().results), int(study["id"]), position, float(study["updated"]))[0]


def class_table(study: pd.Series, position: int) -> pd.DataFrame:
    """Return the IoU of each class, intact and under an ablation."""
    return _pixels(str(cache().results), int(study["id"]), position, float(study["updated"]))[1]


@st.cache_data(show_spinner=False, max_entries=64)
def _pixels(path: str, study_id: int, position: int, updated: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    with Store.open(path) as store:
        return store.pixel_changes(study_id, position), store.class_table(study_id, position)


def all_changes(study: pd.Series) -> pd.DataFrame:
    """Return the changed images of every ablation of a study as one table, with the column position."""
    with Store.open(cache().results) as store:
        return store.all_changes(int(study["id"]), answers_in(study["metric"]))


def spreads(study: pd.Series) -> tuple[pd.DataFrame, str]:
    """Return the spread of D in each layer, noise taken off, and what it says of depth; empty where not known."""
    return _spreads(str(cache().results), int(study["id"]), study["metric"], float(study["updated"]))


@st.cache_data(show_spinner="Taking the noise off…", max_entries=16)
def _spreads(path: str, study_id: int, metric: str, updated: float) -> tuple[pd.DataFrame, str]:
    with Store.open(path) as store:
        changes = changes_by_layer(store, store.describe(study_id), store.table(study_id, metric), metric)
    rows = [
        {"layer": layer, "spread": one.value, "low": one.low, "high": one.high}
        for layer, one in spreads_of(changes).items()
    ]
    return pd.DataFrame(rows), trend_words(trend_of_spread(list(changes.values())), len(changes)) if rows else ""


def improvements(study: pd.Series) -> Improvements:
    """Return which ablations of a study improve the network, chosen and confirmed on different images."""
    return _improvements(str(cache().results), int(study["id"]), study["metric"], float(study["updated"]))


@st.cache_data(show_spinner=False, max_entries=16)
def _improvements(path: str, study_id: int, metric: str, updated: float) -> Improvements:
    with Store.open(path) as store:
        return find_improvements(store, study_id, metric)


def confirmed(study: pd.Series) -> list[int]:
    """Return the places of the rows that were confirmed to improve the network; none where that cannot be searched."""
    try:
        table = improvements(study).table
    except StudyError:
        return []
    return table.loc[table["confirmed"].astype(bool), "position"].tolist()


def contrast(study: pd.Series) -> Contrast | None:
    """Return D_L and D_H of a study with their difference; None for a study without them, or that has neither yet."""
    return _contrast(str(cache().results), int(study["id"]), study["metric"], float(study["updated"]))


@st.cache_data(show_spinner=False, max_entries=64)
def _contrast(path: str, study_id: int, metric: str, updated: float) -> Contrast | None:
    with Store.open(path) as store:
        contrast = lowest_and_highest(store, study_id, metric)
    is_begun = contrast and (pd.notna(contrast.lowest["drop"]) or pd.notna(contrast.highest["drop"]))
    return contrast if is_begun else None


def compare_studies(first: pd.Series, second: pd.Series) -> comparison.StudyComparison:
    """Compare two studies in the metric of the first; raise StudyError where they cannot be paired."""
    numbers = int(first["id"]), int(second["id"])
    updated = float(first["updated"]), float(second["updated"])
    names = str(first["name"]), str(second["name"])
    return _compared(str(cache().root), numbers, first["metric"], updated, names)


@st.cache_resource(show_spinner="Pairing the images of every place…", max_entries=8)
def _compared(
    root: str, numbers: tuple[int, int], metric: str, updated: tuple[float, float], names: tuple[str, str]
) -> comparison.StudyComparison:
    """Compare two studies once for every state that they were in and name that they had; nobody changes the result."""
    return comparison.compare_studies(*numbers, Cache(Path(root)), metric)


def usual_pair(table: pd.DataFrame, first: int | None = None) -> tuple[int, int] | None:
    """Return the numbers of the two studies to compare where none are named, or the partner of `first` with it."""
    if len(table) < 2:
        return None
    states = zip(table["id"].tolist(), table["updated"].tolist(), strict=True)
    return comparison.usual_pair(_candidates(str(cache().root), tuple(states)), first)


def partners(table: pd.DataFrame, first: int) -> list[int]:
    """Return the numbers of the studies that the study `first` can be compared with, the most fitting one first."""
    states = zip(table["id"].tolist(), table["updated"].tolist(), strict=True)
    return comparison.partners(_candidates(str(cache().root), tuple(states)), first)


@st.cache_data(show_spinner=False, max_entries=4)
def _candidates(root: str, states: tuple[tuple[int, float], ...]) -> list[comparison.Candidate]:
    """Describe the studies, the last changed first; one without a stopping rule comes before one with."""
    with Store.open(Cache(Path(root)).results) as store:
        described = [store.describe(number) for number, _ in states]
    described.sort(key=lambda about: bool(about.get("stopping")))
    # Studies of an older version do not say it, but kept the multipliers.
    return [
        comparison.Candidate.of(about, bool(about.get("excitation")) or _multipliers_file(about).is_file())
        for about in described
    ]


def intact(study: pd.Series) -> pd.DataFrame:
    """Return what the intact network answered: image_id, target, prediction, top1, top5."""
    return _intact(str(cache().results), int(study["id"]), float(study["updated"]))


@st.cache_data(show_spinner=False, max_entries=16)
def _intact(path: str, study_id: int, updated: float) -> pd.DataFrame:
    with Store.open(path) as store:
        return store.intact(study_id)


def accuracies(studies: pd.DataFrame) -> list[float]:
    """Return the accuracy of each study's intact network in percent, over its images so far; NaN where there are none.

    It is that of the study's metric, top-1 where that is none in which images are right or wrong.
    """
    answers = map(answers_in, studies["metric"])
    wanted = zip(studies["id"].tolist(), answers, studies["updated"].tolist(), strict=True)
    return _accuracies(str(cache().results), tuple(wanted))


@st.cache_data(show_spinner=False, max_entries=4)
def _accuracies(path: str, wanted: tuple[tuple[int, str, float], ...]) -> list[float]:
    """Look all up at once: a hundred look-ups are slower than a keystroke in the search."""
    return [_accuracy(path, *study) for study in wanted]


@st.cache_data(show_spinner=False, max_entries=1_000)
def _accuracy(path: str, study_id: int, metric: str, updated: float) -> float:
    with Store.open(path) as store:
        if find_metric(metric).statistic == "pixels":
            return store.intact_value(study_id, find_metric(metric))
        right = store.intact(study_id)[metric]
    return 100 * float(right.mean()) if len(right) else float("nan")


def describe(study: pd.Series) -> dict[str, Any]:
    """Return the settings of a study: its data, seed, classes, what it skipped …"""
    with Store.open(cache().results) as store:
        return store.describe(int(study["id"]))


def measured_twice(study: pd.Series) -> str:
    """Word what came of the answers of a study that were measured twice."""
    with Store.open(cache().results) as store:
        return repeated_words(store.repeated(int(store.describe(int(study["id"]))["context_id"])))


def weight(study: pd.Series, layer: str) -> np.ndarray | None:
    """Return the weight of a layer as a study used it; None where it is not in the cache any more."""
    return _weight(*_weights_file(study), layer)


def layers_with_weights(study: pd.Series) -> list[str]:
    """Return the names of the convolutions whose weights a study kept."""
    return _layers(*_weights_file(study))


def shapes(study: pd.Series) -> dict[str, tuple[int, ...]]:
    """Return the shape of the weight of each convolution that a study kept; empty where they are gone."""
    try:
        with safe_open(_weights_file(study)[0], framework="np") as weights:
            named = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return {}
    return {name.removesuffix(".weight"): shape for name, shape in named.items() if len(shape) > 2}


def multipliers(study: pd.Series) -> dict[str, np.ndarray]:
    """Return LWE's m of every layer of the network of a study, (Out, In/groups); empty for a network without LWE."""
    path = _multipliers_file(study)
    return _multipliers(str(study["weights_hash"]), str(path), path.stat().st_mtime) if path.is_file() else {}


def has_multipliers(study: pd.Series) -> bool:
    """Tell whether a study kept multipliers of its network, without reading them."""
    return _multipliers_file(study).is_file()


def _multipliers_file(study: Mapping[str, Any] | pd.Series) -> Path:
    return cache().multipliers_file(safe_name(str(study["weights_hash"])))


@st.cache_data(show_spinner=False, max_entries=8)
def _multipliers(weights_hash: str, path: str, changed: float) -> dict[str, np.ndarray]:
    return load_multipliers(cache(), weights_hash)


def saliency() -> list[tuple[Path, Mapping[str, Any]]]:
    """Return the files of saliency maps in the cache with what each says of itself, the newest first."""
    return list_maps(cache().saliency)


def pruning() -> tuple[list[PruningCurve], list[str]]:
    """Return the curves of pruning in the cache, the newest first, and a line for each that cannot be read."""
    return list_curves(cache())


def maps(path: Path) -> SaliencyMaps:
    """Return the saliency maps of a file; raise StoreError where it is gone or damaged."""
    try:
        return _maps(str(path), path.stat().st_mtime)
    except FileNotFoundError:
        raise StoreError(f"{path} is no longer in the cache; run `weanalysis saliency` again") from None


@st.cache_resource(show_spinner=False, max_entries=4)
def _maps(path: str, changed: float) -> SaliencyMaps:
    """Read a file of maps once; they are many numbers, and nobody changes them."""
    return load_maps(Path(path))


def _weights_file(study: pd.Series) -> tuple[str, float]:
    """Return the file of weights of a study, and when it last changed."""
    path = cache().weights_file(safe_name(str(study["weights_hash"])))
    return str(path), path.stat().st_mtime if path.is_file() else 0.0


@st.cache_data(show_spinner=False, max_entries=256)
def _weight(path: str, changed: float, layer: str) -> np.ndarray | None:
    try:
        with safe_open(path, framework="np") as weights:
            name = f"{layer}.weight"
            return weights.get_tensor(name) if name in weights.keys() else None  # noqa: SIM118
    except (OSError, SafetensorError):
        return None


@st.cache_data(show_spinner=False, max_entries=64)
def _layers(path: str, changed: float) -> list[str]:
    try:
        with safe_open(path, framework="np") as weights:
            names = [name for name in weights.keys() if name.endswith(".weight")]  # noqa: SIM118
            convolutions = [name for name in names if len(weights.get_slice(name).get_shape()) > 2]
    except (OSError, SafetensorError):
        return []
    return [name.removesuffix(".weight") for name in sorted(convolutions, key=natural)]


def again(study: pd.Series) -> pd.Series:
    """Return the row of a study as it is now: it may have gone on since the page was drawn."""
    table = studies()
    table = table[table["id"] == study["id"]]
    return in_metric(table.iloc[0], study["metric"]) if len(table) else study


def in_metric(study: pd.Series, metric: str) -> pd.Series:
    """Return the row of a study as it is read in another of its metrics."""
    return pd.Series({**study, "metric": metric})


def metrics(study: pd.Series) -> list[str]:
    """Return the metrics in which a study can be read, its own first."""
    return _metrics(str(cache().results), int(study["id"]), float(study["updated"]))


@st.cache_data(show_spinner=False, max_entries=32)
def _metrics(path: str, study_id: int, updated: float) -> list[str]:
    with Store.open(path) as store:
        return store.metrics(study_id)


def answers_in(metric: str) -> str:
    """Return the metric that tells how good the intact network is where a study is read in this one.

    That is itself where images, or their pixels, are right or wrong in it, else top-1.
    """
    own = find_metric(metric)
    return metric if own.counts_images or own.statistic == "pixels" else "top1"
