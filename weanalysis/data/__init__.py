"""Labelled images: where they come from, how they become a network's input, and what identifies them."""

from weanalysis.data.arrays import ArrayTransform
from weanalysis.data.clips import ClipTransform
from weanalysis.data.given import GivenImages, GivenMasks, GivenTargets, as_images, check_targets
from weanalysis.data.images import AnyTransform, ImageData, fit_classes, load_data
from weanalysis.data.segmentation import MaskData
from weanalysis.data.sources import SOURCES, list_sources, task_of_data
from weanalysis.data.transform import Transform
from weanalysis.data.transforms import transform_of

__all__ = [
    "SOURCES",
    "AnyTransform",
    "ArrayTransform",
    "ClipTransform",
    "GivenImages",
    "GivenMasks",
    "GivenTargets",
    "ImageData",
    "MaskData",
    "Transform",
    "as_images",
    "check_targets",
    "fit_classes",
    "list_sources",
    "load_data",
    "task_of_data",
    "transform_of",
]
