"""Labelled images: where they come from, how they become a network's input, and what identifies them."""

from weanalysis.data.given import GivenImages, GivenMasks, GivenTargets, as_images, check_targets
from weanalysis.data.images import ImageData, fit_classes, load_data
from weanalysis.data.segmentation import MaskData
from weanalysis.data.sources import SOURCES, list_sources, task_of_data
from weanalysis.data.transform import Transform

__all__ = [
    "SOURCES",
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
]
