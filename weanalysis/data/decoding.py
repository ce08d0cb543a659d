"""From a file's bytes to an RGB picture: which formats are opened, how large, and what becomes of each kind of pixel.

docs/images.md has the table of modes that `to_rgb` carries out.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

# The formats that are opened, whatever a file is called. Pillow knows more, of which some start a program (EPS:
# Ghostscript) and some are nobody's idea of a picture in a data set.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "TIFF", "WEBP")

# The first is where Pillow begins to warn. A file of twice as many bytes as that has pixels is larger than any of them.
MAX_PIXELS = 89_478_485
MAX_SIDE = 65_535
MAX_BYTES = 2**29
# Decoders that are written in Python take a second for some millions of values.
_SLOW_DECODERS = {"bmp_rle", "ppm", "ppm_plain"}
_MAX_SLOW_VALUES = 2**24
# Each scan of a JPEG that has several goes over all pixels again, and takes but some bytes; ordinary files have ten.
_MAX_SCANNED_PIXELS = 2**34
# Pillow makes Python numbers of a TIFF tag's values, of types other than bytes and text.
_MAX_TAG_VALUES, _TIFF_BYTES_AND_TEXT = 2**20, (1, 2, 7)
_MAX_EXIF_BYTES = 2**20
# Larger pictures are held in memory one at a time, whatever the number of threads.
_LARGE_PIXELS, _LARGE_BYTES = 2**23, 2**25

_PLAIN_MODES = ("RGB", "L", "P", "RGBA", "CMYK", "1", "LA", "PA", "RGBX", "YCbCr", "HSV")
_PREMULTIPLIED = {"RGBa": "RGBA", "La": "LA"}
_REFUSED_MODES = {
    "F": "32-bit float pixels (mode F), whose range is not known",
    "I": "32-bit or signed pixels (mode I), whose range is not known",
    "LAB": "CIELAB pixels (mode LAB)",
}

_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2

# What the first bytes say that a file is, where it is none of the above.
_OTHER_KINDS = (
    (0, b"%!PS", "an EPS or PostScript file"),
    (0, b"\xc5\xd0\xd3\xc6", "an EPS file"),
    (0, b"%PDF", "a PDF file"),
    (0, b"DDS ", "a DDS texture"),
    (0, b"8BPS", "a Photoshop file"),
    (4, b"jP  ", "a JPEG 2000 file"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 file"),
    (4, b"ftypavi", "an AVIF file"),
    (4, b"ftyp", "a HEIC file or a video"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, whose file was not fetched"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"<", "a web page or another text"),
)

# What is said of pictures that are not simply taken as they are; {pictures} is their number and the name of one.
REMARKS = {
    "sixteen bits": "{pictures} 16 bits of grey, of which the upper 8 are taken",
    "alpha": "{pictures} alpha or a transparent colour, which is left out: transparent places show the colour that is "
    "stored beneath, as in torchvision's ImageFolder",
    "frames": "{pictures} several frames or pages, of which the first is taken",
    "not turned": "{pictures} an EXIF orientation, which is not applied, as in torchvision's ImageFolder; if a network "
    "was trained on upright pictures, turn the files",
    "turned": "{pictures} an EXIF orientation, which is applied, as by the library datasets",
}
# The remarks under which pixels are others than versions before them read from the same bytes.
_OTHER_PIXELS = ("sixteen bits", "turned")


class Unreadable(Exception):
    """A file that is not read as a picture, with the reason in words; not `lasting` if it may be read another time."""

    def __init__(self, why: str, lasting: bool = True) -> None:
        super().__init__(why)
        self.lasting = lasting


@dataclass(frozen=True)
class Look:
    """What a picture's header says: its size in pixels and which of REMARKS hold, or why it cannot be read."""

    size: tuple[int, int] | None = None
    remarks: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def reading(self) -> str:
        """What tells pixels apart that were read from the same bytes in another way; empty for nearly all."""
        return ",".join(remark for remark in self.remarks if remark in _OTHER_PIXELS)


def read_file(path: Path) -> bytes:
    """Return what a file holds; raise Unreadable where it is no regular file, is not there or is too large."""
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            raise Unreadable("no regular file")
        if state.st_size > MAX_BYTES:
            raise Unreadable(f"{state.st_size:,} bytes; at most {MAX_BYTES:,} are read")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise Unreadable("a link to nothing" if path.is_symlink() else reason(error)) from error
    except OSError as error:
        raise Unreadable(reason(error), lasting=False) from error


def decode(content: bytes, upright: bool = False) -> Image.Image:
    """Return a picture in RGB; `upright` applies its EXIF orientation. Raises Unreadable."""
    with _opened(content) as image:
        _check_scans(image, content)
        turned = upright and _orientation(image) > 1
        picture = to_rgb(image)
        # TIFF files are turned by Pillow itself, as soon as they are decoded.
        return ImageOps.exif_transpose(picture) if turned and image.format != "TIFF" else picture


def decode_indices(content: bytes) -> np.ndarray:
    """Return the numbers of a picture of 8 bits whose pixels have one each, uint8 (H, W), such as a palette's places.

    Raises Unreadable for a picture of another kind.
    """
    with _opened(content) as image:
        _check_scans(image, content)
        if image.mode not in ("P", "L"):
            raise Unreadable(f"pixels of mode {image.mode}; a mask has one number of 8 bits each (mode P or L)")
        return np.array(image)


def image_size(content: bytes) -> tuple[int, int]:
    """Return the width and height that a picture's header says. Raises Unreadable."""
    with _opened(content) as image:
        return image.size


def look(content: bytes, decode_all: bool, upright: bool = False) -> Look:
    """Read a picture's header, and with `decode_all` all of it, as `decode` would."""
    try:
        with _opened(content) as image:
            _check_mode(image)
            result = Look(image.size, _remarks(image, upright))
            if decode_all:
                _check_scans(image, content)
                image.load()
                if image.mode not in ("RGB", "L"):
                    to_rgb(image)
            else:
                image.verify()
            return result
    except Unreadable as error:
        return Look(problem=str(error))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture by the true range of its mode; raise Unreadable for a mode whose range is not known."""
    _check_mode(image)
    if image.mode == "RGB":
        return image.convert("RGB")
    if _has_sixteen_bits(image):
        return _upper_eight_bits(image).convert("RGB")
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    if "transparency" in image.info:  # Pillow would warn that it leaves it out.
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def reason(error: Exception) -> str:
    """Word an exception of Pillow or the system in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:200]


_large = threading.Lock()


@contextlib.contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    """Open a picture of a known format and a bounded size; whatever Pillow raises on it becomes Unreadable."""
    alone = len(content) > _LARGE_BYTES
    if alone:
        _large.acquire()
    try:
        if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            _check_tags(content)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if not alone and width * height > _LARGE_PIXELS:
                alone = _large.acquire()
            _check_size(image)
            yield image
    except Unreadable:
        raise
    except Image.UnidentifiedImageError as error:
        raise Unreadable(_unknown(content)) from error
    except Image.DecompressionBombError as error:
        raise Unreadable(f"it has more than {MAX_PIXELS:,} pixels") from error
    # Damaged files raise from a dozen unrelated families, depending on where in the parser they are noticed.
    except Exception as error:
        raise Unreadable(reason(error)) from error
    finally:
        if alone:
            _large.release()


def _check_tags(content: bytes) -> None:
    """Look through the first directory of a TIFF file, before Pillow reads it."""
    order = "<" if content[:2] == b"II" else ">"
    is_big = struct.unpack_from(f"{order}H", content, 2)[0] == 43
    offset, number, entry = ("Q", "Q", "HHQ8x") if is_big else ("I", "H", "HHI4x")
    (start,) = struct.unpack_from(order + offset, content, 8 if is_big else 4)
    (num_tags,) = struct.unpack_from(order + number, content, start)
    first, size = start + struct.calcsize(order + number), struct.calcsize(order + entry)
    last = min(first + size * num_tags, len(content) - size + 1)
    for place in range(first, last, size):
        tag, kind, count = struct.unpack_from(order + entry, content, place)
        if kind not in _TIFF_BYTES_AND_TEXT and count > _MAX_TAG_VALUES:
            raise Unreadable(f"its TIFF tag {tag} has {count:,} values")


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise Unreadable(f"it has {width} x {height} pixels")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise Unreadable(
            f"it has {width:,} x {height:,} pixels; at most {MAX_PIXELS:,} are read, {MAX_SIDE:,} on a side"
        )
    decoder = image.tile[0][0] if image.tile else ""  # type: ignore[attr-defined]
    if decoder in _SLOW_DECODERS and width * height * len(image.getbands()) > _MAX_SLOW_VALUES:
        raise Unreadable(f"it has {width:,} x {height:,} pixels in a coding that is slow to decode; save it as PNG")


def _check_scans(image: Image.Image, content: bytes) -> None:
    if image.format not in ("JPEG", "MPO") or _has_one_scan(image, content):
        return
    scans = content.count(b"\xff\xda")
    if image.width * image.height * scans > _MAX_SCANNED_PIXELS:
        raise Unreadable(f"it goes {scans:,} times over its {image.width:,} x {image.height:,} pixels")


def _has_one_scan(image: Image.Image, content: bytes) -> bool:
    """Whether a JPEG's first scan has all components at once, so that it is the only one that is decoded."""
    if image.info.get("progressive"):
        return False
    num_components = image.layers  # type: ignore[attr-defined]
    header = b"\xff\xda\x00" + bytes([6 + 2 * num_components, num_components])
    end = image.fp.tell()  # type: ignore[attr-defined]
    start = end - 2 * num_components - 8
    return content[start : start + len(header)] == header


def _check_mode(image: Image.Image) -> None:
    mode = image.mode
    if mode in ("RGB", "L") and image.format != "TIFF":
        return
    if mode not in _PLAIN_MODES and mode not in _PREMULTIPLIED and not _has_sixteen_bits(image):
        kind = _REFUSED_MODES.get(mode, f"pixels of mode {mode}")
        raise Unreadable(f"{kind}; save it as 8-bit RGB or as 8- or 16-bit grey")
    if _tag(image, _TIFF_SAMPLE_FORMAT, 1) == _SIGNED:
        raise Unreadable("signed pixels, whose range is not known; save it as 8-bit RGB or as 8- or 16-bit grey")


def _has_sixteen_bits(image: Image.Image) -> bool:
    # PPM files of more than 8 bits are scaled to 16 in mode I, which older versions of Pillow use for PNG too.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _upper_eight_bits(image: Image.Image) -> Image.Image:
    """Bring 16-bit grey (in TIFF also 12-bit) to 8 bits as Pillow does with 16-bit colours: the upper ones."""
    pixels = np.asarray(image) >> (_tag(image, _TIFF_BITS, 16) - 8)
    if _tag(image, _TIFF_PHOTOMETRIC, 1) == _WHITE_IS_ZERO:  # Pillow inverts these up to 8 bits only.
        pixels = 255 - pixels
    return Image.fromarray(pixels.astype(np.uint8))


def _tag(image: Image.Image, number: int, default: int) -> int:
    """Return the (first) value of a TIFF file's tag; the default for a file that has none, or is no TIFF."""
    value = getattr(image, "tag_v2", {}).get(number, default) if image.format == "TIFF" else default
    return value[0] if isinstance(value, tuple) else value


def _remarks(image: Image.Image, upright: bool) -> tuple[str, ...]:
    turned = ("turned" if upright else "not turned",) if _orientation(image) > 1 and image.format != "TIFF" else ()
    if image.format == "JPEG":
        return turned
    remarks = {
        "sixteen bits": _has_sixteen_bits(image),
        "alpha": image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info,
        # An MPO file is a JPEG picture with previews of itself, or with one for the other eye.
        "frames": image.format != "MPO" and getattr(image, "is_animated", False),
    }
    return (*(remark for remark, holds in remarks.items() if holds), *turned)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation that the header names: 1 as it lies, 2 to 8 otherwise."""
    if not 0 < len(image.info.get("exif", "")) <= _MAX_EXIF_BYTES:
        return 1
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    # A damaged EXIF block says nothing about a picture that is well.
    except Exception:
        return 1
    return value if value in range(1, 9) else 1


def _unknown(content: bytes) -> str:
    if not content:
        return "the file is empty"
    start = content[:64].lstrip()
    kind = next((kind for place, mark, kind in _OTHER_KINDS if start[place:].startswith(mark)), None)
    if kind is None:
        return "not a picture in any known format"
    return f"{kind}; the formats that are read: {', '.join(FORMATS)}"
