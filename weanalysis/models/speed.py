"""How fast this machine's devices run a small network."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass

import torch

from weanalysis.models.architecture import build

_IMAGES, _PASSES = 50, 4


@dataclass(frozen=True)
class DeviceSpeed:
    """A device, what it is, and how many milliseconds an image takes in a ResNet-20 for 32 x 32 pixels."""

    device: str
    name: str
    milliseconds: float


def device_speeds() -> list[DeviceSpeed]:
    """Time the forward pass of a batch of 50 on every device that torch sees: the fastest of four."""
    devices = {"cpu": platform.processor() or platform.machine()}
    devices |= {f"cuda:{index}": torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    if torch.backends.mps.is_available():
        devices["mps"] = "Metal"
    return [DeviceSpeed(device, name, _milliseconds(device)) for device, name in devices.items()]


@torch.no_grad()
def _milliseconds(device: str) -> float:
    net = build({"source": "builtin", "name": "resnet20", "num_classes": 10, "options": {}}).eval().to(device)
    images, seconds = torch.zeros(_IMAGES, 3, 32, 32, device=device), []
    for _ in range(_PASSES):
        began = time.perf_counter()
        net(images).sum().item()  # which waits for the device
        seconds.append(time.perf_counter() - began)
    return 1000 * min(seconds) / _IMAGES
