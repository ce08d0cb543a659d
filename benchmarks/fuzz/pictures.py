"""Mutated pictures and image folders: each gives a result or one clear line, in bounded time and memory.

Every tenth input is a folder, the others are pictures: files of all formats and modes, and some of other formats, with
bytes changed, cut, repeated and spliced. A picture that was found well and then cannot be read is a fault too.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.fuzz.bounded import Outcomes, main, run_bounded
from weanalysis.data import load_data
from weanalysis.data.pictures import FilePictures
from weanalysis.errors import DataError, WeanalysisError

FOLDERS_EVERY = 10

_EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def run(count: int, seed: int) -> Outcomes:
    """Examine `count` mutated pictures and folders and return how many ended how."""
    return run_bounded("benchmarks.fuzz.pictures", count, seed)


def prepare(number: int, seed: int, folder: Path) -> tuple[str, Callable[[], object]]:
    """Write input `number` of a seed into a folder; return its kind, and what reads it."""
    random = np.random.default_rng([seed, number])
    if number % FOLDERS_EVERY == FOLDERS_EVERY - 1:
        make_folder(folder, random)
        return "folder", functools.partial(read_folder, folder, random)
    (folder / "0.png").write_bytes(mutated([*pictures().values(), *strangers().values()], random))
    return "picture", functools.partial(read_picture, folder)


def read_picture(root: Path) -> None:
    """Examine a file in both ways and read it, as a data set does."""
    served = FilePictures(root, ("0.png",))
    served.examine(0, decode=False)
    examined = served.examine(0, decode=True)
    if examined.problem is not None:
        served.listing()
        raise DataError(examined.problem)
    try:
        picture = served.picture(0)
    except WeanalysisError as error:
        raise AssertionError(f"found well, then {error}") from error
    assert picture.mode == "RGB" and sorted(picture.size) == sorted(examined.size or ())


def read_folder(root: Path, random: np.random.Generator) -> None:
    """Load a folder with options drawn at random, and read some of its images."""
    data = load_data(
        f"imagefolder:{root}",
        image_size=8,
        num_images=5,
        split=("test", "train")[random.integers(2)],
        skip_bad_images=bool(random.integers(2)),
        class_order=(None, "text", "numeric")[random.integers(3)],
    )
    data.batch(0, 5)
    for note in data.notes:
        assert "\n" not in note and note.isprintable(), note


@functools.cache
def pictures() -> dict[str, bytes]:
    """Return well pictures of every format and mode that Pillow can write, by name."""
    random = np.random.default_rng(0)
    grey = random.integers(0, 256, (12, 16), np.uint8)
    colours = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    images = {mode: colours.convert(mode) for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr")}
    images |= {"I;16": wide, "F": Image.fromarray(grey.astype(np.float32)), "I": Image.fromarray(grey.astype(np.int32))}
    turned = Image.Exif()
    turned[0x0112] = 6
    files = {}
    for name, image in images.items():
        for form, options in _FORMS:
            file = io.BytesIO()
            with contextlib.suppress(OSError, ValueError, KeyError, SystemError):
                image.save(file, form, **options)
                files[f"{name} {form} {options}"] = file.getvalue()
    frames = [colours.convert("P"), colours.rotate(90).convert("P").resize(colours.size)]
    for form in ("GIF", "PNG", "TIFF", "WEBP"):
        file = io.BytesIO()
        frames[0].save(file, form, save_all=True, append_images=frames[1:])
        files[f"frames {form}"] = file.getvalue()
    file = io.BytesIO()
    colours.save(file, "TIFF", compression="jpeg")
    files["JPEG in TIFF"] = file.getvalue()
    for form in ("JPEG", "PNG", "WEBP", "TIFF"):
        file = io.BytesIO()
        colours.save(file, form, exif=turned)
        files[f"turned {form}"] = file.getvalue()
    files["plain PPM"] = b"P3 4 2 255 " + b" ".join(b"%d" % value for value in range(24))
    files["RLE BMP"] = rle_bmp(16, 12, b"\x10\x03" * 12 + b"\x00\x01")
    return files


_FORMS: tuple[tuple[str, dict], ...] = (
    ("PNG", {}),
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("BMP", {}),
    ("GIF", {}),
    ("PPM", {}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", {"compression": "packbits"}),
)


@functools.cache
def strangers() -> dict[str, bytes]:
    """Return files of formats that are not opened, and pictures that are larger than they look, by name."""
    files = {}
    for form in ("DDS", "EPS", "ICO", "PCX", "SGI", "TGA", "JPEG2000", "PDF", "IM", "MSP", "XBM"):
        file = io.BytesIO()
        with contextlib.suppress(OSError, ValueError, KeyError):
            Image.new("1" if form in ("MSP", "XBM") else "RGB", (16, 12)).save(file, form)
            files[form] = file.getvalue()
    files["empty"], files["text"] = b"", b"<html>404</html>"
    files["zip"] = b"PK\x03\x04" + bytes(60)
    files["huge PNG"] = png(2**31 - 1, 2**31 - 1, b"")
    files["large PNG"] = png(9_400, 9_400, zlib.compress(bytes(10_000)))
    files["PNG with a bomb of text"] = png(4, 4, b"", extra=(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24))))
    files["long RLE BMP"] = rle_bmp(60_000, 200, b"\x00\x02\xff\xff" * 50)
    files["JPEG of many scans"] = many_scans(3_000, 20_000)
    return files


def png(width: int, height: int, pixels: bytes, extra: tuple[bytes, bytes] | None = None) -> bytes:
    """Write an 8-bit RGB PNG of these sizes, whatever its (compressed) pixels are."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        *([extra] if extra else []),
        (b"IDAT", pixels),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in chunks)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def rle_bmp(width: int, height: int, codes: bytes) -> bytes:
    """Write an 8-bit BMP whose pixels are run lengths."""
    palette = bytes(4 * 256)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(codes), 0, 0, 256, 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(codes), 0, 0, start) + header + palette + codes


def many_scans(side: int, num_scans: int) -> bytes:
    """Write a progressive JPEG that goes over its pixels again and again."""
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    start = content.index(b"\xff\xda")
    scan = content[start : start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")]
    return content[:start] + scan * num_scans + b"\xff\xd9"


def mutated(seeds: list[bytes], random: np.random.Generator) -> bytes:
    """Return one of the files with one to six changes; a PNG's checksums are often made right again."""
    content = bytearray(seeds[random.integers(len(seeds))])
    for _ in range(random.integers(0, 7)):
        place = int(random.integers(len(content) + 1)) if random.random() < 0.5 else int(random.integers(64))
        place = min(place, len(content))
        kind = random.integers(7)
        if kind == 0:
            content[place : place + 1] = bytes([random.integers(256)])
        elif kind == 1 and place < len(content):
            content[place] ^= 1 << random.integers(8)
        elif kind == 2:
            width, order = (("H", "<"), ("H", ">"), ("I", "<"), ("I", ">"))[random.integers(4)]
            value = _EXTREMES[random.integers(len(_EXTREMES))] & (0xFFFF if width == "H" else 0xFFFFFFFF)
            content[place : place + struct.calcsize(width)] = struct.pack(order + width, value)
        elif kind == 3:
            del content[place : place + int(random.integers(1, 40))]
        elif kind == 4:
            content[place:place] = content[place : place + int(random.integers(1, 200))]
        elif kind == 5 and random.random() < 0.3:
            del content[place:]
        else:
            other = seeds[random.integers(len(seeds))]
            start = int(random.integers(len(other) + 1))
            content[place:place] = other[start : start + int(random.integers(1, 100))]
    return _with_right_checksums(bytes(content)) if random.random() < 0.7 else bytes(content)


def _with_right_checksums(content: bytes) -> bytes:
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    place, parts = 8, [content[:8]]
    while place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        if place + 12 + length > len(content):
            break
        parts.append(_chunk(content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    return b"".join(parts) + content[place:]


_NAMES = (
    "1",
    "2",
    "10",
    "cat",
    "Dog",
    "Train",
    "test",
    "VAL",
    "train",
    "__MACOSX",
    ".ipynb_checkpoints",
    "a b",
    "ü",
    "-1",
    os.fsdecode(b"\xff\xfe"),
    "x" * 200,
    "class_1",
    "class_10",
    "0.png",
    "a'b\"c<d>",
    "line\nbreak",
)
_FILES = ("0.png", "1.JPG", "._0.png", "notes.txt", "Thumbs.db", os.fsdecode(b"\xff.png"), "b.tiff", "c.webp", "d.gif")


def make_folder(root: Path, random: np.random.Generator) -> None:
    """Fill a folder with folders, pictures, other files, links and a pipe, all drawn."""
    kinds = list(pictures_by_kind())
    places = [root]
    if random.random() < 0.7:  # two classes that are well, whatever else there is
        inside = root / _NAMES[random.integers(len(_NAMES))] if random.random() < 0.3 else root
        for name in ("a", "b"):
            (inside / name).mkdir(parents=True)
            (inside / name / "0.png").write_bytes(kinds[0])
    for _ in range(int(random.integers(0, 6))):
        path = places[random.integers(len(places))] / _NAMES[random.integers(len(_NAMES))]
        with contextlib.suppress(OSError):
            path.mkdir()
            places.append(path)
            if random.random() < 0.7:
                (path / "well.png").write_bytes(kinds[0])
    for _ in range(int(random.integers(0, 24))):
        path = places[random.integers(len(places))] / _FILES[random.integers(len(_FILES))]
        kind = random.integers(10)
        if os.path.lexists(path):
            continue
        with contextlib.suppress(OSError):
            if kind == 0:
                path.symlink_to(places[random.integers(len(places))], target_is_directory=True)
            elif kind == 1:
                path.symlink_to("nowhere")
            elif kind == 2:
                os.mkfifo(path)
            elif kind == 3:
                (path.parent / "again").symlink_to(path.parent.parent, target_is_directory=True)
            elif kind < 7:
                path.write_bytes(kinds[0])
            else:
                path.write_bytes(kinds[random.integers(len(kinds))])


def pictures_by_kind() -> Iterator[bytes]:
    """Yield few pictures for folders: mostly well ones."""
    well = pictures()
    yield from (well["RGB PNG {}"], well["L PNG {}"], well["RGB JPEG {}"], well["I;16 PNG {}"], well["F TIFF {}"], b"")


def _warm_up() -> None:
    warnings.simplefilter("ignore")  # Pillow's remarks on damaged files
    for number in range(40):
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Exception):
            prepare(number, 1_000_003, Path(folder))[1]()


if __name__ == "__main__":
    main("benchmarks.fuzz.pictures", prepare, __doc__, _warm_up)
