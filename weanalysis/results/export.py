"""A finished table as a file for other programs, or as rows for `--json`."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from weanalysis.cache import storable, write_atomically
from weanalysis.errors import StoreError, unknown_name

METADATA_KEY = b"weanalysis"


def export_table(table: pd.DataFrame, path: str | Path, metadata: Mapping[str, Any] | None = None) -> Path:
    """Write `table` as Parquet, CSV or JSON, whichever the suffix of `path` names, and return the path.

    A missing value is an empty field in CSV, null in JSON and null in Parquet. `metadata` (the study's settings, JSON)
    goes to the Parquet schema's metadata under the key `weanalysis` and to the top level of the JSON object, beside
    `rows`; CSV has no place for it. The index is left out. The file appears whole or not at all.
    Raises StoreError for another suffix, for metadata that JSON cannot hold, and where the file cannot be written.

    >>> table = pd.DataFrame({"layer": ["conv1", "conv2"], "drop": [1.5, None]})
    >>> path = export_table(table, "table.json", {"metric": "top1"})
    >>> json.loads(path.read_text())
    {'metric': 'top1', 'rows': [{'layer': 'conv1', 'drop': 1.5}, {'layer': 'conv2', 'drop': None}]}
    >>> export_table(table, "table.xls")
    Traceback (most recent call last):
        ...
    weanalysis.errors.StoreError: unknown export format '.xls': did you mean .csv?
    """
    path = Path(path).expanduser()
    encode = FORMATS.get(path.suffix.lower())
    if encode is None:
        raise StoreError(unknown_name("export format", path.suffix or path.name, FORMATS))
    content = encode(table, to_json_value(dict(metadata or {})))
    try:
        write_atomically(path, content)
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror or error}); choose another path") from error
    return path


def to_json_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return one dictionary of plain Python values a row, with None where a value is missing or not finite.

    >>> to_json_rows(pd.DataFrame({"layer": ["conv1"], "drop": [float("nan")]}))
    [{'layer': 'conv1', 'drop': None}]
    """
    columns = [[to_json_value(value) for value in table[name].tolist()] for name in table.columns]
    return [dict(zip(map(str, table.columns), row, strict=True)) for row in zip(*columns, strict=True)]


def to_json_value(value: Any) -> Any:
    """Return `value` as JSON has it: plain numbers, text, lists and objects, None for what is missing or not finite.

    Raises StoreError for a value that JSON has no form for.
    """
    if isinstance(value, Mapping):
        return {storable(str(key)): to_json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [to_json_value(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, str | Path | pd.Timestamp):
        return storable(str(value))
    raise StoreError(f"a {type(value).__name__} has no form in JSON: {value!r}")


def _as_parquet(table: pd.DataFrame, metadata: dict[str, Any]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    arrow = pyarrow.Table.from_pandas(table, preserve_index=False)
    settings = {METADATA_KEY: json.dumps(metadata, ensure_ascii=False).encode()}
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), **settings}), buffer)
    return buffer.getvalue()


def _as_csv(table: pd.DataFrame, metadata: dict[str, Any]) -> bytes:
    return storable(table.to_csv(index=False, na_rep="", lineterminator="\n")).encode()


def _as_json(table: pd.DataFrame, metadata: dict[str, Any]) -> bytes:
    content = {**metadata, "rows": to_json_rows(table)}
    return (json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode()


# To add a format: a function from (table, settings) to bytes, and its suffix here.
FORMATS: dict[str, Callable[[pd.DataFrame, dict[str, Any]], bytes]] = {
    ".parquet": _as_parquet,
    ".csv": _as_csv,
    ".json": _as_json,
}
