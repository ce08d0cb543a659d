"""Tables written to files and read back."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from weanalysis.errors import StoreError
from weanalysis.results.export import export_table, to_json_rows

SETTINGS = {"model": "resnet20", "grid": [5, 5], "seed": np.int64(3), "until_ci": float("nan"), "layers": None}


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "layer": ["conv1", "layer1.0.conv1, 'ü'", None],
            "out_channel": pd.array([1, None, 3], dtype="Int64"),
            "num_images": [2000, 2000, 0],
            "drop": [0.1 + 0.2, np.nan, -1 / 3],
            "found": [True, False, True],
        },
        index=[7, 8, 9],
    )


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json", ".JSON"])
def test_round_trip_loses_nothing(table, tmp_path, suffix):
    path = export_table(table, tmp_path / "new folder" / f"study{suffix}", SETTINGS)
    if suffix == ".parquet":
        back = pd.read_parquet(path)
    elif suffix == ".csv":
        back = pd.read_csv(path, float_precision="round_trip")
    else:
        back = pd.DataFrame(json.loads(path.read_text())["rows"])
    assert back["drop"].tolist()[::2] == table["drop"].tolist()[::2]  # to the last bit
    back = back.astype({"out_channel": "Int64"})
    pd.testing.assert_frame_equal(back, table.reset_index(drop=True), check_dtype=suffix == ".parquet")
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_missing_is_empty_in_csv_and_null_elsewhere(table, tmp_path):
    csv = export_table(table, tmp_path / "t.csv").read_text().splitlines()
    assert csv[0] == "layer,out_channel,num_images,drop,found"
    assert csv[2] == "\"layer1.0.conv1, 'ü'\",,2000,,False"
    text = export_table(table, tmp_path / "t.json").read_text()
    assert json.loads(text)["rows"][1]["drop"] is None and "NaN" not in text
    assert pyarrow.parquet.read_table(export_table(table, tmp_path / "t.parquet"))["drop"].null_count == 1


def test_settings_travel_with_the_table(table, tmp_path):
    plain = {"model": "resnet20", "grid": [5, 5], "seed": 3, "until_ci": None, "layers": None}
    content = json.loads(export_table(table, tmp_path / "t.json", SETTINGS).read_text())
    rows = content.pop("rows")
    assert content == plain and len(rows) == 3
    schema = pyarrow.parquet.read_schema(export_table(table, tmp_path / "t.parquet", SETTINGS))
    assert json.loads(schema.metadata[b"weanalysis"]) == plain


def test_rows_are_plain_python(table):
    rows = to_json_rows(table.assign(score=np.float32([0.5, np.inf, np.nan])))
    assert rows[1] == {
        "layer": "layer1.0.conv1, 'ü'",
        "out_channel": None,
        "num_images": 2000,
        "drop": None,
        "found": False,
        "score": None,
    }
    assert [type(value) for value in rows[0].values()] == [str, int, int, float, bool, float]
    assert to_json_rows(table.iloc[:0]) == []


def test_bad_targets_are_one_line_and_leave_nothing(table, tmp_path):
    for name in ("t.xlsx", "t"):
        with pytest.raises(StoreError, match=r"\.parquet") as caught:
            export_table(table, tmp_path / name)
        assert "\n" not in str(caught.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        export_table(table, tmp_path / "file" / "t.csv")
    with pytest.raises(StoreError, match="no form in JSON"):
        export_table(table, tmp_path / "t.json", {"model": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failure_keeps_the_old_file(table, tmp_path, monkeypatch):
    path = export_table(table, tmp_path / "t.csv")
    old = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        export_table(table.iloc[:1], path)
    assert path.read_bytes() == old and len(list(tmp_path.iterdir())) == 1
