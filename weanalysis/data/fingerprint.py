"""The one pass over a dataset's contents: hashes every picture, finds those that are none, and remembers both."""

from __future__ import annotations

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from weanalysis.cache import Cache, write_atomically
from weanalysis.data.pictures import Examined, Looked, digest

_MEMO_ENTRIES = 200
_MEMO_VERSION = 2
_BLOCK = 64


@dataclass(frozen=True)
class Examination:
    """What was found in a dataset: the hash of each picture in one, those that are none, the size they share.

    `remarks` has, by their names in `decoding.REMARKS`, how many pictures each holds for and the position of one;
    `lengths` how many clips have so many frames.
    """

    content: str
    problems: dict[int, str] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    remarks: dict[str, tuple[int, int]] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)


def examine(pictures: Looked, labels: np.ndarray, cache: Cache | None, decode: bool) -> Examination:
    """Hash names, labels and contents of all usable pictures, once for as long as their listing stays the same.

    `decode` looks for broken pictures by decoding each, otherwise only headers are read. The memo lies in
    the cache; without one, and for pictures in memory, there is none.
    """
    listing = pictures.listing() if cache else None
    if cache is None or listing is None:
        return _examine(pictures, labels, decode)[0]
    memo = cache.fingerprints
    address = digest([_MEMO_VERSION, listing, labels.tolist(), decode])
    known = _read(memo).get(address)
    if known is not None:
        problems = {int(index): problem for index, problem in known["problems"].items()}
        remarks = {name: (count, first) for name, (count, first) in known["remarks"].items()}
        size = tuple(known["size"]) if known["size"] else None
        lengths = {int(length): count for length, count in known.get("lengths", {}).items()}
        return Examination(known["content"], problems, size, remarks, lengths)
    examination, lasting = _examine(pictures, labels, decode)
    if not lasting:
        return examination
    cache.ready()
    entries = {**_read(memo), address: asdict(examination)}
    newest = dict(list(entries.items())[-_MEMO_ENTRIES:])
    write_atomically(memo, json.dumps(newest).encode())
    return examination


def _examine(pictures: Looked, labels: np.ndarray, decode: bool) -> tuple[Examination, bool]:
    """Return what was found, and whether all of it would be found again."""

    def examine_block(start: int) -> list[Examined]:
        return [pictures.examine(index, decode) for index in range(start, min(start + _BLOCK, len(pictures)))]

    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        examined = [one for block in pool.map(examine_block, range(0, len(pictures), _BLOCK)) for one in block]
    problems = {index: one.problem for index, one in enumerate(examined) if one.problem is not None}
    usable = [index for index in range(len(examined)) if index not in problems]
    content = digest([[pictures.label(index), int(labels[index]), examined[index].digest] for index in usable])
    sizes = {examined[index].size for index in usable}
    counts = Counter(remark for index in usable for remark in examined[index].remarks)
    remarks = {
        name: (count, next(index for index in usable if name in examined[index].remarks))
        for name, count in sorted(counts.items())
    }
    counted = (examined[index].num_frames for index in usable)
    lengths = dict(Counter(length for length in counted if length is not None))
    examination = Examination(content, problems, sizes.pop() if len(sizes) == 1 else None, remarks, lengths)
    return examination, all(one.lasting for one in examined)


def _read(memo: Path) -> dict[str, Any]:
    try:
        entries = json.loads(memo.read_bytes())
    except (OSError, ValueError):
        return {}  # Not there yet, or not ours: the contents are hashed again.
    return entries if isinstance(entries, dict) else {}
