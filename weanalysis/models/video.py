"""torchvision's ConvNets for clips, each by its name."""

from __future__ import annotations

from typing import Any

from weanalysis.data import ClipTransform
from weanalysis.errors import ModelError, unknown_name
from weanalysis.models.torchvision_source import Torchvision

# What each was trained on, in frames (torchvision's references); its weights take other numbers too.
_NUM_FRAMES = {"r3d_18": 16, "mc3_18": 16, "r2plus1d_18": 16, "s3d": 128}
_NUM_KINETICS_CLASSES = 400


class TorchvisionVideo(Torchvision):
    """The networks of `torchvision.models.video` that are ConvNets."""

    def names(self) -> list[str]:
        return list(_NUM_FRAMES)

    def defaults(self, name: str) -> tuple[int, dict[str, Any]]:
        if name not in _NUM_FRAMES:
            raise ModelError(unknown_name("torchvision video model", name, _NUM_FRAMES))
        return _NUM_KINETICS_CLASSES, {}

    def _synsets(self) -> None:
        return None

    def _transform(self, name: str, entry: Any) -> ClipTransform:
        preset = entry.transforms()
        return ClipTransform(
            image_size=int(preset.crop_size[0]),
            resize_size=int(preset.resize_size[0]),
            mean=tuple(preset.mean),
            std=tuple(preset.std),
            interpolation=preset.interpolation.value,
            num_frames=_NUM_FRAMES[name],
        )

    def _notes(self) -> tuple[str, ...]:
        return (
            "torchvision resizes frames to one shape whatever theirs is; here the shorter side is, as for pictures",
        )
