"""Pickles that torch would follow for ever, or fill the memory with, are refused in time; ordinary ones are read."""

from __future__ import annotations

import argparse
import pickle
import pickletools
import struct
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import _weights_only_unpickler, nn

from weanalysis.errors import ModelError
from weanalysis.models.checkpoint import read_weights
from weanalysis.models.pickles import TooCostly, _Scan, check_pickles


def text(words: str) -> bytes:
    return b"X" + struct.pack("<I", len(words.encode())) + words.encode()


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def call(name: str) -> bytes:
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def number(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def doubled(levels: int, base: bytes = b")", wrap: bytes = b"\x86") -> bytes:
    """Push a tuple that holds another twice, which holds another twice, ..."""
    made = base
    for level in range(levels):
        made += put(level) + get(level) + wrap
    return made


def entry(key: bytes, value: bytes = b"N") -> bytes:
    return b"}" + key + value + b"s"


STORAGE = b"(" + text("storage") + call("torch.FloatStorage") + text("0") + text("cpu") + b"K\x01tQ"
HOOKS = call("collections.OrderedDict") + b")R"
TENSOR = call("torch._utils._rebuild_tensor_v2") + b"(" + STORAGE + b"K\x00K\x01\x85K\x01\x85\x89" + HOOKS + b"tR"
MANY = TENSOR.replace(b"K\x01\x85K\x01\x85", b"J\xff\xff\xff\x7f\x85K\x00\x85")
LONG_LIST = b"]" + put(1) + b"(" + b"K\x01" * 50_000 + b"e"
LONG_TUPLE = b"(" + b"K\x01" * 100_000 + b"t"
NESTED_LISTS = b"]" + b"".join(put(level) + b"](" + get(level) * 2 + b"e" for level in range(60))
# Lists that are put into each other while they are empty.
NESTED_LATER = b"".join(b"]" + put(level) for level in range(60)) + b"".join(
    get(level) + b"(" + get(level + 1) * 2 + b"e" for level in range(59)
)


def made(name: str, argument: bytes, times: int = 1) -> bytes:
    """Push a list of what a function makes of one argument, made some times."""
    return b"](" + (call(name) + argument + b"\x85R") * times + b"e"


#: what is tried -> the pickle, without its first and last opcode
HOSTILE = {
    "nested tuples as a key": entry(doubled(60)),
    "nested tuples as a key, three at a time": entry(doubled(40, wrap=get(39) + b"\x87")),
    "nested tuples by marks": b"}("
    + b")"
    + put(0)
    + b"".join(b"(" + get(0) * 3 + b"t" + put(0) for _ in range(40))
    + b"u",
    "nested tuples as a key among tensors": b"}(" + text("a") + TENSOR + doubled(60) + b"Nu",
    "nested tuples of what a tensor named": entry(
        doubled(60, base=TENSOR.replace(b"K\x01\x85K", b"K\x01\x85q\x07K", 1) + b"h\x07\x86")
    ),
    "nested tuples as the name of a storage": STORAGE.replace(text("0"), doubled(60)),
    "nested tuples in pairs": made("collections.OrderedDict", b"](" + doubled(60) + b"N\x86e"),
    "nested tuples in a set": made("builtins.set", b"](" + doubled(60) + b"e"),
    "nested tuples, counted": made("collections.Counter", b"](" + doubled(60) + b"e"),
    "nested tuples in a set of Python 2": made("__builtin__.set", b"](" + doubled(60) + b"e"),
    "a long tuple in keys": b"](" + LONG_TUPLE + put(0) + b"}(" + (get(0) + b"K\x01\x86N") * 50_000 + b"ue",
    "a deep tuple as a key": entry(b")" + b"\x85" * 15_000),
    "a deeper tuple as a key": entry(b")" + b"\x85" * 300_000),
    "tuples as many keys": b"}(" + b"".join(number(n)[:2] + number(n)[2:] + b"\x85N" for n in range(100_000)) + b"u",
    "numbers of one hash": b"}(" + b"".join(number((n + 2**9) * (2**61 - 1)) + b"N" for n in range(50_000)) + b"u",
    "numbers of one hash in a set": made(
        "builtins.set", b"](" + b"".join(number((n + 2**9) * (2**61 - 1)) for n in range(50_000)) + b"e"
    ),
    "a list made a set, often": b"](" + LONG_LIST + made("builtins.set", get(1), 20_000) + b"e",
    "a list that grew later, often": b"](]"
    + put(1)
    + b"]"
    + put(2)
    + get(1)
    + b"a"
    + get(1)
    + b"("
    + LONG_TUPLE
    + b"Ne"
    + made("collections.OrderedDict", get(2), 50_000)
    + b"e",
    "a tensor made a set": made("builtins.set", MANY),
    "a tensor made a size": made("torch.Size", MANY),
    "a tensor made a dict": made("collections.OrderedDict", MANY),
    "a tensor made bytes": made("builtins.bytearray", MANY),
    "a tensor in place of attributes": call("collections.OrderedDict") + b")R" + MANY + b"b",
    "a tensor in place of arguments": call("builtins.set") + MANY + b"R",
    "text encoded again and again": made("_codecs.encode", text("ab") + text("hex") + b"\x86R" + text("hex"))[:-3]
    + b"\x86Re",
    "text as Punycode": b"](" + call("_codecs.encode") + text("\u0400\u4000" * 99_999) + text("punycode") + b"\x86Re",
    "bytes by number": made("builtins.bytearray", b"J\xff\xff\xff\x7f", 9),
    "long text made bytes, often": b"]("
    + text("a" * 100_000)
    + put(1)
    + (call("_codecs.encode") + get(1) + text("latin1") + b"\x86R") * 30_000
    + b"e",
    "tensors of nested lists": made("torch.Tensor", NESTED_LISTS),
    "tensors of lists nested later": b"](" + NESTED_LATER + made("torch.FloatTensor", get(0)) + b"e",
    "a call of nested lists": NESTED_LISTS + b")R",
    "a call of lists nested later": b"](" + NESTED_LATER + get(0) + b")Re",
    "a call within a call": b"]("
    + call("torch._tensor._rebuild_from_type_v2")
    + b"("
    + call("builtins.set")
    + call("torch.Tensor")
    + MANY
    + b"\x85NtRe",
    "very many calls": b"](" + HOOKS * 1_100_000 + b"e",
    "very many numbers": b"](" + b"N" * 2**23 + b"e",
    "very many tuples": b"](" + b"N\x85" * 1_100_000 + b"e",
}


def write(path: Path, body: bytes, legacy: bool = False, version: bytes = b"M\xe9\x03") -> Path:
    content = b"\x80\x02" + body + b"."
    if legacy:
        magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
        path.write_bytes(magic + b"\x80\x02" + version + b"." + pickle.dumps({}, 2) + content + pickle.dumps([], 2))
        return path
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", bytes(4))
    return path


READ_ALL = """
import pathlib, sys, time
from weanalysis.errors import ModelError
from weanalysis.models.checkpoint import read_weights
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    began = time.process_time()
    try:
        read_weights(path)
        line = "read"
    except ModelError as error:
        line = str(error)
    print(path.name, f"{time.process_time() - began:.2f}", line, sep=chr(9), flush=True)
"""


def test_what_torch_would_follow_for_ever_is_refused_in_time(tmp_path: Path) -> None:
    tried = {"nested tuples as a key, in the older format": HOSTILE["nested tuples as a key"], **HOSTILE}
    for index, (name, body) in enumerate(tried.items()):
        write(tmp_path / f"{index:02d} {name}.pth", body, legacy=index % 2 == 0)
    write(tmp_path / "99 lists in place of the version.pth", b"N", True, version=b"](" + NESTED_LATER + get(0) + b"e")
    ran = subprocess.run([sys.executable, "-c", READ_ALL, tmp_path], capture_output=True, text=True, timeout=120)
    answers = [line.split("\t") for line in ran.stdout.splitlines()]
    assert len(answers) == len(tried) + 1, f"hangs or fails after {answers[-1:]}: {ran.stderr[-500:]}"
    for name, seconds, line in answers:
        assert "more time or memory than it is large" in line, f"{name}: {line}"
        assert float(seconds) < 10, f"{name}: {seconds} s"


def trained() -> dict[str, Any]:
    """Make what a training script saves: weights, states of an optimizer and a scheduler, counters, histories."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    groups = [{"params": [parameter]} for parameter in net.parameters()]
    optimizer = torch.optim.Adam(groups, lr=0.1, betas=(0.9, 0.99))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    net(torch.zeros(2, 3, 3, 3)).sum().backward()
    optimizer.step()
    scheduler.step()
    return {
        "state_dict": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": {key: value for key, value in scheduler.state_dict().items() if not callable(value)},
        "epoch": 3,
        "best": 0.5,
    }


ORDINARY: dict[str, Callable[[], Any]] = {
    "a state dict": lambda: trained()["state_dict"],
    "a whole training state": trained,
    "half precision, sparse, quantized": lambda: {
        "a": torch.zeros(3).half(),
        "b": torch.eye(3).to_sparse(),
        "c": torch.eye(3).to_sparse_csr(),
        "d": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
        "e": torch.zeros(2, 3, 4, 5, 6).permute(4, 1, 2, 3, 0),
        "f": nn.Parameter(torch.zeros(3)),
        "g": torch.zeros(2, device="meta"),
    },
    "one tensor under many names": lambda: dict.fromkeys(map(str, range(1000)), torch.zeros(3)),
    "plain values": lambda: {
        "classes": [f"class {index}" for index in range(20_000)],
        "history": [index / 7 for index in range(100_000)],
        "order": list(range(100_000)),
        "edges": {(row, column): row / (column + 1) for row in range(50) for column in range(50)},
        "deep": {"a": {"b": {"c": {"d": [[[[1, (2, (3, (4,)))]]]]}}}},
        "random": {"state": 2**127 + 1, "inc": 2**90, "python": (3, tuple(range(2**31, 2**31 + 625)), None)},
        "set": {1, 2, "a", (1, 2)},
        "counter": Counter("abracadabra"),
        "ordered": OrderedDict(a=1, b=OrderedDict()),
        "bytes": [b"abc", b"\xff" * 5000, bytearray(b"xyz"), bytearray()],
        "others": [1j, torch.Size([2, 3]), torch.float16, torch.device("cpu"), torch.strided, None, True, b"latin1"],
        "long": "x" * 1_000_000,
        "log": "y" * 50_000,
        3: "a number as a key",
        2.5: (),
    },
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", ORDINARY)
def test_what_people_save_is_read(kind: str, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    content = ORDINARY[kind]()
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    loaded = torch.load(path, weights_only=True)
    assert isinstance(loaded, Mapping), "torch itself reads it"
    with open(path, "rb") as file:
        check_pickles(file, zipped=not legacy)
    if not legacy:  # to its end, and not up to an opcode that is not understood
        pickled = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")
        assert _Scan(pickled).run(0) == len(pickled)
    if kind != "plain values":
        assert read_weights(path).state.keys() >= {name for name in content.get("state_dict", {})}


def test_what_a_user_allows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    arguments = argparse.Namespace(lr=0.1, layers=[1, 2], nested=argparse.Namespace(a=(1, 2)))
    torch.save({"state_dict": {"a": torch.zeros(3)}, "args": arguments, "best": np.float64(0.5)}, path)
    with pytest.raises(ModelError, match="holds more than tensors"):
        read_weights(path)
    allowed = [argparse.Namespace, np.dtype, type(np.dtype("f8")), np.float64(0).__reduce__()[0]]
    with torch.serialization.safe_globals(allowed):
        assert read_weights(path).state["a"].tolist() == [0, 0, 0]


def test_old_state_dicts_of_python_2_are_read(tmp_path: Path) -> None:
    """There, an ordered dict is a call with a list of lists."""
    pairs = b"".join(b"](" + text(f"layer{index}") + TENSOR + b"e" for index in range(300))
    path = write(tmp_path / "file.pth", call("collections.OrderedDict") + b"](" + pairs + b"e\x85R")
    assert len(read_weights(path).state) == 300


def test_keys_that_are_no_text_are_shown_in_short(tmp_path: Path) -> None:
    deep: Any = ()
    for _ in range(90):
        deep = (deep,)
    path = tmp_path / "file.pth"
    torch.save({"a": torch.zeros(1), "b": torch.zeros(1), deep: 1}, path)
    (weights,) = read_weights(path).sets
    assert len(weights.others) == 1 and len(weights.others[0]) < 200


def test_every_opcode_that_torch_follows_is_counted() -> None:
    """Of a torch that follows more, files that have these opcodes are refused until they are counted here."""
    for opcode in pickletools.opcodes:
        if getattr(_weights_only_unpickler, opcode.name, None) == opcode.code.encode("latin1"):
            try:
                _Scan(b"((]" + opcode.code.encode("latin1") + bytes(20)).run(0)
            except TooCostly as error:
                assert "not known" not in str(error)
            except (IndexError, struct.error, ValueError, EOFError, pickle.UnpicklingError, TypeError):
                pass
