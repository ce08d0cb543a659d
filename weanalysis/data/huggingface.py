"""Labelled images from the library `datasets`: a name of the Hugging Face hub, or a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from weanalysis.cache import Cache
from weanalysis.data.pictures import TablePictures
from weanalysis.data.sources import Labelled
from weanalysis.errors import DataError

_SPLITS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}
_LABELS = ("label", "labels", "fine_label")
_IMAGES = ("image", "img", "images")
# Each class has a name, which is made up where there is none.
_MOST_CLASSES = 1_000_000


def find_table(place: str, split: str, cache: Cache | None) -> Labelled:
    """Return the images of `NAME` or `NAME@CONFIG`, where NAME is on the hub or a local folder.

    Raises DataError where `datasets` is not installed, the dataset cannot be had, or has no picture or label column.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError("hf:NAME needs the library datasets; install it with: pip install datasets") from error
    name, _, config = (place, "", "") if Path(place).expanduser().is_dir() else place.partition("@")
    if not name:
        raise DataError("hf needs the name of a dataset: hf:NAME or hf:NAME@CONFIG")
    tables = _load(datasets, name, config or None, cache)
    part, notes = _part(name, list(tables), split)
    table = tables[part]
    pictures = [column for column, feature in table.features.items() if isinstance(feature, datasets.Image)]
    images = _choose(name, table, pictures, _IMAGES, "picture")
    labels, classes = _labels(datasets, name, table)
    return Labelled(
        pictures=TablePictures(
            name,
            table.cast_column(images, datasets.Image(decode=False)).select_columns(images),
            images,
            np.arange(len(table)),
        ),
        labels=labels,
        classes=classes,
        notes=notes,
    )


def _load(datasets: Any, name: str, config: str | None, cache: Cache | None) -> Any:
    folder = Path(name).expanduser()
    is_local = folder.is_dir()
    # A local folder is unpacked below the cache; what comes from the hub stays where all its other users find it.
    options = {"cache_dir": str(cache.ready().huggingface)} if is_local and cache else {}
    try:
        return datasets.load_dataset(str(folder.resolve()) if is_local else name, config, **options)
    # The library and the network beneath it raise exceptions of many unrelated families.
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(
            f"the dataset hf:{name} cannot be loaded ({reason}); give a name of the hub, or a folder with parquet files"
            " or pictures"
        ) from error


def _part(name: str, parts: list[str], split: str) -> tuple[str, list[str]]:
    chosen = next((part for part in _SPLITS[split] if part in parts), None)
    if chosen is not None:
        return chosen, []
    if len(parts) == 1 and parts[0] == "train":
        return parts[0], [f"hf:{name} has only a train split, which is used as the {split} split"]
    raise DataError(f"hf:{name} has no {split} split; it has {', '.join(parts)}")


def _choose(name: str, table: Any, columns: list[str], preferred: tuple[str, ...], kind: str) -> str:
    chosen = next((column for column in preferred if column in columns), columns[0] if len(columns) == 1 else None)
    if chosen is None:
        columns_there = f"several {kind} columns ({', '.join(columns)})" if columns else f"no {kind} column"
        raise DataError(
            f"hf:{name} has {columns_there} among {', '.join(table.column_names)}; name it {preferred[0]!r}"
        )
    return chosen


def _labels(datasets: Any, name: str, table: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    def is_label(column: str, feature: Any) -> bool:
        if isinstance(feature, datasets.ClassLabel):
            return True
        return column in _LABELS and str(getattr(feature, "dtype", "")).startswith(("string", "int", "uint"))

    columns = {column: feature for column, feature in table.features.items() if is_label(column, feature)}
    chosen = _choose(name, table, list(columns), _LABELS, "label")
    values = table[chosen][:]
    if any(value is None or (not isinstance(value, str) and value < 0) for value in values):
        raise DataError(f"hf:{name} has images without a label in column {chosen!r}; choose a split that is labelled")
    feature = columns[chosen]
    if isinstance(feature, datasets.ClassLabel):
        classes = tuple(feature.names)
    elif feature.dtype == "string":
        classes = tuple(sorted(set(values)))
        index_of = {value: index for index, value in enumerate(classes)}
        values = [index_of[value] for value in values]
    elif max(values, default=0) >= _MOST_CLASSES:
        raise DataError(
            f"hf:{name} has the number {max(values):,} in column {chosen!r}, which is no class index; "
            f"choose data whose labels are below {_MOST_CLASSES:,}"
        )
    else:
        classes = tuple(str(index) for index in range(max(values, default=-1) + 1))
    return np.asarray(values, dtype=np.int64), classes
