"""A network with all that is known about it, from a name, from a file, or from both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weanalysis.cache import Cache, find_cache
from weanalysis.data import Transform
from weanalysis.errors import DataError, ModelError, unknown_name
from weanalysis.models.attention import add_attention, use_norm
from weanalysis.models.checkpoint import SUFFIXES, fit_names, load_into, read_state_dict
from weanalysis.models.cifar import BUILTIN, Builtin
from weanalysis.models.pruned import apply_sizes
from weanalysis.models.source import NUM_IMAGENET_CLASSES, Pretrained, Source, imagenet_classes
from weanalysis.models.timm_source import Timm
from weanalysis.models.torchvision_source import Torchvision

SOURCES: dict[str, Source] = {"builtin": Builtin(), "torchvision": Torchvision(), "timm": Timm()}

_FIELDS = {"source", "name", "num_classes", "options", "attention", "norm", "excitation", "pruned"}
# What an option means that is not there.
_ABSENT = {"attention": "none", "norm": "bn"}


@dataclass
class Model:
    """A network (eval mode, float32, on the CPU), how to rebuild it, what goes in and what comes out.

    `architecture` is JSON: {"source", "name", "num_classes", "options"} and, where they apply, "attention", "norm" and
    "excitation" (the arguments of `excitation.excite`) and "pruned" (the sizes that removed channels left, see
    `models.pruned`). `weights` is a label. `classes` and `synsets` (ImageNet's
    wnids) name the outputs in order, `transform` makes the inputs; each is None where it is not known. `notes` are
    lines that a user should see.
    """

    name: str
    net: nn.Module
    architecture: dict[str, Any]
    weights: str
    num_classes: int
    classes: tuple[str, ...] | None = None
    transform: Transform | None = None
    notes: list[str] = field(default_factory=list)
    synsets: tuple[str, ...] | None = None

    @property
    def weights_hash(self) -> str:
        """The sha256 (hex) of the names, dtypes, shapes and bytes of the state dict, but for batch norms' counters.

        These count training steps, and nothing is computed with them.
        """
        digest = hashlib.sha256()
        for name, tensor in sorted(self.net.state_dict().items()):
            if name.endswith("num_batches_tracked"):
                continue
            digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(memoryview(plain.numpy()))
        return digest.hexdigest()


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """Make the network that an architecture describes, in eval mode, its weights drawn from torch's generator.

    Raises ModelError for a network, option, attention or norm that is not known or does not go together, and
    ExcitationError for an excitation that cannot be applied.
    """
    return _dress(_build_plain(architecture), architecture).eval()


def load_network(
    name: str,
    weights: str = "default",
    num_classes: int | None = None,
    options: Mapping[str, Any] | None = None,
    cache: Cache | None = None,
) -> Model:
    """Get a network by name with weights of any origin, or a checkpoint that knows its own architecture.

    `name` is a torchvision or built-in network, "timm:NAME", or a checkpoint file of this program; `weights` is "none"
    (random), "default" (the published ones; of a checkpoint file, its own), the name of published weights, or a file.
    The classifier is fitted to the weights; `num_classes`, where given, must be theirs. `options` go to the network's
    constructor, apart from "attention" and "norm". Published weights are downloaded into `cache`.

    Raises ModelError: an unknown name, weights name or option; weights that cannot be read, downloaded or do not fit.
    """
    cache = cache or find_cache()
    options = dict(options or {})
    if _is_file(name):
        return _from_checkpoint_name(Path(name), weights, num_classes, options)
    source, plain = _parse_name(name)
    architecture = _describe(source, plain, num_classes, options)
    if weights == "none":
        return _untrained(architecture)
    if _is_file(weights):
        return _from_file(Path(weights), architecture, num_classes, options)
    return _from_published(SOURCES[source].pretrained(plain, weights), architecture, num_classes, cache)


def list_models(include_timm: bool = False) -> list[dict[str, Any]]:
    """List the networks that `load_network` knows: name, source, num_parameters (None: not known), weights."""
    return [
        {
            "name": f"timm:{name}" if key == "timm" else name,
            "source": key,
            "num_parameters": source.num_parameters(name),
            "weights": source.weights(name),
        }
        for key, source in SOURCES.items()
        if key != "timm" or include_timm
        for name in source.names()
    ]


# From a name to an architecture, from an architecture to a network ----------------------------------------------------


def _parse_name(name: str) -> tuple[str, str]:
    """Split what a user typed into source and name: "timm:x", "resnet20" (built-in), "resnet50" (torchvision)."""
    prefix, colon, rest = name.partition(":")
    if colon and prefix in SOURCES:
        SOURCES[prefix].defaults(rest)
        return prefix, rest
    for source in ("builtin", "torchvision"):
        if name in SOURCES[source].names():
            return source, name
    known = [*BUILTIN, *SOURCES["torchvision"].names()]
    raise ModelError(unknown_name("model", name, known, "Others: timm:NAME, or a checkpoint file."))


def _shown_name(architecture: Mapping[str, Any]) -> str:
    return f"timm:{architecture['name']}" if architecture["source"] == "timm" else architecture["name"]


def _describe(source: str, name: str, num_classes: int | None, options: Mapping[str, Any]) -> dict[str, Any]:
    own_classes, own_options = SOURCES[source].defaults(name)
    architecture = {
        "source": source,
        "name": name,
        "num_classes": own_classes if num_classes is None else num_classes,
        "options": {**own_options, **{key: value for key, value in options.items() if key not in _ABSENT}},
    }
    for key, absent in _ABSENT.items():
        if options.get(key, absent) not in (absent, None):
            architecture[key] = options[key]
    return architecture


def _build_plain(architecture: Mapping[str, Any]) -> nn.Module:
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
    except (TypeError, ValueError, AttributeError) as error:
        if not options:
            raise
        listed = ", ".join([*source.options(name), *_ABSENT])
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        raise ModelError(f"{name} cannot be built with {given} ({error}); its options are {listed}") from error


def _dress(net: nn.Module, architecture: Mapping[str, Any]) -> nn.Module:
    """Add to a plain network what its architecture names beside: norm, attention, removed channels and excitation."""
    name = _shown_name(architecture)
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


# From weights to a model ----------------------------------------------------------------------------------------------


def _is_file(text: str) -> bool:
    return Path(text).suffix in SUFFIXES or ("/" in text and ":" not in text)


def _untrained(architecture: dict[str, Any]) -> Model:
    return Model(_shown_name(architecture), build(architecture), architecture, "none", architecture["num_classes"])


def _from_published(
    pretrained: Pretrained, architecture: dict[str, Any], num_classes: int | None, cache: Cache
) -> Model:
    architecture = {
        **architecture,
        "name": pretrained.name,
        "num_classes": pretrained.num_classes,
        "options": {**architecture["options"], **pretrained.options},
    }
    name = _shown_name(architecture)
    _check_num_classes(f"the weights {pretrained.label}", pretrained.num_classes, num_classes)
    notes = list(pretrained.notes)
    if architecture.get("norm"):
        raise ModelError(f"the published weights of {name} need its batch norm; leave out the norm, or give no weights")
    net = _build_plain(architecture)
    load_into(net, pretrained.fetch(cache), f"the weights {pretrained.label}", name)
    if architecture.get("attention"):
        notes.append(f"the {architecture['attention']} blocks are not trained: published weights do not have them")
    return Model(
        name=name,
        net=_dress(net, architecture).eval(),
        architecture=architecture,
        weights=pretrained.label,
        num_classes=pretrained.num_classes,
        classes=pretrained.classes,
        transform=pretrained.transform,
        notes=notes,
        synsets=pretrained.synsets,
    )


def _from_checkpoint_name(path: Path, weights: str, num_classes: int | None, options: Mapping[str, Any]) -> Model:
    """Make the model of `--model FILE`: its architecture, with its own weights, none, or those of another file."""
    state, metadata = read_state_dict(path)
    own = _own_architecture(path, metadata)
    if own is None:
        raise ModelError(f"{path} does not say which network it is for; give that as the model, this as weights")
    if weights == "default":
        return _from_own(path, state, metadata, own, num_classes, options)
    _check_options(path, own, options)
    if _is_file(weights):
        return _from_file(Path(weights), own, num_classes, options)
    if weights != "none":
        raise ModelError(f"{path} has no weights called {weights!r}; choose from default (its own), none, or a file")
    return _untrained(own if num_classes is None else {**own, "num_classes": num_classes})


def _from_file(path: Path, architecture: dict[str, Any], num_classes: int | None, options: Mapping[str, Any]) -> Model:
    """Make the model of `--model NAME --weights FILE`."""
    state, metadata = read_state_dict(path)
    name = _shown_name(architecture)
    own = _own_architecture(path, metadata)
    if own is not None:
        # timm's tags name weights, not networks.
        if _shown_name(own).partition(".")[0] != name.partition(".")[0]:
            raise ModelError(f"{path} holds {_shown_name(own)}, not {name}; give the file itself as the model")
        return _from_own(path, state, metadata, own, num_classes, options)
    source = SOURCES[architecture["source"]]
    label = source.published_as(architecture["name"], path.name)
    if label and not architecture.keys() & _ABSENT.keys():
        published = source.pretrained(architecture["name"], label)
        architecture = {**architecture, "options": {**architecture["options"], **published.options}}
    architecture["num_classes"] = _num_classes(state, architecture)
    _check_num_classes(str(path), architecture["num_classes"], num_classes)
    net = build(architecture)
    model = Model(name, net, architecture, path.name, architecture["num_classes"])
    model.notes = load_into(net, state, str(path), name)
    if label:
        model.classes, model.synsets, model.transform = published.classes, published.synsets, published.transform
        model.notes.append(f"{path.name} is taken for {name}'s weights {label}, because it has their name")
    elif model.num_classes == NUM_IMAGENET_CLASSES:
        model.classes, model.synsets = imagenet_classes()
        model.notes.append(f"the 1,000 classes in {path.name} are taken to be ImageNet's, in the usual order")
    return model


def _from_own(
    path: Path,
    state: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    architecture: dict[str, Any],
    num_classes: int | None,
    options: Mapping[str, Any],
) -> Model:
    """Make the model of a checkpoint that `save_checkpoint` wrote."""
    name = _shown_name(architecture)
    _check_options(path, architecture, options)
    _check_num_classes(str(path), architecture["num_classes"], num_classes)
    net = build(architecture)
    load_into(net, state, str(path), name)
    described = metadata.get("transform")
    try:
        transform = Transform.from_description(described) if described else None
    except DataError as error:
        raise ModelError(f"{path}: {error}") from error
    return Model(
        name=name,
        net=net,
        architecture=architecture,
        weights=metadata.get("weights") or path.name,
        num_classes=architecture["num_classes"],
        classes=tuple(metadata["classes"]) if metadata.get("classes") else None,
        transform=transform,
        notes=list(metadata.get("notes") or ()),
        synsets=tuple(metadata["synsets"]) if metadata.get("synsets") else None,
    )


def _own_architecture(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the architecture that a checkpoint names, None if it names none; raise ModelError if it makes no sense."""
    if "architecture" not in metadata:
        return None
    own = metadata["architecture"]
    needed = {"source": str, "name": str, "num_classes": int, "options": dict}
    if not isinstance(own, dict) or any(not isinstance(own.get(key), kind) for key, kind in needed.items()):
        raise ModelError(f"{path} describes its network in a way that is not understood here; save it again")
    return own


def _check_options(path: Path, architecture: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    has = {**_ABSENT, **architecture.get("options", {}), **architecture}
    for key, value in options.items():
        if has.get(key) != value:
            raise ModelError(f"{path} was made with {key}={has.get(key)}, not {value}; leave the option out")


def _check_num_classes(origin: str, has: int, wanted: int | None) -> None:
    if wanted not in (None, has):
        raise ModelError(f"{origin} has {has} classes, not {wanted}; leave the number out, or give no weights")


def _num_classes(state: Mapping[str, Tensor], architecture: Mapping[str, Any]) -> int:
    """Read off the classifier in a file of weights how many classes it has; the architecture's number if it has none.

    The classifier's tensors are those whose first dimension differs between two networks for other numbers of classes.
    """
    expected = _classifier_names(json.dumps(dict(architecture), sort_keys=True))
    named = fit_names(state, expected[0])
    sizes = {named[name].shape[0] for name in expected[1] if name in named and named[name].dim() > 0}
    return sizes.pop() if len(sizes) == 1 else architecture["num_classes"]


@lru_cache(maxsize=16)
def _classifier_names(architecture_json: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return all names in a network's state dict, and those of its classifier."""
    architecture = json.loads(architecture_json)
    one, other = ({**architecture, "num_classes": number} for number in (7, 11))
    shapes = [{key: tensor.shape for key, tensor in _build_shapes(a).state_dict().items()} for a in (one, other)]
    classifier = [key for key in shapes[0] if shapes[0][key][:1] != shapes[1][key][:1]]
    return frozenset(shapes[0]), frozenset(classifier)


def _build_shapes(architecture: Mapping[str, Any]) -> nn.Module:
    try:
        with torch.device("meta"):
            return build(architecture)
    except (NotImplementedError, RuntimeError):  # RegNet and some of timm compute with what they initialize
        return build(architecture)
