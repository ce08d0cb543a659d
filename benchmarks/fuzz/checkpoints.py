"""Mutated checkpoints, metadata, recipes and runs: each is read or refused in one line, within bounds, running nothing.

Inputs are real small files, with bytes and structure changed: what torch.save writes (zip and the older format, with
several sets of weights, masks, parametrizations, sparse and half-precision tensors, and pickles that would run code),
safetensors with this program's metadata, and the folder of a training run.
"""

from __future__ import annotations

import copy
import io
import json
import os
import random
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache as remember
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.fuzz.bounded import Outcomes, main, run_bounded

_ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**63),
    10**40,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "none",
    "..",
    "\x00",
    "\udcff",
    "é" * 300,
    "a\nb",
    [],
    {},
    [[]],
    [None],
    ["x"] * 100,
    [10**6] * 4,
    {"a": {"b": {}}},
    "lwe",
    "resnet50",
    "timm",
    "gn",
    "se",
)


def run(count: int, seed: int) -> Outcomes:
    """Examine `count` mutated files and return how many ended how."""
    return run_bounded("benchmarks.fuzz.checkpoints", count, seed)


# Real files -----------------------------------------------------------------------------------------------------------


@remember
def _network() -> Any:
    """Enter a tiny network among the built-in ones of this process, so that building costs no time; return it."""
    import torch
    from torch import nn

    from weanalysis.models.cifar import BUILTIN

    def fuzzed(num_classes: int = 10, width: int = 4) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, width, 3),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 8, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, num_classes),
        )

    torch.manual_seed(0)
    BUILTIN["fuzzed"] = fuzzed
    return fuzzed()


def _saved(content: Any, zipped: bool = True) -> bytes:
    import torch

    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


class _Attack:
    def __reduce__(self) -> tuple:
        return os.mkdir, (f"{tempfile.gettempdir()}/weanalysis-fuzz-was-here",)


def _nested(levels: int) -> tuple:
    """Make a tuple that holds another twice, and so on; hashing one of 60 levels takes years."""
    nested: tuple = ()
    for _ in range(levels):
        nested = (nested, nested)
    return nested


@remember
def _checkpoints() -> list[tuple[str, bytes]]:
    """Make the files that torch.save writes: (ending, content)."""
    import warnings

    import torch
    from torch.nn.utils import parametrizations, prune

    from weanalysis.excitation import excite

    warnings.simplefilter("ignore")
    net = _network()
    state = dict(net.state_dict())
    masked, normed = copy.deepcopy(net), copy.deepcopy(net)
    prune.l1_unstructured(masked[0], "weight", 0.5)
    parametrizations.weight_norm(normed[0])
    parametrizations.spectral_norm(normed[3])
    excited = excite(copy.deepcopy(net), "lwe", reduction=2)
    sparse = {**state, "6.weight": state["6.weight"].to_sparse()}
    contents = [
        state,
        {"state_dict": {f"module.{name}": value for name, value in state.items()}, "state_dict_ema": state, "epoch": 3},
        {f"{side}.{name}": value for side in ("student", "teacher") for name, value in state.items()},
        {"model": {name: value.half() if value.is_floating_point() else value for name, value in state.items()}},
        {"module": masked.state_dict(), "optimizer": {"state": {0: {"step": torch.ones(())}}}},
        normed.state_dict(),
        excited.state_dict(),
        sparse,
        {"state_dict": state, "extra": _Attack()},
        {"state_dict": state, (1, 2**80): {3, (4, 5)}, "bytes": [b"a", bytearray(b"b")], "nested": _nested(16)},
        {**state, "6.weight": state["6.weight"][:1].expand(10, 8)},
    ]
    files = [(".pth", _saved(content, zipped)) for content in contents for zipped in (True, False)]
    return files


@remember
def _descriptions() -> list[tuple[dict[str, Any], bytes]]:
    """Make own checkpoints: the metadata, and the safetensors without it."""
    from safetensors.torch import save

    from weanalysis.excitation import excitation_of, excite

    net = _network()
    excited = excite(copy.deepcopy(net), "lwe", reduction=2)
    plain = {"source": "builtin", "name": "fuzzed", "num_classes": 10, "options": {"width": 4}}
    with_lwe = {**plain, "excitation": excitation_of(excited)}
    pruned = {
        **plain,
        "norm": None,
        "attention": None,
        "pruned": {"3": {"attributes": {"out_channels": 8}, "shapes": {"weight": [8, 4, 3, 3]}}},
    }
    transform = {
        "image_size": 32,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "resize_size": None,
        "interpolation": "bilinear",
        "squash": False,
    }
    beside = {
        "classes": [str(index) for index in range(10)],
        "synsets": None,
        "transform": transform,
        "weights": "w",
        "notes": ["a note"],
        "data": "digits",
        "epoch": 3.0,
    }
    return [
        ({"architecture": plain, **beside}, save(dict(net.state_dict()))),
        ({"architecture": with_lwe, **beside}, save(dict(excited.state_dict()))),
        ({"architecture": pruned}, save(dict(net.state_dict()))),
    ]


@remember
def _run_files() -> dict[str, bytes]:
    from weanalysis.training import METRICS, Recipe

    recipe = Recipe.from_preset("digits", model="resnet20", excitation="lwe", layers=("layer1.*",))
    description = {
        "created": "2026-01-01T12:00:00+00:00",
        "recipe": recipe.to_json(),
        "image_size": 32,
        "train_images": "aa",
        "val_images": "bb",
        "versions": {"torch": "2.8"},
    }
    result = {
        "top1": 98.0,
        "top5": None,
        "best_top1": 98.5,
        "best_epoch": 2,
        "epochs": 2.0,
        "seconds": 10.5,
        "finished": "2026-01-01T13:00:00+00:00",
    }
    rows = [
        ",".join(METRICS),
        "1,33,5.1,0.02,1.5,60.1,90,1.1,80.5,99,1.0",
        "2,66,10.5,0.01,1.0,80.1,95,0.6,98.0,100,1.0",
    ]
    return {
        "recipe.json": json.dumps(description, indent=1).encode(),
        "result.json": json.dumps(result).encode(),
        "metrics.csv": ("\n".join(rows) + "\n").encode(),
    }


# Mutations ------------------------------------------------------------------------------------------------------------


def _mutated_bytes(content: bytes, draw: random.Random) -> bytes:
    """Change, insert, repeat or cut bytes at a few places."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        if not changed:
            break
        at = draw.randrange(len(changed))
        length = min(draw.choice((1, 1, 2, 4, 8, 64, 512)), len(changed) - at)
        kind = draw.randrange(6)
        if kind == 0:
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[at : at + length] = draw.choice((b"\x00", b"\xff", b"\x7f", b"\x80", b"(", b"}")) * length
        elif kind == 2:
            changed[at : at + length] = draw.randbytes(length)
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at:at] = changed[at : at + length] * draw.choice((1, 2, 50))
        else:
            del changed[at:]
    return bytes(changed)


def _mutated_archive(content: bytes, draw: random.Random) -> bytes:
    """Change members of an archive, so that its sums are right and what is inside is not."""
    file = io.BytesIO()
    packing = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(file, "w", packing) as target:
        names = source.namelist()
        chosen = draw.choice([name for name in names if name.endswith("data.pkl")] + names)
        for name in names:
            data = source.read(name)
            if name == chosen:
                if draw.random() < 0.05:
                    continue
                data = _mutated_bytes(data, draw) if draw.random() < 0.9 else data * draw.choice((0, 2, 100_000))
            target.writestr(name, data)
    return file.getvalue()


def _mutated_json(value: Any, draw: random.Random) -> Any:
    """Replace, remove or repeat a value somewhere in JSON."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []
    level = [value]
    while level:
        outer = level.pop()
        keys = list(outer) if isinstance(outer, dict) else range(len(outer))
        places += [(outer, key) for key in keys]
        level += [outer[key] for key in keys if isinstance(outer[key], dict | list)]
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        outer, key = draw.choice(places)
        kind = draw.randrange(8)
        if isinstance(outer, dict) and key not in outer:
            continue
        if isinstance(outer, list) and key >= len(outer):
            continue
        if kind == 0:
            del outer[key]
        elif kind == 1 and isinstance(outer, dict):
            outer[str(draw.choice(_ODD_VALUES))] = outer[key]
        elif kind == 2:
            other, name = draw.choice(places)
            if name in other if isinstance(other, dict) else name < len(other):
                outer[key] = copy.deepcopy(other[name])
        elif kind == 3 and isinstance(outer[key], int | float):
            outer[key] = outer[key] * draw.choice((-1, 0, 10**3, 10**6, 10**12, 0.5))
        else:
            outer[key] = draw.choice(_ODD_VALUES)
    return value


def _mutated_text(value: Any, draw: random.Random) -> str:
    """Write mutated JSON, sometimes with what no program writes in it."""
    text = json.dumps(_mutated_json(value, draw) if draw.random() < 0.9 else value)
    if draw.random() < 0.1:
        odd = draw.choice(("9" * 100_000, "[" * 1000 + "]" * 1000, '{"a":' * 500 + "1" + "}" * 500, "1e999", "\\ud800"))
        text = text.replace(draw.choice(('"digits"', "32", "10", "0.5", "null")), odd, 1)
    if draw.random() < 0.1:
        text = _mutated_bytes(text.encode("utf-8", "replace"), draw).decode("utf-8", "replace")
    return text


def _safetensors_with(content: bytes, text: str, draw: random.Random) -> bytes:
    """Put metadata into a safetensors file, and change its header or its bytes for some draws."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = {"weanalysis": text.encode("utf-8", "replace").decode()}
    if draw.random() < 0.2:
        header = _mutated_json(header, draw)
    packed = json.dumps(header).encode("utf-8", "replace")
    whole = len(packed).to_bytes(8, "little") + packed + content[8 + length :]
    return _mutated_bytes(whole, draw) if draw.random() < 0.2 else whole


# One input ------------------------------------------------------------------------------------------------------------


def prepare(number: int, seed: int, folder: Path) -> tuple[str, Callable[[], object]]:
    """Write input `number` of a seed into a folder; return its kind, and what reads it."""
    draw = random.Random(f"{seed}-{number}")
    _network()
    kind = draw.randrange(10)
    if kind < 5:
        ending, content = draw.choice(_checkpoints())
        zipped = content.startswith(b"PK")
        mutate = _mutated_archive if zipped and draw.random() < 0.6 else _mutated_bytes
        content = mutate(content, draw)
        path = folder / f"file{draw.choice((ending, ending, ending, '.PT', '.ckpt'))}"
        path.write_bytes(content)
        return "file of weights", partial(
            _read_weights, path, draw.choice(("auto", "auto", "raw", "averaged", "teacher"))
        )
    if kind < 8:
        described, content = draw.choice(_descriptions())
        path = folder / "own.safetensors"
        path.write_bytes(_safetensors_with(content, _mutated_text(described, draw), draw))
        return "own checkpoint", partial(_read_own, path)
    for name, content in _run_files().items():
        place = folder / "runs" / "one" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if draw.random() < 0.5 and name.endswith(".json"):
            content = _mutated_text(json.loads(content), draw).encode("utf-8", "replace")
        elif draw.random() < 0.3:
            content = _mutated_bytes(content, draw)
        place.write_bytes(content)
    return "run", partial(_read_run, folder)


def _read_weights(path: Path, which: str) -> None:
    from weanalysis.models import load_network

    load_network("fuzzed", str(path), weights_of=which)


def _read_own(path: Path) -> None:
    from weanalysis.errors import WeanalysisError
    from weanalysis.models import load_network

    try:
        load_network(str(path))
    except WeanalysisError:
        load_network(str(path), "none")


def _read_run(folder: Path) -> None:
    from weanalysis.cache import Cache
    from weanalysis.results import to_json_rows
    from weanalysis.training import Recipe, Run, list_runs, unreadable_runs

    table, unreadable = list_runs(Cache(folder)), unreadable_runs(Cache(folder))
    json.dumps(to_json_rows(table), allow_nan=False, default=str)
    assert len(table) + len(unreadable) == 1 and all(line.isprintable() for line in unreadable)
    run = Run(folder / "runs" / "one")
    recipe = Recipe.from_json(run.description["recipe"])
    assert len(recipe.address) == 64 and recipe.run_name
    assert run.result is None or run.result["top1"] is not None
    run.metrics()


def _warm_up() -> None:
    """Read some files, so that what is imported for the first time is not taken for a file's doing."""
    import contextlib

    import torch

    import weanalysis._torchvision  # noqa: F401 (before timm, which imports torchvision)

    # isort: split
    import timm  # noqa: F401

    torch.set_num_threads(1)
    for number in range(40):
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Exception):
            prepare(number, 1_000_003, Path(folder))[1]()


if __name__ == "__main__":
    main("benchmarks.fuzz.checkpoints", prepare, __doc__, _warm_up)
