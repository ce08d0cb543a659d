"""How a network is trained: one frozen description with an address, and the presets it starts from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache as remember
from pathlib import Path
from typing import Any, get_type_hints

from weanalysis import schema
from weanalysis.cache import safe_name
from weanalysis.errors import TrainingError, unknown_name

# Every value of a preset can be overridden. All but those for digits and signals are the paper's (sections 4.2 to 4.6).
PRESETS: dict[str, dict[str, Any]] = {
    "imagenet": {
        "epochs": 100,
        "batch_size": 256,
        "learning_rate": 0.1,
        "schedule": "multistep",
        "milestones": (30, 60, 90),
        "weight_decay": 1e-4,
        "augmentation": "resized-crop-flip",
    },
    # Table 2's "LWE, 90 epochs": 7 % more time a step, paid for by fewer steps.
    "imagenet-90": {
        "epochs": 90,
        "batch_size": 256,
        "learning_rate": 0.1,
        "schedule": "multistep",
        "milestones": (27, 54, 81),
        "weight_decay": 1e-4,
        "augmentation": "resized-crop-flip",
    },
    "cifar": {
        "epochs": 164,
        "batch_size": 256,
        "learning_rate": 0.1,
        "schedule": "multistep",
        "milestones": (81, 122),
        "weight_decay": 5e-4,
        "augmentation": "pad-crop-flip",
    },
    # Four cosine cycles of 5, 6, 7.2 and 8.64 epochs (section 4.2, Figure 5).
    "adamw-cosine": {
        "epochs": 26.84,
        "batch_size": 256,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "cycle_epochs": 5,
        "cycle_factor": 1.2,
        "weight_decay": 0.1,
        "augmentation": "resized-crop-flip",
    },
    # One cycle that ResNet-20 and ResNet-50 both finish within minutes on two cores.
    "digits": {
        "epochs": 10,
        "batch_size": 32,
        "learning_rate": 0.02,
        "nesterov": True,
        "schedule": "cosine",
        "warmup_epochs": 2,
        "weight_decay": 5e-4,
        "augmentation": "shift-rotate",
        "label_smoothing": 0.1,
    },
    # Section 4.5. What is done to the frames is not said there: a part of 8 to 100 % and a flip, as for pictures.
    "kinetics": {
        "epochs": 50,
        "batch_size": 64,
        "learning_rate": 0.02,
        "schedule": "multistep",
        "milestones": (20, 40),
        "weight_decay": 5e-4,
        "augmentation": "clip-crop-flip",
        "frames": 16,
        "sampling": "dense",
    },
    # Section 4.4's networks on VOC, whose recipe is Qiao et al.'s with weight standardization: what the program that
    # they name (chenxi116/DeepLabv3.pytorch) says of batch norm; scales and crops are DeepLabv3's (its section 4.1).
    "voc": {
        "epochs": 50,
        "batch_size": 16,
        "learning_rate": 0.007,
        "schedule": "poly",
        "weight_decay": 1e-4,
        "augmentation": "scale-crop-flip",
        "image_size": 513,
    },
    # Section 4.4's networks on Cityscapes: VainF/DeepLabV3Plus-Pytorch, 30,000 steps of 16 pictures, at the rate of the
    # head (a tenth of it is the backbone's there, which begins with ImageNet's weights).
    "cityscapes": {
        "epochs": 162,
        "batch_size": 16,
        "learning_rate": 0.1,
        "schedule": "poly",
        "weight_decay": 1e-4,
        "augmentation": "crop-jitter-flip",
        "image_size": 768,
    },
    # For scenes of digits, within minutes on two cores.
    "scenes": {
        "epochs": 14,
        "batch_size": 32,
        "learning_rate": 0.1,
        "nesterov": True,
        "schedule": "poly",
        "warmup_epochs": 2,
        "weight_decay": 5e-4,
    },
}
# That of the digits for inputs that are no pictures.
PRESETS["signals"] = {name: value for name, value in PRESETS["digits"].items() if name != "augmentation"}
# Section 4.6: that of 4.5 but for the sampling. Gestures to the left and to the right are classes, so that nothing is
# flipped.
PRESETS["jester"] = {**PRESETS["kinetics"], "augmentation": "clip-crop", "sampling": "strided"}

# Where the paper departs from its own recipe for one network.
_PRESET_EXCEPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("imagenet", "resnet152"): {"batch_size": 128},
    ("imagenet-90", "resnet152"): {"batch_size": 128},
}

MIXED_PRECISIONS = ("no", "fp16", "bf16")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained on what, and how; two equal recipes make the same network.

    `batch_size` counts the images of one optimizer step, over all processes and accumulation steps. `epochs`,
    `milestones`, `warmup_epochs` and `cycle_epochs` are epochs of floor(images / batch_size) steps, and may be
    fractions. `excitation` with `normalize`, `reduction`, `eps`, `layers` is the paper's sections 3.2 and 3.3; the
    three options after these are those of `excitation.excite`.
    Raises TrainingError for values of another type, or that make no recipe; names are looked up when training starts.

    A recipe's address covers the fields that differ from the defaults below, so that a new field changes no old
    address. Therefore no default may ever change: what should change belongs into a preset.

    >>> Recipe(model="resnet20", epochs=2) == Recipe(model="resnet20", epochs=2.0)
    True
    """

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    data: str = "digits"
    image_size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    attention: str = "none"
    norm: str = "bn"
    excitation: str = "none"
    normalize: bool = True
    reduction: int = 16
    eps: float = 0.1
    layers: tuple[str, ...] | None = None
    hidden_of: str = "group"
    unbiased: bool = False
    constant_maximum: bool = True
    epochs: float = 100
    batch_size: int = 256
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    schedule: str = "multistep"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    warmup_epochs: float = 0
    cycle_epochs: float | None = None
    cycle_factor: float = 1.0
    augmentation: str = "none"
    label_smoothing: float = 0.0
    mixed_precision: str = "no"
    accumulation_steps: int = 1
    channels_last: bool = True
    seed: int = 0
    frames: int | None = None
    sampling: str | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std", "milestones", "layers"):
            value = getattr(self, name)
            if name == "layers" and isinstance(value, str):
                value = (value,)
            if value is not None and not isinstance(value, str | Mapping) and isinstance(value, Iterable):
                object.__setattr__(self, name, tuple(value))
        check_values({field.name: getattr(self, field.name) for field in fields(self)})
        object.__setattr__(self, "data", whole_spec(self.data))
        for name in ("mean", "std", "milestones"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(float(number) for number in value))
        for name in (
            "eps",
            "epochs",
            "learning_rate",
            "momentum",
            "weight_decay",
            "gamma",
            "warmup_epochs",
            "cycle_epochs",
            "cycle_factor",
            "label_smoothing",
        ):
            value = getattr(self, name)
            if value is not None:
                # One way to write a number, so that 12 and 12.0 have one address.
                object.__setattr__(self, name, float(value))
        for name, allowed, meets in (
            ("epochs", "a number above 0", self.epochs > 0),
            ("batch_size", "a whole number, 1 or more", self.batch_size >= 1),
            ("learning_rate", "a number above 0", self.learning_rate > 0),
            ("momentum", "a number from 0 to below 1", 0 <= self.momentum < 1),
            ("weight_decay", "a number, 0 or more", self.weight_decay >= 0),
            ("gamma", "a number above 0", self.gamma > 0),
            ("warmup_epochs", "a number from 0 to below the epochs", 0 <= self.warmup_epochs < self.epochs),
            ("cycle_epochs", "a number above 0", self.cycle_epochs is None or self.cycle_epochs > 0),
            ("cycle_factor", "a number, 1 or more", self.cycle_factor >= 1),
            ("label_smoothing", "a number from 0 to below 1", 0 <= self.label_smoothing < 1),
            ("mixed_precision", "one of " + ", ".join(MIXED_PRECISIONS), self.mixed_precision in MIXED_PRECISIONS),
            (
                "accumulation_steps",
                f"a divisor of the batch size {self.batch_size}",
                self.accumulation_steps >= 1 and self.batch_size % self.accumulation_steps == 0,
            ),
            ("seed", "a whole number, 0 or more", self.seed >= 0),
        ):
            value = getattr(self, name)
            if not meets or (isinstance(value, float) and not math.isfinite(value)):
                raise TrainingError(f"{name.replace('_', ' ')} {value!r} is not possible; give {allowed}")

    @classmethod
    def from_preset(cls, preset: str, *, model: str, **overrides: Any) -> Recipe:
        """Return a preset's recipe for a model with some values overridden; raise TrainingError for unknown names.

        With no more epochs than the preset's warmup has, the warmup is the preset's share of them, unless it is given.

        >>> Recipe.from_preset("digits", model="resnet20", seed=3).epochs
        10.0
        """
        if preset not in PRESETS:
            raise TrainingError(unknown_name("recipe", preset, PRESETS))
        values = PRESETS[preset] | _PRESET_EXCEPTIONS.get((preset, model), {})
        epochs, warmup = overrides.get("epochs"), float(values.get("warmup_epochs", 0))
        if isinstance(epochs, int | float) and 0 < epochs <= warmup:
            # A shorter training than the preset's warmup has its share of one, unless another was asked for.
            values = {**values, "warmup_epochs": epochs * warmup / float(values["epochs"])}
        values = values | overrides
        return cls.from_json({**values, "model": model})

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recipe:
        """Return the recipe that `to_json` wrote; raise TrainingError for a field that does not exist.

        >>> Recipe.from_json({"model": "resnet20", "seed": 3}).seed
        3
        >>> Recipe.from_json({"model": "resnet20", "sed": 3})
        Traceback (most recent call last):
            ...
        weanalysis.errors.TrainingError: unknown recipe option 'sed': did you mean seed or std or unbiased or schedule?
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise TrainingError(unknown_name("recipe option", str(name)[:100], known))
        if "model" not in values:
            raise TrainingError("a recipe without a model is none; name the network that it trains")
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values.

        >>> Recipe(model="resnet20").to_json()["excitation"]
        'none'
        """
        return json.loads(json.dumps(asdict(self)))

    @property
    def address(self) -> str:
        """The sha256 (hex) of all that differs from the defaults."""
        defaults = type(self)(model="").to_json()
        described = {name: value for name, value in self.to_json().items() if value != defaults[name]}
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    def differences(self, other: Recipe) -> list[str]:
        """Name the fields in which two recipes differ, each as 'field: ours, not theirs'.

        >>> Recipe(model="resnet20", seed=1).differences(Recipe(model="resnet20"))
        ['seed: 1, not 0']
        """
        ours, theirs = self.to_json(), other.to_json()
        return [f"{name}: {ours[name]!r}, not {theirs[name]!r}" for name in ours if ours[name] != theirs[name]]

    @property
    def run_name(self) -> str:
        """What a person recognizes the run by, and the first eight digits of the address; fit for a folder."""
        chosen = [self.model, self.data.split(":")[0]]
        chosen += [name for name in (self.excitation, self.attention) if name != "none"]
        if self.norm != "bn":
            chosen.append(self.norm)
        if self.seed:
            chosen.append(f"seed{self.seed}")
        return f"{safe_name('-'.join(chosen))[:80]}-{self.address[:8]}"


def check_values(values: Mapping[str, Any]) -> None:
    """Raise TrainingError unless each of a recipe's fields has the type it needs; names of no field are left alone."""
    try:
        schema.check(_fields_of_a_recipe(), values)
    except schema.Misfit as error:
        raise TrainingError(f"the recipe is not understood: {error}") from None


@remember
def _fields_of_a_recipe() -> schema.Record:
    hints = get_type_hints(Recipe)
    return schema.Record({field.name: schema.of_type(hints[field.name]) for field in fields(Recipe)}, others=True)


def whole_spec(spec: str) -> str:
    """Return a data spec with the whole path of the folder or file it names, so that it means the same everywhere."""
    name, colon, place = spec.partition(":")
    try:
        named = Path(place).expanduser()
        is_there = named.is_dir() or (name == "arrays" and named.is_file())
        return f"{name}:{named.resolve()}" if colon and place and is_there else spec
    except (OSError, ValueError, RuntimeError):  # too long for a path, with a null byte, or of an unknown user
        return spec
