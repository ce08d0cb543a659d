"""Pictures with masks: scenes of digits, and small files in the layouts of PASCAL VOC and Cityscapes."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import weanalysis as wa
from weanalysis.cache import Cache
from weanalysis.data import MaskData, Transform
from weanalysis.data.masks import VOID
from weanalysis.data.segmentation_sources import CITYSCAPES_CLASSES, VOC_CLASSES
from weanalysis.errors import DataError

NAMES = ("2007_000032", "2007_000039", "2007_000063")


def picture(path: Path, width: int, height: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def palette_mask(path: Path, labels: np.ndarray) -> None:
    """A mask as VOC has them: places in a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels.astype(np.uint8), "P")
    image.putpalette(list(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8)))
    image.save(path)


def labels_of(number: int, width: int = 20, height: int = 12) -> np.ndarray:
    labels = np.full((height, width), number)
    labels[:, : width // 2], labels[0] = 15, VOID
    return labels


@pytest.fixture
def voc(tmp_path) -> Path:
    """VOC2012/ with two pictures to train on and two to test on, of which one is in both lists."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        picture(root / "JPEGImages" / f"{name}.jpg", 20, 12, number)
        palette_mask(root / "SegmentationClass" / f"{name}.png", labels_of(number + 1))
    (lists / "train.txt").write_text("\n".join(NAMES[:2]) + "\n")
    (lists / "val.txt").write_text("\n".join(NAMES[1:]) + "\n")
    return root


@pytest.fixture
def cityscapes(tmp_path) -> Path:
    for split, city in (("train", "aachen"), ("val", "bochum")):
        for number in range(2):
            name = f"{city}/{city}_00000{number}_000019"
            picture(tmp_path / "leftImg8bit" / split / f"{name}_leftImg8bit.png", 32, 16, number)
            labels = np.tile(np.repeat(np.arange(16), 2) + 18 * number, (16, 1)).astype(np.uint8)
            labels[0, 0] = 255
            path = tmp_path / "gtFine" / split / f"{name}_gtFine_labelIds.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(path)
    return tmp_path


def test_scenes_are_the_same_for_all_and_no_digit_is_in_both_splits():
    test, train = (wa.load_data("digit-scenes", split=split) for split in ("test", "train"))
    assert isinstance(test, MaskData) and (len(train), len(test)) == (1200, 600)
    again = wa.load_data("digit-scenes", seed=1, num_images=7)
    assert again.fingerprint == test.fingerprint != train.fingerprint
    images, masks = again.batch(2, 5)
    assert images.shape == (3, 3, 32, 32) and masks.shape == (3, 32, 32) and masks.dtype == torch.int64
    assert torch.equal(masks[1], again[3][1]) and torch.equal(images[1], again[3][0])
    assert again.batch(7, 9)[1].shape == (0, 32, 32)
    for position in (0, 6):
        pixels, mask = np.array(again.picture(position).convert("L")), again.raw_mask(position)
        assert pixels[mask > 0].min() >= 96 > pixels[mask == 0].mean() and mask.max() <= 10
    seen = np.bincount(train.masks.array.ravel(), minlength=11)
    assert (seen > 0).all() and 0.75 < seen[0] / seen.sum() < 0.9


def test_voc_reads_palettes_lists_and_the_augmented_split(voc, tmp_path):
    data = wa.load_data(f"voc:{voc}", image_size=12, cache=Cache(tmp_path / "cache"))
    assert data.classes == VOC_CLASSES and sorted(data.ids) == [0, 1] and len(data) == 2
    for position, number in enumerate(data.ids):
        _, mask = data[position]
        # The square at the centre: columns 4 to 15 of 20.
        assert torch.equal(mask, torch.from_numpy(labels_of(number + 2)[:, 4:16]))
    train = wa.load_data(f"voc:{voc.parents[1]}", split="train")
    assert train.label(0).startswith("JPEGImages/") and "train.txt, masks of SegmentationClass;" in train.notes[0]
    for number, name in enumerate(NAMES):
        (voc / "SegmentationClassAug").mkdir(exist_ok=True)
        Image.fromarray(labels_of(number).astype(np.uint8)).save(voc / "SegmentationClassAug" / f"{name}.png")
    lines = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in NAMES]
    (voc / "ImageSets" / "Segmentation" / "train_aug.txt").write_text("\n".join(lines))
    augmented = wa.load_data(f"voc:{voc}", split="train", image_size=12)
    assert len(augmented) == 3 and "train_aug.txt, masks of SegmentationClassAug;" in augmented.notes[0]
    assert augmented.fingerprint != train.fingerprint
    assert len(wa.load_data(f"voc:{voc}")) == 2


def test_the_fingerprint_follows_masks_and_is_remembered(voc, tmp_path):
    cache = Cache(tmp_path / "cache")
    before = wa.load_data(f"voc:{voc}", cache=cache).fingerprint
    assert wa.load_data(f"voc:{voc}", cache=cache).fingerprint == before
    palette_mask(voc / "SegmentationClass" / f"{NAMES[1]}.png", labels_of(7))
    assert wa.load_data(f"voc:{voc}", cache=cache).fingerprint != before


def test_cityscapes_has_its_19_classes_and_all_else_is_void(cityscapes):
    data = wa.load_data(f"cityscapes:{cityscapes}", image_size=16)
    assert len(data) == 2 and data.classes == CITYSCAPES_CLASSES and "leftImg8bit/val" in data.notes[0]
    by_number = {int(number): data.raw_mask(position)[1, ::2] for position, number in enumerate(data.ids)}
    # Label ids 0 to 15, then 18 to 33.
    v = VOID
    assert by_number[0].tolist() == [v, v, v, v, v, v, v, 0, 1, v, v, 2, 3, 4, v, v]
    assert by_number[1].tolist() == [v, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, v, v, 16, 17, 18]
    assert data.raw_mask(0)[0, 0] == VOID


def test_a_mask_goes_through_the_transform_of_its_picture():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (40, 60), dtype=np.uint8)
    for transform in (
        Transform(16, (0, 0, 0), (1, 1, 1)),
        Transform(20, (0, 0, 0), (1, 1, 1), resize_size=24),
        Transform(20, (0, 0, 0), (1, 1, 1), resize_size=20, squash=True),
        Transform(48, (0, 0, 0), (1, 1, 1), resize_size=40),
    ):
        # A picture in grey steps of 50, read by its nearest pixels, shows where each label went.
        shown = Image.fromarray(labels * 50).convert("RGB")
        nearest = Transform(**{**transform.describe(), "interpolation": "nearest"})
        expected, mask = nearest.pixels(shown)[0].long(), transform.mask(labels, VOID)
        inside = mask != VOID
        assert torch.equal(mask[inside] * 50, expected[inside]) and mask.shape == expected.shape
        assert bool(inside.all()) == (transform.image_size <= (transform.resize_size or 99))
        assert (expected[~inside] == 0).all()


# What does not fit ----------------------------------------------------------------------------------------------------


def refused(spec: str, **given) -> str:
    with pytest.raises(DataError) as caught:
        wa.load_data(spec, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_masks_that_do_not_fit_are_named(voc):
    mask = voc / "SegmentationClass" / f"{NAMES[1]}.png"
    spec = f"voc:{voc}"
    for write, line in (
        (lambda: palette_mask(mask, labels_of(1, 20, 11)), f"{NAMES[1]}.png (20 x 11 pixels, its picture JPEGImages/"),
        (
            lambda: palette_mask(mask, labels_of(21)),
            f"{NAMES[1]}.png (it has the label 21, and labels are 0 to 20, and",
        ),
        (lambda: picture(mask, 20, 12, 0), f"{NAMES[1]}.png (pixels of mode RGB; a mask has one number of 8 bits"),
        (lambda: mask.write_bytes(b"no picture"), f"files that cannot be used: SegmentationClass/{NAMES[1]}.png ("),
        (mask.unlink, f"lacks masks of pictures that val.txt names: SegmentationClass/{NAMES[1]}.png; put them"),
    ):
        write()
        assert line in refused(spec)


def test_lists_and_folders_that_do_not_fit_are_named(voc, cityscapes):
    lists, spec = voc / "ImageSets" / "Segmentation", f"voc:{voc}"
    (voc / "JPEGImages" / f"{NAMES[2]}.jpg").unlink()
    assert f"lacks pictures that val.txt names: JPEGImages/{NAMES[2]}.jpg" in refused(spec)
    for content, line in (("../../etc/passwd x\n", None), ("a b\n", "lacks pictures"), ("\n", "val.txt is empty")):
        (lists / "val.txt").write_text(content)
        assert (line or "lacks pictures that val.txt names: JPEGImages/passwd.jpg") in refused(spec)
    (lists / "val.txt").write_text("*?\n")
    assert "which is no name of a picture" in refused(spec)
    (lists / "val.txt").unlink()
    assert "val.txt cannot be read" in refused(spec)
    assert "has no JPEGImages/ and ImageSets/Segmentation/" in refused(f"voc:{voc / 'JPEGImages'}")
    assert "voc needs a folder" in refused("voc") and "takes nothing after its name" in refused("digit-scenes:x")
    (cityscapes / "gtFine" / "val" / "bochum" / "bochum_000001_000019_gtFine_labelIds.png").unlink()
    assert "lacks masks of its pictures in leftImg8bit/val: gtFine/val/bochum/bochum_000001" in refused(
        f"cityscapes:{cityscapes}"
    )
    assert "has no pictures CITY/*_leftImg8bit.png" in refused(f"cityscapes:{voc}")
    assert "leave --class-order out" in refused("digit-scenes", class_order="text")
    assert "leave --skip-bad-images out" in refused("digit-scenes", skip_bad_images=True)


def test_a_picture_that_breaks_later_is_named(voc):
    data = wa.load_data(f"voc:{voc}")
    file = voc / "SegmentationClass" / f"{NAMES[1]}.png"
    state = file.stat()
    file.write_bytes(bytes(state.st_size))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # as one that a disk damages
    with pytest.raises(DataError, match=rf"{NAMES[1]}.png is no mask of its picture"):
        data.batch(0, 2)


@pytest.mark.parametrize("folder, ending", [("SegmentationClass", "png"), ("JPEGImages", "jpg")])
def test_a_mask_or_its_picture_that_changes_after_it_was_loaded_is_named(folder, ending, voc):
    data = wa.load_data(f"voc:{voc.parent}", image_size=8)
    before = data.batch(0, 2)
    file, other = (voc / folder / f"{name}.{ending}" for name in NAMES[1:])
    content, state = file.read_bytes(), file.stat()
    file.write_bytes(other.read_bytes() + b"more")
    with pytest.raises(DataError, match=f"{file} has changed since the data was loaded"):
        data.batch(0, 2)
    file.write_bytes(content)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert all(torch.equal(*pair) for pair in zip(data.batch(0, 2), before, strict=True))
    file.unlink()
    with pytest.raises(DataError, match=str(file)):
        data.batch(0, 2)
