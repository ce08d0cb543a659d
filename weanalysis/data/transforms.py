"""Which of the transforms a description is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from weanalysis.data.arrays import ArrayTransform
from weanalysis.data.clips import ClipTransform
from weanalysis.data.transform import Transform


def transform_of(description: Mapping[str, Any]) -> Transform | ArrayTransform:
    """Return the transform whose `describe` made this; raise DataError where the description is none.

    >>> described = Transform(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).describe()
    >>> transform_of(described).image_size, transform_of({"shape": [1, 64]})
    (8, ArrayTransform(shape=(1, 64)))
    """
    names = set(description) if isinstance(description, Mapping) else set()
    if names == {"shape"}:
        return ArrayTransform(description["shape"])
    own = {field.name for field in fields(ClipTransform)} - {field.name for field in fields(Transform)}
    return (ClipTransform if names & own else Transform).from_description(description)
