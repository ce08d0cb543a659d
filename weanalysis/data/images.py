"""Labelled images in a seeded order, ready for a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from weanalysis.cache import Cache
from weanalysis.data.arrays import ArrayTransform
from weanalysis.data.classes import ClassMatch, match_classes, note_on_order, order_classes
from weanalysis.data.clips import ClipTransform
from weanalysis.data.decoding import REMARKS
from weanalysis.data.fingerprint import Examination, examine
from weanalysis.data.masks import Segmented
from weanalysis.data.pictures import OnDisk, Pictures, digest, printable
from weanalysis.data.sources import IMAGENET_TRANSFORM, SOURCES, Labelled
from weanalysis.data.transform import RGB, Transform
from weanalysis.errors import DataError, unknown_name

SPLITS = ("test", "train")

#: From what a source has to a network's input; all three are used alike.
AnyTransform = Transform | ClipTransform | ArrayTransform


@dataclass(eq=False)
class ImageData(Dataset[tuple[Tensor, int]]):
    """A map-style dataset: `[i]` is (FloatTensor, class index), in an order drawn from `seed`.

    The tensor is (3, H, W) of a picture, (3, T, H, W) of a clip, (C, ...) of an array; all are called pictures here.
    `targets[i]` is the class index and `ids[i]` the position in the unshuffled dataset of the i-th served image.
    `notes` are lines a person should read. Pictures are read when asked for; reading one that is broken raises
    DataError with its name. Pickles small: names and labels of files, not their pictures.

    >>> data = load_data("digits", image_size=16, num_images=20)
    >>> image, target = data[0]
    >>> tuple(image.shape), data.classes[target], data.label(0)
    ((3, 16, 16), '6', 'digits #1391')
    >>> images, targets = data.batch(0, 8)
    >>> tuple(images.shape), tuple(targets.shape)
    ((8, 3, 16, 16), (8,))
    """

    spec: str
    split: str
    classes: tuple[str, ...]
    targets: np.ndarray
    transform: AnyTransform
    seed: int
    ids: np.ndarray
    pictures: Pictures = field(repr=False)
    content: str = field(repr=False)
    outputs: np.ndarray = field(repr=False)
    notes: list[str] = field(default_factory=list)
    task: ClassVar[str] = "classification"

    @property
    def fingerprint(self) -> str:
        """The sha256 (hex) of all images, labels, class indices and the transform, however many are served."""
        return digest([self.content, self.outputs.tolist(), self.transform.describe()])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture, target = self.raw(index)
        return self.transform(picture), target

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return (self[index] for index in range(len(self)))

    def raw(self, index: int) -> tuple[Any, int]:
        """Return the i-th served picture as it lies in the source, in RGB, and its class index.

        >>> picture, target = data.raw(0)
        >>> picture.size, picture.mode, target
        ((8, 8), 'RGB', 6)
        """
        return self.picture(index), int(self.targets[index])

    def picture(self, index: int) -> Any:
        """Return the i-th served picture as it lies in the source: in RGB, as a `clips.Clip`, or as an array.

        >>> data.picture(0).size
        (8, 8)
        """
        return self.pictures.picture(range(len(self))[index])

    def label(self, index: int) -> str:
        """Return what the i-th served picture is called: its file below the folder, or e.g. "digits #12".

        >>> data.label(0)
        'digits #1391'
        """
        return self.pictures.label(range(len(self))[index])

    def batch(self, start: int, stop: int, num_threads: int = 1) -> tuple[Tensor, Tensor]:
        """Return images [start, stop), cut at the end, as FloatTensor(N, 3, H, W) and LongTensor(N).

        Clips are (N, 3, T, H, W), arrays (N, C, ...).

        >>> images, targets = data.batch(16, 24)
        >>> tuple(images.shape), targets.tolist() == data.targets[16:].tolist()
        ((4, 3, 16, 16), True)
        """
        indices = range(len(self))[start:stop]
        if isinstance(self.pictures, OnDisk):
            for index in indices:
                self.pictures.refuse_changed(index)
        pixels = torch.empty((len(indices), *self.transform.stored_shape), dtype=self.transform.dtype)

        def read(position: int) -> None:
            pixels[position] = self.transform.pixels(self.picture(indices[position]))

        if num_threads > 1:
            with ThreadPoolExecutor(num_threads) as pool:
                list(pool.map(read, range(len(indices))))
        else:
            for position in range(len(indices)):
                read(position)
        return self.transform.normalize(pixels), torch.from_numpy(self.targets[indices.start : indices.stop].copy())


_Data = TypeVar("_Data", bound=ImageData)


def load_data(
    spec: str,
    mean: RGB | None = None,
    std: RGB | None = None,
    image_size: int | None = None,
    num_images: int | None = None,
    seed: int = 0,
    model: Any = None,
    split: str = "test",
    cache: Cache | None = None,
    skip_bad_images: bool = False,
    class_order: str | Sequence[str] | None = None,
    frames: int | None = None,
    sampling: str | None = None,
) -> ImageData:
    """Find the images that `spec` names, check and fingerprint them, and return them in the order of `seed`.

    The transform is the model's where it has one, else one that suits the source; `mean`, `std` (of pixels in [0, 1])
    and `image_size` (pixels) override its parts, and `frames` and `sampling` ("dense", "strided") those of
    clips. With a `model`, class indices are the network's (`fit_classes`).
    `num_images` serves that many of the seeded order, all if there are fewer (`notes` says so). `class_order`: "text",
    "numeric" or the names of the classes in order; it decides where the network knows no names. `cache` keeps
    downloads, and fingerprints of folders, which are then computed once. Raises DataError for a source that is
    unknown, missing, empty or has one class, and for files that are no pictures unless `skip_bad_images`.

    Ten digits of the test split, in an order that the seed decides:

    >>> data = load_data("digits", num_images=10, seed=1)
    >>> len(data), data.split, len(data.classes), data.transform.image_size
    (10, 'test', 10, 32)
    >>> load_data("digits", num_images=10, seed=1).ids.tolist() == data.ids.tolist()
    True
    """
    _check_choices(num_images, seed, split)
    labelled = _find(spec, split, cache)
    if isinstance(labelled, Segmented):
        _check_masks_can(class_order, skip_bad_images)
        return _with_masks(spec, labelled, (mean, std, image_size), num_images, seed, model, split, cache)
    classes, places = order_classes(labelled.classes, class_order)
    labelled = replace(labelled, classes=classes, labels=places[labelled.labels])
    if len(labelled.classes) < 2:
        raise DataError(f"{printable(spec)} has one class ({', '.join(labelled.classes)}); at least two are needed")
    examined = examine(labelled.pictures, labelled.labels, cache, decode=skip_bad_images)
    usable = np.setdiff1d(np.arange(len(labelled.labels)), list(examined.problems))
    notes = [
        *labelled.notes,
        *_judge_problems(spec, labelled, examined.problems, skip_bad_images),
        *_remarks(labelled, examined),
    ]

    given = {"image_size": image_size, "mean": mean, "std": std, "frames": frames, "sampling": sampling}
    transform, remarks = _transform_of(model, spec, labelled, examined, given)
    notes += remarks

    order, too_few = served_order(spec, len(usable), num_images, seed)
    notes += too_few
    data = ImageData(
        spec=spec,
        split=split,
        classes=labelled.classes,
        targets=labelled.labels[usable[order]],
        transform=transform,
        seed=seed,
        ids=order,
        pictures=labelled.pictures.take(usable[order]),
        content=examined.content,
        outputs=np.arange(len(labelled.classes)),
        notes=notes,
    )
    fitted, match = (data, None) if model is None else _fit(data, model)
    # Where the network knows the names, their order decides nothing.
    if match and match.by_position and (said := note_on_order(labelled.classes, class_order is not None)):
        return replace(fitted, notes=[*fitted.notes, said])
    return fitted


def _transform_of(
    model: Any, spec: str, labelled: Labelled, examined: Examination, given: dict[str, Any]
) -> tuple[AnyTransform, list[str]]:
    """The model's transform, or one that suits what was found, with what is `given` in its place; and notes."""
    notes = []
    transform: AnyTransform | None = getattr(model, "transform", None)
    if transform is not None and transform.kind != labelled.pictures.kind:
        raise DataError(
            f"the network reads {transform.kind}, and {printable(spec)} has {labelled.pictures.kind}; choose data or a "
            "network that fits"
        )
    if transform is None:
        transform = _suited_transform(labelled, examined.size)
        if given["image_size"] is None and transform is not labelled.transform and transform is IMAGENET_TRANSFORM:
            notes.append(
                f"the pictures are not square and of one size: their shorter side becomes {transform.resize_size}, and "
                f"the {transform.image_size} x {transform.image_size} at the centre are used; --image-size changes that"
            )
    elif isinstance(transform, ArrayTransform) and labelled.transform != transform:
        transform.pixels(labelled.pictures.picture(0))  # which says what does not fit
    adjusted = transform.adjusted(**given)
    if isinstance(adjusted, ClipTransform):
        notes += adjusted.note_short(examined.lengths, printable(spec))
    return adjusted, notes


def fit_classes(data: _Data, model: Any) -> _Data:
    """Return the same images with the network's class indices, from its `classes`, `synsets` and `num_classes`.

    Raises DataError where a class of the data cannot be told to be one of the network's outputs.

    A network whose outputs are the digits, the other way round:

    >>> from types import SimpleNamespace
    >>> data = load_data("digits", num_images=3)
    >>> fitted = fit_classes(data, SimpleNamespace(classes=data.classes[::-1], synsets=None, num_classes=10))
    >>> (data.targets + fitted.targets).tolist()
    [9, 9, 9]
    """
    return _fit(data, model)[0]


def _fit(data: _Data, model: Any) -> tuple[_Data, ClassMatch]:
    match = match_classes(data.classes, model.num_classes, model.classes, getattr(model, "synsets", None))
    notes = [*data.notes, match.note] if match.note and match.note not in data.notes else data.notes
    fitted = replace(
        data,
        classes=match.classes,
        targets=match.outputs[data.targets],
        outputs=match.outputs[data.outputs],
        notes=notes,
    )
    return fitted, match


def _check_choices(num_images: int | None, seed: int, split: str) -> None:
    if split not in SPLITS:
        raise DataError(unknown_name("split", split, SPLITS))
    if num_images is not None and num_images < 1:
        raise DataError(f"{num_images} images were asked for; give 1 or more, or leave it out for all")
    if seed < 0:
        raise DataError(f"the seed is {seed}; give 0 or more")


def served_order(spec: str, total: int, num_images: int | None, seed: int) -> tuple[np.ndarray, list[str]]:
    """The order of `seed` in which images are served, the first `num_images` of it; a note where fewer are there."""
    order = np.random.default_rng(seed).permutation(total)[:num_images]
    if num_images is None or num_images <= total:
        return order, []
    there = f"{printable(spec)} has {total:,}, and all of them are used"
    return order, [f"{num_images:,} images were asked for; {there}"]


def _find(spec: str, split: str, cache: Cache | None) -> Labelled | Segmented:
    """What the source that `spec` names has; raise DataError for one that is unknown."""
    name, _, place = spec.partition(":")
    if name not in SOURCES:
        raise DataError(unknown_name("data", name, SOURCES, "For a folder of pictures use imagefolder:DIR."))
    return SOURCES[name].find(place, split, cache)


def _with_masks(
    spec: str, source: Segmented, parts: tuple[RGB | None, RGB | None, int | None], *others: Any
) -> ImageData:
    """The pictures and masks of a source; `parts` of the transform are what the caller gives, the `others` go on."""
    from weanalysis.data.segmentation import segmentation_data

    (mean, std, image_size), model = parts, others[2]
    transform = getattr(model, "transform", None) or source.transform
    transform = transform.adjusted(image_size=image_size, mean=mean, std=std)
    return segmentation_data(spec, source, transform, *others)


def _check_masks_can(class_order: object, skip_bad_images: bool) -> None:
    """Raise DataError for what is asked of masks that they do not have."""
    if class_order is not None:
        raise DataError("the classes of masks are the labels in them, which have one order; leave --class-order out")
    if skip_bad_images:
        raise DataError(
            "pictures with masks stand in a list, and none is left out of it; leave --skip-bad-images out, and mend "
            "the files or the list"
        )


def _judge_problems(spec: str, labelled: Labelled, problems: dict[int, str], skip: bool) -> list[str]:
    """Return what to note about files that are no pictures; raise DataError where they are not to be skipped."""
    if not problems:
        return []
    named = [f"{labelled.pictures.label(index)} ({problem})" for index, problem in problems.items()]
    if len(problems) == len(labelled.pictures):
        raise DataError(f"{printable(spec)} has no picture that can be read; the first of {len(named)} is {named[0]}")
    if not skip:
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        raise DataError(
            f"{printable(spec)} has files that are not read as pictures: {', '.join(named[:3])}{more}; mend or remove "
            "them, or leave them out with --skip-bad-images"
        )
    shown = ", ".join(named[:10]) + (f" and {len(named) - 10:,} more" if len(named) > 10 else "")
    return [
        f"left out, since they are not read as pictures: {len(named):,} of {len(labelled.pictures):,} files, {shown}"
    ]


def _remarks(labelled: Labelled, examined: Examination) -> list[str]:
    """Word what was done with pictures that are not simply taken as they are."""
    lines = []
    for remark, (count, first) in examined.remarks.items():
        having = "has" if count == 1 else "have"
        pictures = (
            f"{count:,} picture{'s' * (count > 1)} ({labelled.pictures.label(first)}{', …' * (count > 1)}) {having}"
        )
        lines.append(REMARKS[remark].format(pictures=pictures))
    return lines


def _suited_transform(labelled: Labelled, size: tuple[int, int] | None) -> AnyTransform:
    if labelled.transform is not None:
        return labelled.transform
    if size is not None and size[0] == size[1]:
        return replace(IMAGENET_TRANSFORM, image_size=size[0], resize_size=None)
    return IMAGENET_TRANSFORM
