"""How a network is built: from a name and options to a JSON description, and from that to a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from weanalysis import schema
from weanalysis.errors import ModelError, WeanalysisError, unknown_name
from weanalysis.models.attention import add_attention, use_norm
from weanalysis.models.cifar import Builtin
from weanalysis.models.pruned import apply_sizes
from weanalysis.models.segmentation import TorchvisionSegmentation
from weanalysis.models.source import NetworkSource
from weanalysis.models.timm_source import Timm
from weanalysis.models.torchvision_source import Torchvision
from weanalysis.models.video import TorchvisionVideo

SOURCES: dict[str, NetworkSource] = {
    "builtin": Builtin(),
    "torchvision": Torchvision(),
    "video": TorchvisionVideo(),
    "segmentation": TorchvisionSegmentation(),
    "timm": Timm(),
}

_FIELDS = {"source", "name", "num_classes", "options", "attention", "norm", "excitation", "pruned"}
# Sources whose networks go by their name alone, looked through in this order.
_WITHOUT_PREFIX = ("builtin", "torchvision", "video", "segmentation")

# What an option means that is not there.
ABSENT = {"attention": "none", "norm": "bn", "excitation": "none"}


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """Make the network that an architecture describes, in eval mode, its weights drawn from torch's generator.

    Raises ModelError for a network, option, attention or norm that is not known or does not go together, and
    ExcitationError for an excitation that cannot be applied.

    >>> net = build({"source": "builtin", "name": "resnet20", "num_classes": 10, "excitation": {"kind": "lwe"}})
    >>> net.training, type(net.conv1).__name__, net.fc.out_features
    (False, 'ParametrizedConv2d', 10)
    """
    return dress(build_plain(architecture), architecture).eval()


def list_models(include_timm: bool = False) -> list[dict[str, Any]]:
    """List the networks that `load_network` knows: name, source, num_parameters (None: not known), weights.

    >>> next(model for model in list_models() if model["name"] == "resnet20")
    {'name': 'resnet20', 'source': 'builtin', 'num_parameters': 269722, 'weights': []}
    """
    return [
        {
            "name": shown_name({"source": key, "name": name}),
            "source": key,
            "num_parameters": source.num_parameters(name),
            "weights": source.weights(name),
        }
        for key, source in SOURCES.items()
        if key != "timm" or include_timm
        for name in source.names()
    ]


def parse_name(name: str) -> tuple[str, str]:
    """Split what a user typed into source and name: "timm:x", "resnet20" (built-in), "resnet50" (torchvision).

    Raises ModelError for a name that no source knows.

    >>> parse_name("resnet20"), parse_name("resnet50"), parse_name("timm:resnet10t")
    (('builtin', 'resnet20'), ('torchvision', 'resnet50'), ('timm', 'resnet10t'))
    """
    prefix, colon, rest = name.partition(":")
    if colon and prefix in SOURCES:
        SOURCES[prefix].defaults(rest)
        return prefix, rest
    for source in _WITHOUT_PREFIX:
        if name in SOURCES[source].names():
            return source, name
    known = [known for source in _WITHOUT_PREFIX for known in SOURCES[source].names()]
    raise ModelError(unknown_name("model", name, known, "Others: timm:NAME, or a checkpoint file."))


def check_task(architecture: Mapping[str, Any], spec: str, task: str) -> None:
    """Raise ModelError where a network's outputs mean something else than what data of a `task` have.

    >>> check_task({"source": "builtin", "name": "resnet20"}, "digits", "classification")
    >>> check_task({"source": "builtin", "name": "fcn_resnet20"}, "digits", "classification")
    Traceback (most recent call last):
        ...
    weanalysis.errors.ModelError: fcn_resnet20 gives each pixel a class, and digits has one class for each image: choose
    data with masks, or a classifier
    """
    source = SOURCES.get(architecture["source"])
    if source is None:  # a module of the caller's
        return
    own = source.task_of(architecture["name"])
    if own == task:
        return
    name = shown_name(architecture)
    if task == "segmentation":
        others = [one for key in _WITHOUT_PREFIX for one in SOURCES[key].names() if SOURCES[key].task_of(one) == task]
        raise ModelError(
            f"{name} gives each image a class, and {spec} has masks, a class for each pixel: choose other data, or one "
            f"of {', '.join(others)}"
        )
    raise ModelError(
        f"{name} gives each pixel a class, and {spec} has one class for each image: choose data with masks, or a "
        "classifier"
    )


def shown_name(architecture: Mapping[str, Any]) -> str:
    """Return what a user calls the network: what `parse_name` takes."""
    source, name = architecture["source"], architecture["name"]
    return name if source in _WITHOUT_PREFIX or source not in SOURCES else f"{source}:{name}"


def describe(source: str, name: str, num_classes: int | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Make the architecture of a network with some options; raise ModelError for an unknown name."""
    own_classes, own_options = SOURCES[source].defaults(name)
    architecture = {
        "source": source,
        "name": name,
        "num_classes": own_classes if num_classes is None else num_classes,
        "options": {**own_options, **{key: value for key, value in options.items() if key not in ABSENT}},
    }
    for key, absent in ABSENT.items():
        if options.get(key, absent) not in (absent, None):
            architecture[key] = options[key]
    return architecture


def with_whole_excitation(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options in which an excitation that is named by its kind alone is the arguments of `excite`."""
    options = dict(options)
    asked = options.get("excitation")
    if isinstance(asked, str) and asked != ABSENT["excitation"]:
        options["excitation"] = {"kind": asked}
    if isinstance(options.get("excitation"), Mapping):
        try:
            schema.check(schema.EXCITATION, options["excitation"], "excitation")
        except schema.Misfit as error:
            raise ModelError(f"the option {error}") from None
    return options


def build_plain(architecture: Mapping[str, Any]) -> nn.Module:
    """Make the network without attention, norm and excitation."""
    unknown = sorted(set(architecture) - _FIELDS)
    if unknown or not {"source", "name"} <= set(architecture):
        raise ModelError(f"an architecture with {', '.join(unknown) or 'no source and name'} is not understood here")
    if architecture["source"] not in SOURCES:
        raise ModelError(unknown_name("model source", str(architecture["source"]), SOURCES))
    source, name = SOURCES[architecture["source"]], architecture["name"]
    num_classes, _ = source.defaults(name)
    num_classes = architecture.get("num_classes", num_classes)
    options = architecture.get("options") or {}
    if num_classes < 1:
        raise ModelError(f"a network needs one class or more, not {num_classes}")
    try:
        return source.build(name, num_classes, options)
    except WeanalysisError:
        raise
    except Exception as error:  # whatever a constructor raises for sizes that do not go together, or for want of memory
        listed = ", ".join([*source.options(name), *ABSENT])
        given = ", ".join(f"{key}={value}" for key, value in {"num_classes": num_classes, **options}.items())
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"{name} cannot be built with {given} ({reason}); its options are {listed}") from error


def dress(net: nn.Module, architecture: Mapping[str, Any]) -> nn.Module:
    """Add to a plain network what its architecture names beside: norm, attention, removed channels and excitation."""
    name = shown_name(architecture)
    if architecture.get("norm"):
        use_norm(net, architecture["norm"], name)
    if architecture.get("attention"):
        add_attention(net, architecture["attention"], name)
    if architecture.get("pruned"):
        apply_sizes(net, architecture["pruned"], name)
    if architecture.get("excitation"):
        from weanalysis.excitation import excite

        try:
            excite(net, **architecture["excitation"])
        except TypeError as error:
            raise ModelError(f"{name} cannot be excited with {architecture['excitation']}: {error}") from error
    return net


def may_be_large(architecture: Mapping[str, Any]) -> bool:
    """Say whether options may make a network large: then its shapes are looked at before memory is taken for it."""
    source = SOURCES.get(architecture["source"])
    usual = source.defaults(architecture["name"])[1] if source else {}
    changed = {key: value for key, value in architecture["options"].items() if usual.get(key) != value}
    return any(not isinstance(value, str | bool | None) for value in changed.values())


@lru_cache(maxsize=16)
def classifier_names(architecture_json: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return all names in a network's state dict, and those of its classifier.

    The classifier's tensors are those whose first dimension differs between two networks for other numbers of classes.
    """
    architecture = json.loads(architecture_json)
    one, other = ({**architecture, "num_classes": number} for number in (7, 11))
    shapes = [{key: tensor.shape for key, tensor in build_shapes(a).state_dict().items()} for a in (one, other)]
    classifier = [key for key in shapes[0] if shapes[0][key][:1] != shapes[1][key][:1]]
    return frozenset(shapes[0]), frozenset(classifier)


def build_shapes(architecture: Mapping[str, Any]) -> nn.Module:
    try:
        with torch.device("meta"):
            return build(architecture)
    except (ModelError, RuntimeError) as error:
        # RegNet and some of timm compute with what they initialize, which a tensor without values cannot.
        if isinstance(error.__cause__ or error, RuntimeError):
            return build(architecture)
        raise
