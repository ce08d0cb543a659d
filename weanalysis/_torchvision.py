"""Makes `import torchvision` work beside a torch that torchvision's compiled operators were not built for.

PyPI's torchvision is linked against CUDA; beside a CPU-only torch its library does not load, and its
import fails because the schemas of two detection operators are missing. Nothing in this package calls
them, so declaring the schemas is enough. Where the library loads, this module does nothing.
Import torchvision and timm only after `weanalysis._torchvision`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _operators_load() -> bool:
    spec = importlib.util.find_spec("torchvision")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    libraries = sorted(folder.glob("_C*.so")) + sorted(folder.glob("_C*.pyd")) if folder else []
    for library in libraries:
        try:
            torch.ops.load_library(str(library))
            return True
        except OSError:
            continue
    return False


if not _operators_load():
    for _name, _schema in _SCHEMAS.items():
        torch.library.define(_name, _schema)

import torchvision  # noqa: E402

__all__ = ["torchvision"]
