"""The sources of pictures with masks: scenes of digits, PASCAL VOC 2012, Cityscapes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from weanalysis.cache import Cache
from weanalysis.data.decoding import Unreadable, read_file
from weanalysis.data.digit_scenes import CLASSES, MEAN, SIDE, STD, digit_scenes
from weanalysis.data.folders import existing_folder
from weanalysis.data.masks import VOID, ArrayMasks, FileMasks, Segmented
from weanalysis.data.pictures import ArrayPictures, FilePictures, printable
from weanalysis.data.transform import Transform
from weanalysis.errors import DataError

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The size of the crops that DeepLabv3 is trained with on VOC (its section 4.1), and the height of Cityscapes' pictures.
VOC_SIZE, CITYSCAPES_SIZE = 513, 1024

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

# Cityscapes' label ids of the classes that are trained and evaluated, in the order of their training ids: its paper, M.
# Cordts et al., The Cityscapes Dataset for Semantic Urban Scene Understanding, CVPR 2016, appendix A.
_CITYSCAPES_IDS = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
CITYSCAPES_CLASSES = tuple(_CITYSCAPES_IDS)


def scenes(images: np.ndarray, digits: np.ndarray, split: str) -> Segmented:
    """Scenes made of digits (N, 8, 8) from 0 to 16."""
    pictures, masks = digit_scenes(images, digits, split)
    numbers = np.arange(len(pictures))
    return Segmented(
        ArrayPictures("digit-scenes", pictures, numbers),
        ArrayMasks("digit-scenes", masks, numbers),
        CLASSES,
        Transform(SIDE, (MEAN,) * 3, (STD,) * 3),
    )


# PASCAL VOC -----------------------------------------------------------------------------------------------------------


def voc(place: str, split: str, cache: Cache | None) -> Segmented:
    """The pictures that VOC's lists name, with masks of SegmentationClass, or to train on of SegmentationClassAug."""
    folder = existing_folder("voc", place)
    root = next((one for one in (folder, folder / "VOC2012", folder / "VOCdevkit" / "VOC2012") if _is_voc(one)), None)
    if root is None:
        raise DataError(
            f"{printable(folder)} has no JPEGImages/ and ImageSets/Segmentation/; give VOC 2012's folder: voc:VOC2012"
        )
    names, masks, note = _voc_list(root, split)
    pictures = tuple(f"JPEGImages/{name}.jpg" for name in names)
    paths = tuple(f"{masks}/{name}.png" for name in names)
    _check_there(root, pictures, f"pictures that {note} names")
    _check_there(root, paths, f"masks of pictures that {note} names")
    of_labels = np.full(256, -1)
    of_labels[: len(VOC_CLASSES)], of_labels[VOID] = np.arange(len(VOC_CLASSES)), VOID
    return Segmented(
        FilePictures(root, pictures),
        FileMasks(root, paths, pictures, of_labels, "0 to 20, and 255 for void"),
        VOC_CLASSES,
        Transform(VOC_SIZE, _IMAGENET_MEAN, _IMAGENET_STD, resize_size=VOC_SIZE),
        [f"{len(names):,} pictures of {note}, masks of {masks}; {_centre(VOC_SIZE)}"],
    )


def _is_voc(folder: Path) -> bool:
    return (folder / "JPEGImages").is_dir() and (folder / "ImageSets" / "Segmentation").is_dir()


def _voc_list(root: Path, split: str) -> tuple[list[str], str, str]:
    """The names of a split's pictures, the folder of its masks, and the list's name."""
    lists = root / "ImageSets" / "Segmentation"
    augmented = [lists / name for name in ("train_aug.txt", "trainaug.txt") if (lists / name).is_file()]
    if split == "train" and augmented and (root / "SegmentationClassAug").is_dir():
        return _names(augmented[0]), "SegmentationClassAug", augmented[0].name
    path = lists / ("train.txt" if split == "train" else "val.txt")
    return _names(path), "SegmentationClass", path.name


def _names(path: Path) -> list[str]:
    """The names in a list of pictures, one a line; also of lists whose lines have two paths."""
    try:
        lines = read_file(path).decode("utf-8", "backslashreplace").splitlines()
    except Unreadable as error:
        raise DataError(f"{printable(path)} cannot be read ({error}); it lists the pictures of a split") from error
    names = [Path(line.split()[0]).stem for line in lines if line.strip()]
    strange = next((name for name in names if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name)), None)
    if strange is not None:
        raise DataError(f"{printable(path)} names {printable(strange)!r:.60}, which is no name of a picture")
    if not names:
        raise DataError(f"{printable(path)} is empty; it lists the pictures of a split, one a line")
    return list(dict.fromkeys(names))


def _check_there(root: Path, paths: tuple[str, ...], what: str) -> None:
    """Raise DataError where files are not there, naming some."""
    missing = [path for path in paths if not (root / path).is_file()]
    if missing:
        more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
        listed = ", ".join(map(printable, missing[:3]))
        raise DataError(f"{printable(root)} lacks {what}: {listed}{more}; put them there, or take them out of the list")


# Cityscapes -----------------------------------------------------------------------------------------------------------


def cityscapes(place: str, split: str, cache: Cache | None) -> Segmented:
    """The pictures of leftImg8bit with the masks of gtFine; "test" are those of val, since Cityscapes keeps its own."""
    root = existing_folder("cityscapes", place)
    of_split = "train" if split == "train" else "val"
    folder = root / "leftImg8bit" / of_split
    pictures = sorted(path.relative_to(root).as_posix() for path in folder.glob("*/*_leftImg8bit.png"))
    if not pictures:
        raise DataError(
            f"{printable(root)} has no pictures CITY/*_leftImg8bit.png in leftImg8bit/{of_split}/; give the folder "
            "that has leftImg8bit/ and gtFine/"
        )
    paths = tuple(
        f"gtFine/{of_split}/{Path(name).parent.name}/"
        + Path(name).name.replace("_leftImg8bit.png", "_gtFine_labelIds.png")
        for name in pictures
    )
    _check_there(root, paths, f"masks of its pictures in leftImg8bit/{of_split}")
    of_labels = np.full(256, -1)
    # Label ids go from 0 to 33; a licence plate's is −1, which 8 bits hold as 255.
    of_labels[:34], of_labels[255] = VOID, VOID
    for index, label in enumerate(_CITYSCAPES_IDS.values()):
        of_labels[label] = index
    return Segmented(
        FilePictures(root, tuple(pictures)),
        FileMasks(root, paths, tuple(pictures), of_labels, "label ids, 0 to 33 and 255"),
        CITYSCAPES_CLASSES,
        Transform(CITYSCAPES_SIZE, _IMAGENET_MEAN, _IMAGENET_STD, resize_size=CITYSCAPES_SIZE),
        [f"{len(pictures):,} pictures of leftImg8bit/{of_split}; {_centre(CITYSCAPES_SIZE)}"],
    )


def _centre(size: int) -> str:
    return (
        f"their shorter side becomes {size}, and the {size} x {size} at the centre are used; --image-size changes that"
    )
