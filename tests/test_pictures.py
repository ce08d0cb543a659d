"""Pictures and folders as people have them: every mode by its true range, strangers' files, links, hidden copies."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.fuzz import pictures as made
from weanalysis.cache import Cache
from weanalysis.data import GivenImages, Transform, check_targets, load_data
from weanalysis.data.decoding import FORMATS, Unreadable, decode, look
from weanalysis.data.pictures import FilePictures, digest
from weanalysis.errors import DataError

ROOT = Path(__file__).resolve().parents[1]
RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (6, 8), np.uint8)
COLOURS = RANDOM.integers(0, 256, (6, 8, 3), np.uint8)


def written(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pixels(content: bytes, **options: bool) -> np.ndarray:
    picture = decode(content, **options)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def network(num_classes: int, classes: tuple[str, ...] | None = None) -> object:
    return type("Net", (), {"num_classes": num_classes, "classes": classes, "transform": None, "net": None})()


def fill(root: Path, names: list[str], count: int = 1) -> Path:
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.roll(COLOURS, place + number, 0)).save(root / name / f"{number}.png")
    return root


# --- modes


def test_sixteen_bits_of_grey_are_the_pixels_of_their_eight_bit_copy() -> None:
    wide = Image.fromarray(GREY.astype(np.uint16) * 257)
    big_endian = Image.frombytes("I;16B", wide.size, (GREY.astype(">u2") * 257).tobytes())
    for image, form in ((wide, "PNG"), (wide, "TIFF"), (wide, "PPM"), (big_endian, "TIFF")):
        content = written(image, form)
        np.testing.assert_array_equal(pixels(content), grey(GREY), err_msg=form)
        assert look(content, False).remarks == ("sixteen bits",)
    np.testing.assert_array_equal(pixels(written(Image.fromarray(GREY), "PNG")), grey(GREY))
    transform = Transform(8, (0, 0, 0), (1, 1, 1))
    assert torch.equal(transform.pixels(wide), transform.pixels(Image.fromarray(GREY)))


def tiff(values: bytes, bits: int, photometric: int, sample_format: int, more: tuple = ()) -> bytes:
    """Write an uncompressed TIFF of 8 x 6 pixels by hand; `more` are entries (tag, type, count, value)."""
    tags = (
        (256, 8),
        (257, 6),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 8),
        (277, 1),
        (278, 6),
        (279, len(values)),
        (339, sample_format),
    )
    entries = [*((tag, 4, 1, value) for tag, value in tags), *more]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(values)) + values + directory + bytes(4)


def test_the_true_range_of_a_tiff_is_what_its_tags_say() -> None:
    wide = (GREY.astype("<u2") * 257).tobytes()
    np.testing.assert_array_equal(pixels(tiff(wide, 16, 1, 1)), grey(GREY))
    np.testing.assert_array_equal(pixels(tiff(wide, 16, 0, 1)), grey(255 - GREY))
    np.testing.assert_array_equal(pixels(tiff(GREY.tobytes(), 8, 0, 1)), grey(255 - GREY))
    twelve = GREY.astype(int).ravel() * 16
    packed = bytes(
        byte for one, two in twelve.reshape(-1, 2) for byte in (one >> 4, (one & 15) << 4 | two >> 8, two & 255)
    )
    np.testing.assert_array_equal(pixels(tiff(packed, 12, 1, 1)), grey(GREY))
    for content in (tiff(GREY.tobytes(), 8, 1, 2), tiff(wide, 16, 1, 2)):
        with pytest.raises(Unreadable, match=r"signed pixels.*8-bit RGB"):
            decode(content)


def test_other_modes_are_what_their_definition_says() -> None:
    one_bit = Image.fromarray(GREY > 127)
    np.testing.assert_array_equal(pixels(written(one_bit, "PNG")), grey(np.where(GREY > 127, 255, 0)))
    palette = Image.fromarray(GREY % 4).copy()
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    table = np.arange(10, 130, 10).reshape(4, 3)
    for options in ({}, {"transparency": 1}, {"transparency": b"\x00\x80\xff\x10"}):
        content = written(palette, "PNG", **options)
        np.testing.assert_array_equal(pixels(content), table[GREY % 4])
        assert look(content, False).remarks == (("alpha",) if options else ())
    alpha = Image.fromarray(np.dstack([COLOURS, GREY]))
    np.testing.assert_array_equal(pixels(written(alpha, "PNG")), COLOURS)
    assert look(written(alpha, "PNG"), False).remarks == ("alpha",)
    with_grey = Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(255 - GREY)))
    np.testing.assert_array_equal(pixels(written(with_grey, "PNG")), grey(GREY))
    inks = np.dstack([COLOURS, GREY]).astype(int)
    made = pixels(written(Image.frombytes("CMYK", (8, 6), np.uint8(inks).tobytes()), "TIFF"))
    assert np.abs(made - (255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255).max() <= 1
    luma = pixels(written(Image.merge("YCbCr", (Image.fromarray(GREY), *[Image.new("L", (8, 6), 128)] * 2)), "TIFF"))
    np.testing.assert_array_equal(luma, grey(GREY))


@pytest.mark.parametrize(
    "image, form, said",
    [
        (Image.fromarray(GREY.astype(np.float32)), "TIFF", "32-bit float pixels \\(mode F\\)"),
        (Image.fromarray(GREY.astype(np.float32) / 255), "PPM", "32-bit float pixels \\(mode F\\)"),
        (Image.fromarray(GREY.astype(np.int32)), "TIFF", "32-bit or signed pixels \\(mode I\\)"),
        (Image.new("LAB", (8, 6)), "TIFF", "CIELAB pixels \\(mode LAB\\)"),
    ],
)
def test_modes_whose_range_is_not_known_are_refused_by_name(tmp_path: Path, image, form, said) -> None:
    fill(tmp_path, ["a", "b"])
    (tmp_path / "a" / "odd.tif").write_bytes(written(image, form))
    with pytest.raises(DataError, match=f"a/odd.tif \\({said}.*8-bit RGB.*--skip-bad-images"):
        load_data(f"imagefolder:{tmp_path}")
    assert len(load_data(f"imagefolder:{tmp_path}", skip_bad_images=True)) == 2
    if image.mode != "LAB":
        with pytest.raises(DataError, match=said):
            Transform(8, (0, 0, 0), (1, 1, 1)).pixels(image)


def test_only_what_is_read_in_another_way_than_before_has_another_fingerprint(tmp_path: Path) -> None:
    """Ordinary pictures keep the fingerprint that earlier versions gave them: what is kept for them is used again."""

    def content_of(name: str) -> str:
        return load_data(f"imagefolder:{tmp_path / name}").content

    fill(tmp_path / "plain", ["a", "b"])
    made = []
    for place in ("a/0.png", "b/0.png"):
        content = (tmp_path / "plain" / place).read_bytes()
        made.append([place, len(made), hashlib.blake2b(content, digest_size=32).hexdigest()])
    assert content_of("plain") == digest(made)
    wide = Image.fromarray(GREY.astype(np.uint16) * 257)
    assert wide.size == (8, 6)
    wide.save(tmp_path / "plain" / "b" / "0.png")
    content = (tmp_path / "plain" / "b" / "0.png").read_bytes()
    made[1][2] = hashlib.blake2b(content, digest_size=32).hexdigest()
    assert content_of("plain") != digest(made)


def test_alpha_frames_and_rotation_are_said_and_remembered(tmp_path: Path) -> None:
    fill(tmp_path / "data", ["a", "b"], 2)
    image, turned = Image.fromarray(COLOURS), Image.Exif()
    turned[0x0112] = 6
    place = tmp_path / "data" / "a"
    image.convert("RGBA").save(place / "alpha.png")
    image.save(place / "frames.webp", save_all=True, append_images=[Image.new("RGB", (8, 6))], lossless=True)
    image.save(place / "turned.jpg", exif=turned)
    image.save(place / "turned2.png", exif=turned)
    cache = Cache(tmp_path / "cache")
    for _ in range(2):
        data = load_data(f"imagefolder:{tmp_path / 'data'}", cache=cache)
        notes = "\n".join(data.notes)
        assert "1 picture (a/alpha.png) has alpha" in notes and "beneath" in notes
        assert "1 picture (a/frames.webp) has several frames or pages, of which the first is taken" in notes
        assert "2 pictures (a/turned.jpg, …) have an EXIF orientation, which is not applied" in notes
    shown = {data.label(i): np.asarray(data.picture(i)) for i in range(len(data))}
    np.testing.assert_array_equal(shown["a/frames.webp"], COLOURS)
    np.testing.assert_array_equal(shown["a/turned2.png"], COLOURS)
    np.testing.assert_array_equal(pixels(written(image, "PNG", exif=turned), upright=True), np.rot90(COLOURS, -1))
    np.testing.assert_array_equal(pixels(written(image, "TIFF", exif=turned)), np.rot90(COLOURS, -1))


# --- strangers' files


def test_a_file_of_another_format_is_refused_whatever_its_name_and_nothing_is_started(tmp_path: Path) -> None:
    """With Pillow left to choose, the EPS file makes it start the program `gs`."""
    programs, started = tmp_path / "programs", tmp_path / "started"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (programs / "gs").chmod(0o755)
    fill(tmp_path / "data", ["a", "b"])
    Image.fromarray(COLOURS).save(tmp_path / "data" / "a" / "drawing.png", "EPS")
    script = """
import os, sys
from PIL import Image
from weanalysis.data import load_data
folder, started = sys.argv[1:]
for skip in (False, True):
    try:
        load_data(f"imagefolder:{folder}", skip_bad_images=skip).batch(0, 9)
    except ValueError as error:
        print(error)
    print(skip, os.path.exists(started))
try:
    Image.open(f"{folder}/a/drawing.png").load()
except OSError:
    print("pillow", os.path.exists(started))
"""
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "data"), str(started)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    refusal, *lines = done.stdout.splitlines()
    assert "a/drawing.png (an EPS or PostScript file; the formats that are read: JPEG" in refusal
    # The trap is set, and only Pillow by itself walks into it.
    assert lines == ["False False", "True False", "pillow True"]


@pytest.mark.parametrize("form", ["DDS", "ICO", "PCX", "SGI", "TGA", "PDF", "JPEG2000"])
def test_formats_that_are_not_named_are_not_opened(form: str) -> None:
    content = written(Image.new("RGB", (16, 12)), form)
    assert form not in FORMATS
    assert look(content, True).problem and look(content, False).problem
    with pytest.raises(Unreadable, match="format"):
        decode(content)


def test_pictures_are_bounded_before_they_are_decoded() -> None:
    for content, said in (
        (made.png(40_000, 40_000, b""), "more than 89,478,485 pixels"),
        (made.png(10_000, 9_000, b""), "10,000 x 9,000 pixels; at most 89,478,485"),
        (made.png(70_000, 4, b""), "65,535 on a side"),
        (made.rle_bmp(60_000, 400, b"\x00\x00" * 400), "slow to decode"),
        (b"P6 8000 8000 254 ", "slow to decode"),
        (made.many_scans(3_000, 20_000), "it goes 20,000 times over its 3,000 x 3,000 pixels"),
        (tiff(GREY.tobytes(), 8, 1, 1, more=((50_000, 3, 2**24, 8),)), "tag 50000 has 16,777,216 values"),
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    ):
        with pytest.raises(Unreadable, match=said):
            decode(content)
        assert said in look(content, True).problem
    # Ordinary progressive files, and a scan that stands in a baseline file's thumbnail, are none of these.
    assert decode(written(Image.fromarray(COLOURS), "JPEG", progressive=True)).size == (8, 6)


def test_a_pipe_and_a_device_are_no_pictures(tmp_path: Path) -> None:
    fill(tmp_path, ["a", "b"])
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "endless.png").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"a/endless.png \(no regular file\), a/pipe.png \(no regular file\)"):
        load_data(f"imagefolder:{tmp_path}")
    assert len(load_data(f"imagefolder:{tmp_path}", skip_bad_images=True)) == 2


# --- folders


def test_hidden_and_system_folders_are_left_out_and_said(tmp_path: Path) -> None:
    fill(tmp_path, ["cat", "dog", ".ipynb_checkpoints", "__MACOSX", "cat/.ipynb_checkpoints", "dog/@eaDir"])
    (tmp_path / "cat" / "._0.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "dog" / "notes.txt").touch()
    (tmp_path / "loose.png").touch()
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.classes == ("cat", "dog") and len(data) == 2
    assert data.notes[0].startswith("left out of the folder: 4 hidden or system folders (")
    for part in (
        "1 hidden file (cat/._0.png)",
        "1 picture beside the class folders (loose.png)",
        "1 file with an ending that is not read (dog/notes.txt)",
    ):
        assert part in data.notes[0]


def test_links_are_followed_once(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", ["cat", "dog", "hen"], 3)
    (root / "cat" / "all").symlink_to("..")
    (root / "dog" / "up").symlink_to(tmp_path)
    (root / "hen" / "self").symlink_to(".")
    data = load_data(f"imagefolder:{root}")
    assert len(data) == 9 and "3 links to a folder that is read already (cat/all, dog/up, hen/self)" in data.notes[0]
    fill(tmp_path / "elsewhere", ["owl"], 2)
    (root / "owl").symlink_to(tmp_path / "elsewhere" / "owl")
    (root / "dog" / "more").symlink_to(tmp_path / "elsewhere" / "owl")
    data = load_data(f"imagefolder:{root}")
    assert data.classes == ("cat", "dog", "hen", "owl") and np.bincount(data.targets).tolist() == [3, 3, 3, 2]


def test_a_link_to_nothing_is_named_and_can_be_skipped(tmp_path: Path) -> None:
    fill(tmp_path / "data", ["a", "b"])
    (tmp_path / "data" / "a" / "gone.png").symlink_to("nowhere.png")
    spec, cache = f"imagefolder:{tmp_path / 'data'}", Cache(tmp_path / "cache")
    for _ in range(2):
        with pytest.raises(DataError, match=r"a/gone.png \(a link to nothing\).*--skip-bad-images"):
            load_data(spec, cache=cache)
        data = load_data(spec, cache=cache, skip_bad_images=True)
        assert len(data) == 2 and "1 of 3 files, a/gone.png (a link to nothing)" in data.notes[0]


@pytest.mark.parametrize("train, test", [("Train", "Test"), ("TRAIN", "VAL"), ("Training", "Testing")])
def test_splits_are_recognised_in_any_case(tmp_path: Path, train: str, test: str) -> None:
    fill(tmp_path / train, ["a", "b"], 2)
    fill(tmp_path / test, ["a", "b"])
    fill(tmp_path, ["extra"])
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.classes == ("a", "b") and len(data) == 2
    assert "1 folder beside the splits (extra)" in data.notes[0]
    assert len(load_data(f"imagefolder:{tmp_path}", split="train")) == 4
    (tmp_path / "n01440764").mkdir()
    fill(tmp_path / "imagenet" / "Val", ["n01440764", "n01443537"])
    assert len(load_data(f"imagenet:{tmp_path / 'imagenet'}")) == 2


def test_splits_that_differ_in_case_alone_are_ambiguous(tmp_path: Path) -> None:
    fill(tmp_path / "Train", ["a", "b"])
    fill(tmp_path / "train", ["a", "b"])
    with pytest.raises(DataError, match=r"has both .*rain/ and .*rain/; name the one"):
        load_data(f"imagefolder:{tmp_path}")


def test_names_that_are_no_utf8_or_hold_line_breaks_are_written_out(tmp_path: Path) -> None:
    fill(tmp_path, ["a\nb", os.fsdecode(b"caf\xe9")])
    (tmp_path / "a\nb" / "bad\x1b[31m.png").touch()
    data = load_data(f"imagefolder:{tmp_path}", skip_bad_images=True)
    assert data.classes == ("a\\nb", "caf\\udce9") and len(data) == 2
    assert all(name.isprintable() for name in (*data.classes, *data.notes, data.label(0), data.label(1)))
    assert data.batch(0, 2)[0].shape[0] == 2


# --- the order of classes


def test_the_order_of_numbered_classes_is_said_and_can_be_chosen(tmp_path: Path) -> None:
    names = [str(number) for number in range(1, 11)]
    spec, net = f"imagefolder:{fill(tmp_path, names)}", network(10)
    text = load_data(spec, model=net)
    said = "are taken in the order of text (1, 10, 2, 3, 4, …, 9); for 1, 2, 3, 4, 5, …, 10 give --class-order numeric"
    assert any(said in note for note in text.notes) and text.classes == tuple(sorted(names))
    assert load_data(spec, model=net, class_order="text").fingerprint == text.fingerprint
    numeric = load_data(spec, model=net, class_order="numeric")
    assert numeric.classes == tuple(names) and numeric.fingerprint != text.fingerprint
    assert np.array_equal(numeric.ids, text.ids), "the images keep their numbers"
    for data in (text, numeric):
        assert all(data.classes[data.targets[i]] == data.label(i).split("/")[0] for i in range(10))
    assert not any("--class-order" in note for note in numeric.notes)
    # A network that knows the names needs no order.
    knows = load_data(spec, model=network(10, tuple(reversed(names))))
    assert all(knows.classes[knows.targets[i]] == knows.label(i).split("/")[0] for i in range(10))
    assert not any("order" in note for note in knows.notes)


def test_the_order_of_classes_may_be_a_list_of_names(tmp_path: Path) -> None:
    spec = f"imagefolder:{fill(tmp_path, ['cat', 'dog', 'owl'])}"
    data = load_data(spec, model=network(4), class_order=["owl", "hen", "dog", "cat"])
    assert {data.label(i)[:3]: int(data.targets[i]) for i in range(3)} == {"owl": 0, "dog": 2, "cat": 3}
    assert data.classes == ("owl", "hen", "dog", "cat")
    for order, said in (
        (["owl", "cat"], "does not name 'dog'"),
        (["owl", "owl", "cat", "dog"], "'owl' more than once"),
        ("numeric", "not numbered"),
        ("txet", "did you mean text"),
    ):
        with pytest.raises(DataError, match=said):
            load_data(spec, class_order=order)


@pytest.mark.parametrize(
    "names, ordered",
    [
        (["class_10", "class_9"], True),
        (["-1", "0", "10", "9"], True),
        (["01", "02", "10"], False),
        (["777-300", "DC-10", "DC-9"], False),
        (["2", "10a"], False),
        (["9" * 30, "1"], False),
    ],
)
def test_what_counts_as_numbered(names: list[str], ordered: bool) -> None:
    from weanalysis.data.classes import note_on_order

    assert bool(note_on_order(sorted(names), asked=False)) == ordered


def test_the_command_line_reads_the_order_from_a_file(tmp_path: Path) -> None:
    from weanalysis.cli.options import parse_class_order

    (tmp_path / "names.txt").write_text("\ufeffowl\n\n dog \ncat\n", encoding="utf-8")
    assert parse_class_order(str(tmp_path / "names.txt")) == ["owl", "dog", "cat"]
    assert [parse_class_order(text) for text in (None, "text", "numeric")] == [None, "text", "numeric"]
    (tmp_path / "empty.txt").touch()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0")
    wrong = {"empty.txt": "is empty", "binary": "no text in UTF-8", "nowhere": "is no file", "a\0b": ""}
    for name, said in wrong.items():
        with pytest.raises(DataError, match=f"{said}.*one a line"):
            parse_class_order(str(tmp_path / name))


# --- data sets of a user's own


def items(**changed: object) -> list:
    made = [(torch.full((3, 4, 4), float(index)), index % 3) for index in range(6)]
    for place, item in changed.items():
        made[int(place[1:])] = item
    return made


GOOD = torch.zeros(3, 4, 4)


@pytest.mark.parametrize(
    "item, said",
    [
        ((GOOD, -1), "has the target -1; give a class index"),
        ((GOOD, 1.0), "has float 1.0 for a target; give a class index"),
        ((GOOD, torch.tensor(1.5)), "a torch.float32 tensor \\(\\) for a target"),
        ((GOOD, torch.tensor([0, 1, 0])), "a torch.int64 tensor \\(3\\) for a target"),
        ((GOOD, np.array([0.0, 1.0])), "a float64 ndarray \\(2\\) for a target"),
        ((GOOD, "cat"), "has str 'cat' for a target"),
        ((GOOD, None), "has None for a target"),
        ((GOOD, True), "has bool True for a target"),
        ((GOOD, [0, 2]), "has a list for a target"),
        ((GOOD, 1, "path"), "is of 3 parts \\(a torch.float32 tensor \\(3, 4, 4\\), int 1, str 'path'\\)"),
        ({"image": GOOD, "label": 1}, "is a dict with image, label"),
        (GOOD, "is a torch.float32 tensor \\(3, 4, 4\\); give \\(image, class index\\)"),
        ((torch.zeros(3, 5, 4), 0), "has an image of 3 x 5 x 4, the first one of 3 x 4 x 4; resize or crop"),
        ((GOOD.half(), 0), "a torch.float16 tensor \\(3, 4, 4\\) for an image; give a dense float32"),
        ((GOOD.bfloat16(), 0), "a torch.bfloat16 tensor"),
        ((GOOD.double(), 0), "a torch.float64 tensor"),
        ((GOOD.to(torch.uint8), 0), "a torch.uint8 tensor"),
        ((GOOD.to_sparse(), 0), "torch.sparse_coo torch.float32 tensor"),
        ((torch.zeros(3, 4, 4, device="meta"), 0), "for an image"),
        ((Image.new("RGB", (4, 4)), 0), "has a Image for an image; give a float32 tensor"),
        ((GOOD.numpy(), 0), "a float32 ndarray \\(3, 4, 4\\) for an image"),
        ((GOOD / 0, 0), "pixels that are NaN or infinite"),
        ((GOOD + 1e39, 0), "pixels that are NaN or infinite"),
    ],
)
def test_every_item_of_a_data_set_is_checked_and_the_odd_one_named(item, said) -> None:
    with pytest.raises(DataError, match=f"^item 4 of list .*{said}") as raised:
        GivenImages(items(_4=item))
    assert "\n" not in str(raised.value)


def test_a_data_set_whose_item_cannot_be_read_names_it_and_keeps_the_cause() -> None:
    class Failing(list):
        def __getitem__(self, index):
            if index == 3:
                raise RuntimeError("the disk\nis gone")
            return super().__getitem__(index)

    with pytest.raises(DataError, match="item 3 of Failing cannot be read \\(RuntimeError: the disk is gone") as raised:
        GivenImages(Failing(items()))
    assert isinstance(raised.value.__cause__, RuntimeError)
    for nothing in ({}, "abc", iter([]), 3, None):
        with pytest.raises(DataError, match="is no data set of images"):
            GivenImages(nothing)
    with pytest.raises(DataError, match="is empty"):
        GivenImages([])


def test_what_is_a_class_index_by_another_name_is_taken_and_gradients_are_let_go() -> None:
    plain = GivenImages(items())
    odd = items(
        _1=(torch.full((3, 4, 4), 1.0, requires_grad=True), torch.tensor([1])),
        _2=[torch.full((3, 4, 4), 2.0), np.int32(2)],
        _3=(torch.full((3, 4, 4), 3.0), np.array([0])),
    )
    given = GivenImages(odd)
    assert given.fingerprint == plain.fingerprint and given.targets.tolist() == [0, 1, 2, 0, 1, 2]
    images, targets = given.batch(0, 6)
    assert not images.requires_grad and targets.dtype == torch.int64 and torch.equal(images, plain.batch(0, 6)[0])
    # As earlier versions computed it, so that what is kept for it is used again.
    hashed = hashlib.sha256()
    for image, target in items():
        hashed.update(image.numpy().tobytes() + target.to_bytes(8, "little", signed=True))
    assert plain.fingerprint == hashed.hexdigest()


def test_targets_beyond_the_networks_outputs_are_named() -> None:
    check_targets(GivenImages(items()), 3)
    with pytest.raises(DataError, match=r"image 2 of dataset has the class index 2 \(and 1 more such\).*2 outputs"):
        check_targets(GivenImages(items()), 2)


def test_a_file_that_another_pass_may_read_is_not_remembered_as_unreadable(tmp_path: Path, monkeypatch) -> None:
    fill(tmp_path / "data", ["a", "b"])
    cache, spec = Cache(tmp_path / "cache"), f"imagefolder:{tmp_path / 'data'}"

    def fail(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr("weanalysis.data.decoding.Path.read_bytes", fail)
        with pytest.raises(DataError, match=r"no picture that can be read.*Permission denied"):
            load_data(spec, skip_bad_images=True, cache=cache)
    assert len(load_data(spec, skip_bad_images=True, cache=cache)) == 2
    assert isinstance(load_data(spec).pictures, FilePictures)
