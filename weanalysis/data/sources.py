"""The sources of labelled images, by name. To add one: write a function like those here and enter it in `SOURCES`."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

import weanalysis._torchvision  # noqa: F401

# isort: split
from torchvision import datasets

from weanalysis.cache import Cache, find_cache
from weanalysis.data import digit_sequences, segmentation_sources
from weanalysis.data.arrays import ArrayTransform, read_arrays
from weanalysis.data.clip_folders import LabelledClips, class_clips, listed_clips
from weanalysis.data.clips import ClipTransform
from weanalysis.data.folders import (
    ClassFolders,
    LeftOut,
    by_small_letters,
    class_folders,
    existing_folder,
    split_folder,
    subfolders,
)
from weanalysis.data.masks import Segmented
from weanalysis.data.pictures import ArrayPictures, Pictures, printable
from weanalysis.data.transform import RGB, Transform
from weanalysis.errors import DataError

IMAGENET_TRANSFORM = Transform(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize_size=256)
# Mean and standard deviation measured on the 8x8 pictures of the training split: one grey value, three times.
DIGITS_TRANSFORM = Transform(32, (0.3048, 0.3048, 0.3048), (0.3754, 0.3754, 0.3754))
# Those of torchvision's video networks: Kinetics' mean, and a crop of 112.
KINETICS_TRANSFORM = ClipTransform(112, (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989), resize_size=128)
FRAMES_TRANSFORM = ClipTransform(
    224, IMAGENET_TRANSFORM.mean, IMAGENET_TRANSFORM.std, resize_size=256, sampling="strided"
)
# Mean and standard deviation measured on the frames of the training split, which are mostly empty.
MOVING_TRANSFORM = ClipTransform(32, (0.0762,) * 3, (0.2296,) * 3, num_frames=digit_sequences.NUM_FRAMES)
DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class Labelled:
    """What a source found: pictures, their classes, and the transform for networks that come without one.

    `transform` None means: the pictures' own size where all are square and alike, otherwise ImageNet's transform.
    """

    pictures: Pictures
    labels: np.ndarray
    classes: tuple[str, ...]
    transform: Transform | ArrayTransform | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ImageSource:
    """One kind of `--data`: `find(what stands after the colon, split, cache)`, and how to write and describe it.

    `task` says what is known of an image: its class, or with "segmentation" that of each pixel.
    """

    find: Callable[[str, str, Cache | None], Labelled | Segmented]
    syntax: str
    what: str
    needs: str = ""
    task: str = "classification"


def _digits(place: str, split: str, cache: Cache | None) -> Labelled:
    if place:
        raise DataError(f"'digits:{place}' is no data: digits takes nothing after its name")
    images, digits, numbers = _digits_of(split)
    pictures = np.round(images * (255 / 16)).astype(np.uint8)
    return Labelled(ArrayPictures("digits", pictures, numbers), digits, DIGITS, DIGITS_TRANSFORM)


def _moving_digits(place: str, split: str, cache: Cache | None) -> Labelled:
    if place not in ("", "digit"):
        raise DataError(f"'moving-digits:{place}' is no data: give moving-digits, or moving-digits:digit")
    clips, labels = digit_sequences.moving_digits(*_digits_of(split), place)
    return Labelled(clips, labels, digit_sequences.class_names(place), MOVING_TRANSFORM)


def _digit_signals(place: str, split: str, cache: Cache | None) -> Labelled:
    if place:
        raise DataError(f"'digit-signals:{place}' is no data: digit-signals takes nothing after its name")
    images, digits, numbers = _digits_of(split)
    signals = digit_sequences.digit_signals(images, numbers)
    return Labelled(signals, digits, DIGITS, ArrayTransform(signals.array.shape[1:]))


def _digit_scenes(place: str, split: str, cache: Cache | None) -> Segmented:
    if place:
        raise DataError(f"'digit-scenes:{place}' is no data: digit-scenes takes nothing after its name")
    images, digits, _ = _digits_of(split)
    return segmentation_sources.scenes(images, digits, split)


def _digits_of(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The digits of a split: images (N, 8, 8) from 0 to 16, which digit each is, and its place among all."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    everything = load_digits()
    parts = train_test_split(
        np.arange(len(everything.target)), test_size=0.4, stratify=everything.target, random_state=0
    )
    numbers = np.sort(parts[("train", "test").index(split)])
    return everything.images[numbers], everything.target[numbers].astype(np.int64), numbers


def _kinetics(place: str, split: str, cache: Cache | None) -> Labelled:
    return _clips(class_clips(place, split), KINETICS_TRANSFORM)


def _frames(place: str, split: str, cache: Cache | None) -> Labelled:
    return _clips(listed_clips(place, split), FRAMES_TRANSFORM)


def _clips(source: LabelledClips, transform: ClipTransform) -> Labelled:
    return Labelled(source.clips, source.labels, source.classes, transform, source.notes)


def _arrays(place: str, split: str, cache: Cache | None) -> Labelled:
    arrays = read_arrays(place, split)
    return Labelled(arrays.inputs, arrays.labels, arrays.classes, arrays.transform, arrays.notes)


def _cifar(name: str, dataset: type[datasets.CIFAR10], mean: RGB, std: RGB) -> Callable[..., Labelled]:
    def find(place: str, split: str, cache: Cache | None) -> Labelled:
        if place:
            root = existing_folder(name, place)
            root = root.parent if root.name == dataset.base_folder else root
        else:
            root = (cache or find_cache()).ready().data
        try:
            # torchvision reports a download on standard output, which belongs to results.
            with contextlib.redirect_stdout(sys.stderr):
                images = dataset(str(root), train=split == "train", download=not place)
        except (OSError, RuntimeError, EOFError) as error:
            raise DataError(
                f"{name} is not in {root} and cannot be had from {dataset.url} ({_one_line(error)}); unpack the "
                f"archive elsewhere and give its folder: {name}:DIR"
                if not place
                else f"{root} holds no complete {name}; unpack {dataset.url} there, so that it contains "
                f"{dataset.base_folder}/"
            ) from error
        return Labelled(
            pictures=ArrayPictures(f"{name} {split}", images.data, np.arange(len(images.data))),
            labels=np.asarray(images.targets, dtype=np.int64),
            classes=tuple(images.classes),
            transform=Transform(32, mean, std),
        )

    return find


def _imagefolder(place: str, split: str, cache: Cache | None) -> Labelled:
    folder, left_out = existing_folder("imagefolder", place), LeftOut()
    chosen = split_folder(folder, split, by_small_letters(folder, left_out), left_out)
    if chosen is not None:
        return _labelled(class_folders(chosen, left_out))
    folders = class_folders(folder)
    if split == "train":
        whole = f"{printable(folder)} has no train/ beside test/ or val/, so that all of it is taken as training images"
        folders.notes.insert(0, whole)
    return _labelled(folders)


def _imagenet(place: str, split: str, cache: Cache | None) -> Labelled:
    folder = existing_folder("imagenet", place)
    names = by_small_letters(folder, LeftOut())
    chosen = folder / names.get("train" if split == "train" else "val", "")
    if split == "train" and chosen == folder:
        raise DataError(f"{printable(folder)} has no folder train/ with ImageNet's training images")
    classes = subfolders(chosen)
    strangers = [name for name in classes if not re.fullmatch(r"n\d{8}", name)]
    if strangers or not classes:
        content = f"a folder {strangers[0]!r}" if strangers else "no folders"
        raise DataError(
            f"{printable(chosen)} has {content} where one folder a class is needed, named by WordNet id such as "
            "n01440764; for class folders with other names use imagefolder:DIR"
        )
    return _labelled(class_folders(chosen), IMAGENET_TRANSFORM)


def _labelled(folders: ClassFolders, transform: Transform | None = None) -> Labelled:
    return Labelled(
        folders.pictures, np.array(folders.labels, dtype=np.int64), folders.classes, transform, folders.notes
    )


def _hugging_face(place: str, split: str, cache: Cache | None) -> Labelled:
    from weanalysis.data.huggingface import find_table

    return find_table(place, split, cache)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


SOURCES: dict[str, ImageSource] = {
    "digits": ImageSource(
        _digits, "digits", "scikit-learn's 1,797 handwritten digits: 1,078 to train on, 719 to test on"
    ),
    "moving-digits": ImageSource(
        _moving_digits,
        "moving-digits[:digit]",
        "clips of these digits, each moving left, right, up or down: the class is where it moves (:digit: and which it "
        "is)",
    ),
    "digit-signals": ImageSource(
        _digit_signals, "digit-signals", "the rows of these digits one behind the other: signals"
    ),
    "cifar10": ImageSource(
        _cifar("cifar10", datasets.CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "cifar10[:DIR]",
        "CIFAR-10 in its original form",
        "the unpacked archive in DIR, or network",
    ),
    "cifar100": ImageSource(
        _cifar("cifar100", datasets.CIFAR100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        "cifar100[:DIR]",
        "CIFAR-100 in its original form",
        "the unpacked archive in DIR, or network",
    ),
    "imagenet": ImageSource(
        _imagenet,
        "imagenet:DIR",
        "ImageNet or some of its classes: folders named by WordNet id in DIR/val and DIR/train, or in DIR",
        "the folder",
    ),
    "imagefolder": ImageSource(
        _imagefolder,
        "imagefolder:DIR",
        "pictures in one folder a class, in DIR or in its train/ and test/ (or val/)",
        "the folder",
    ),
    "kinetics": ImageSource(
        _kinetics,
        "kinetics:DIR",
        "clips in one folder a class, in DIR/val and DIR/train, or in DIR: videos, or a folder of frames each",
        "the folder; pip install av for videos",
    ),
    "frames": ImageSource(
        _frames,
        "frames:DIR",
        "Jester's layout: a folder of frames for each clip, and *train*.csv and *validation*.csv with lines CLIP;LABEL",
        "the folder",
    ),
    "arrays": ImageSource(
        _arrays,
        "arrays:FILE.npz",
        "arrays (N, C, ...) of any kind, x and y, or x_train, y_train, x_test and y_test",
        "the file",
    ),
    "digit-scenes": ImageSource(
        _digit_scenes,
        "digit-scenes",
        "scenes of several of scikit-learn's digits with a mask each: 1,200 to train on, 600 to test on",
        task="segmentation",
    ),
    "voc": ImageSource(
        segmentation_sources.voc,
        "voc:DIR",
        "PASCAL VOC 2012's masks of 21 classes; trained on the augmented split where it is there",
        "the folder VOC2012",
        task="segmentation",
    ),
    "cityscapes": ImageSource(
        segmentation_sources.cityscapes,
        "cityscapes:DIR",
        "Cityscapes' fine masks of 19 classes",
        "the folder with leftImg8bit and gtFine",
        task="segmentation",
    ),
    "hf": ImageSource(
        _hugging_face,
        "hf:NAME[@CONFIG]",
        "a Hugging Face dataset with a picture and a label column: a name of the hub, or a local folder",
        "pip install datasets; network for a name of the hub",
    ),
}


def task_of_data(spec: str) -> str:
    """What is known of an image of some data, by its spec: its "classification", or with masks a "segmentation".

    >>> task_of_data("digits"), task_of_data("digit-scenes")
    ('classification', 'segmentation')
    """
    source = SOURCES.get(spec.partition(":")[0])
    return "classification" if source is None else source.task


def list_sources() -> list[dict[str, str]]:
    """Return name, syntax, what and needs of every source.

    >>> next(source for source in list_sources() if source["name"] == "imagefolder")["syntax"]
    'imagefolder:DIR'
    """
    return [
        {"name": name, "syntax": source.syntax, "what": source.what, "needs": source.needs}
        for name, source in SOURCES.items()
    ]
