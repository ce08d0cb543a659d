"""A network with all that is known about it, from a name, from a file, or from both."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weanalysis import schema
from weanalysis.cache import Cache, find_cache, storable
from weanalysis.data import AnyTransform, transform_of
from weanalysis.errors import DataError, ModelError
from weanalysis.models.architecture import (
    ABSENT,
    SOURCES,
    build,
    build_plain,
    build_shapes,
    classifier_names,
    describe,
    dress,
    may_be_large,
    parse_name,
    shown_name,
    with_whole_excitation,
)
from weanalysis.models.budget import bounded
from weanalysis.models.checkpoint import NOT_UNDERSTOOD, WeightsFile, is_plain, load_into, read_weights
from weanalysis.models.folding import excitation_of_state, with_own_lwe
from weanalysis.models.formats import is_weights_file
from weanalysis.models.sets import AUTO, Fitted, fit
from weanalysis.models.source import NUM_IMAGENET_CLASSES, Pretrained, imagenet_classes


@dataclass(frozen=True)
class LoadedFrom:
    """The checkpoint that a network was loaded from: which file that was, and the hash of the weights it had then.

    `trained_with` is the excitation that the file's recipe names ("none" for none), also where it was folded since;
    None where the file has no recipe.
    """

    path: Path
    identity: tuple[int, int, int]
    weights_hash: str
    trained_with: str | None = None

    @classmethod
    def now(cls, path: Path, net: nn.Module, recipe: Any = None) -> LoadedFrom:
        """Note that a network has just been loaded from a file, which may tell the recipe it was trained by."""
        path, named = path.resolve(), recipe.get("excitation") if isinstance(recipe, Mapping) else None
        return cls(path, _identity(path), hash_of_weights(net), named if isinstance(named, str) else None)

    def still_holds(self, weights_hash: str) -> bool:
        """Whether these are the weights in it, and it is the file that it was."""
        try:
            return weights_hash == self.weights_hash and _identity(self.path) == self.identity
        except OSError:
            return False


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@dataclass
class Model:
    """A network (eval mode, float32, on the CPU), how to rebuild it, what goes in and what comes out.

    `architecture` is JSON: {"source", "name", "num_classes", "options"} and, where they apply, "attention", "norm" and
    "excitation" (the arguments of `excitation.excite`) and "pruned" (the sizes that removed channels left, see
    `models.pruned`). `weights` is a label. `classes` and `synsets` (ImageNet's
    wnids) name the outputs in order, `transform` makes the inputs; each is None where it is not known. `notes` are
    lines that a user should see. `checkpoint` is the file of this program that it was loaded from, if there was one.

    A network of one's own, with what is known of it:

    >>> net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    >>> model = Model("mine", net, {"source": "module", "name": "mine"}, "my weights", 2, classes=("cat", "dog"))
    >>> before = model.weights_hash
    >>> net[0].bias.data += 1
    >>> model.weights_hash == before
    False
    """

    name: str
    net: nn.Module
    architecture: dict[str, Any]
    weights: str
    num_classes: int
    classes: tuple[str, ...] | None = None
    transform: AnyTransform | None = None
    notes: list[str] = field(default_factory=list)
    synsets: tuple[str, ...] | None = None
    checkpoint: LoadedFrom | None = None

    @property
    def weights_hash(self) -> str:
        """What tells the network's weights from others; see `hash_of_weights`."""
        return hash_of_weights(self.net)


def hash_of_weights(net: nn.Module) -> str:
    """The sha256 (hex) of the names, dtypes, shapes and bytes of the state dict, but for batch norms' counters.

    These count training steps, and nothing is computed with them.
    What is no plain tensor, as `get_extra_state` and quantized layers have it, counts by how it is pickled. Raises
    ModelError for what cannot be pickled.
    """
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        if is_plain(value):
            digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
            plain: Any = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(memoryview(plain.numpy()))
            continue
        try:
            pickled = io.BytesIO()
            torch.save(value, pickled)  # whose bytes, unlike pickle's, do not depend on where tensors lie
            digest.update(json.dumps([name, type(value).__name__]).encode() + pickled.getvalue())
        except Exception as error:  # whatever a class of the caller's raises
            reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            raise ModelError(
                f"the state {name!r} of the network cannot be kept, nor told from another ({reason}); "
                "let get_extra_state return tensors, numbers or text"
            ) from error
    return digest.hexdigest()


def load_network(
    name: str,
    weights: str = "default",
    num_classes: int | None = None,
    options: Mapping[str, Any] | None = None,
    cache: Cache | None = None,
    weights_of: str = AUTO,
) -> Model:
    """Get a network by name with weights of any origin, or a checkpoint that knows its own architecture.

    `name` is a torchvision or built-in network, "timm:NAME", or a checkpoint file of this program; `weights` is "none"
    (random), "default" (the published ones; of a checkpoint file, its own), the name of published weights, or a file.
    The classifier is fitted to the weights; `num_classes`, where given, must be theirs. `options` go to the network's
    constructor, apart from "attention", "norm" and "excitation" (a kind, or the arguments of `excitation.excite`).
    Published weights are downloaded into `cache`. Of a file with several sets of weights, `weights_of` chooses: "raw",
    "averaged" (EMA), or the key or prefix of one; "auto" takes the raw ones, and a note says so.

    Raises ModelError: an unknown name, weights name or option; weights that cannot be read, downloaded or do not fit.

    >>> model = load_network("resnet20", weights="none", num_classes=10, options={"excitation": "lwe"})
    >>> model.num_classes, model.architecture["excitation"]["kind"], model.weights
    (10, 'lwe', 'none')
    """
    cache = cache or find_cache()
    options = with_whole_excitation(options or {})
    if is_weights_file(name):
        return _from_checkpoint_name(Path(name), weights, num_classes, options, weights_of)
    source, plain = parse_name(name)
    architecture = describe(source, plain, num_classes, options)
    if is_weights_file(weights):
        return _from_file(Path(weights), architecture, num_classes, options, weights_of)
    if weights_of != AUTO:
        raise ModelError(
            f"--weights-of {weights_of} chooses among the weights in a file, and no file is given; leave it out"
        )
    if weights == "none":
        return _untrained(architecture, build(architecture))
    return _from_published(SOURCES[source].pretrained(plain, weights), architecture, num_classes, cache)


# From weights to a model ----------------------------------------------------------------------------------------------


def _untrained(architecture: dict[str, Any], net: nn.Module) -> Model:
    return Model(shown_name(architecture), net, _whole(architecture, net), "none", architecture["num_classes"])


def _whole(architecture: dict[str, Any], net: nn.Module) -> dict[str, Any]:
    """Return an architecture with all settings of its excitation, also those that were left to their defaults."""
    if not architecture.get("excitation"):
        return architecture
    from weanalysis.excitation import excitation_of

    return {**architecture, "excitation": excitation_of(net)}


def _from_published(
    pretrained: Pretrained, architecture: dict[str, Any], num_classes: int | None, cache: Cache
) -> Model:
    architecture = {
        **architecture,
        "name": pretrained.name,
        "num_classes": pretrained.num_classes,
        "options": {**architecture["options"], **pretrained.options},
    }
    name = shown_name(architecture)
    _check_num_classes(f"the weights {pretrained.label}", pretrained.num_classes, num_classes)
    notes = list(pretrained.notes)
    if architecture.get("norm"):
        raise ModelError(f"the published weights of {name} need its batch norm; leave out the norm, or give no weights")
    net = build_plain(architecture)
    load_into(net, pretrained.fetch(cache), f"the weights {pretrained.label}", name)
    if architecture.get("attention"):
        notes.append(f"the {architecture['attention']} blocks are not trained: published weights do not have them")
    return Model(
        name=name,
        net=dress(net, architecture).eval(),
        architecture=architecture,
        weights=pretrained.label,
        num_classes=pretrained.num_classes,
        classes=pretrained.classes,
        transform=pretrained.transform,
        notes=notes,
        synsets=pretrained.synsets,
    )


def _from_checkpoint_name(
    path: Path, weights: str, num_classes: int | None, options: Mapping[str, Any], weights_of: str
) -> Model:
    """Make the model of `--model FILE`: its architecture, with its own weights, none, or those of another file."""
    file = read_weights(path)
    own = _own_architecture(file)
    if own is None:
        raise ModelError(f"{path} does not say which network it is for; give that as the model, this as weights")
    if weights == "default":
        return _from_own(file, num_classes, options, weights_of)
    _check_options(path, own, options)
    if is_weights_file(weights):
        return _from_file(Path(weights), own, num_classes, options, weights_of)
    if weights != "none":
        raise ModelError(f"{path} has no weights called {weights!r}; choose from default (its own), none, or a file")
    own = own if num_classes is None else {**own, "num_classes": num_classes}
    return _untrained(own, _build_described(file, own))


def _from_file(
    path: Path, architecture: dict[str, Any], num_classes: int | None, options: Mapping[str, Any], weights_of: str
) -> Model:
    """Make the model of `--model NAME --weights FILE`."""
    file = read_weights(path)
    name, file_name = shown_name(architecture), storable(path.name)
    own = _own_architecture(file)
    if own is not None:
        # timm's tags name weights, not networks.
        if shown_name(own).partition(".")[0] != name.partition(".")[0]:
            raise ModelError(f"{path} holds {shown_name(own)}, not {name}; give the file itself as the model")
        return _from_own(file, num_classes, options, weights_of)
    source = SOURCES[architecture["source"]]
    label = source.published_as(architecture["name"], path.name)
    if label and not architecture.keys() & ABSENT.keys():
        published = source.pretrained(architecture["name"], label)
        architecture = {**architecture, "options": {**architecture["options"], **published.options}}
    fitted, architecture = _fitted(file, architecture, weights_of)
    _check_num_classes(str(path), architecture["num_classes"], num_classes)
    net = build(architecture)
    weights = file_name + (" (averaged)" if fitted.averaged else "")
    num_classes = architecture["num_classes"]
    notes = [*fitted.notes, *load_into(net, fitted.state, storable(str(path)), name)]
    outputs: dict[str, Any] = {}
    if label:
        outputs = {part: getattr(published, part) for part in ("classes", "synsets", "transform")}
        notes.append(f"{file_name} is taken for {name}'s weights {label}, because it has their name")
    elif num_classes == NUM_IMAGENET_CLASSES:
        outputs = dict(zip(("classes", "synsets"), imagenet_classes(), strict=True))
        notes.append(f"the 1,000 classes in {file_name} are taken to be ImageNet's, in the usual order")
    return Model(name, net, _whole(architecture, net), weights, num_classes, notes=notes, **outputs)


def _fitted(file: WeightsFile, architecture: dict[str, Any], weights_of: str) -> tuple[Fitted, dict[str, Any]]:
    """Fit a file's weights to a network: the plain state dict, and the architecture with its classes and excitation."""
    origin = storable(str(file.path))
    expected, classifier = classifier_names(json.dumps(dict(architecture), sort_keys=True))
    fitted = fit(file.sets, expected, origin, weights_of)
    architecture = {**architecture, "num_classes": _num_classes(fitted.state, classifier, architecture)}
    state, layers = with_own_lwe(fitted.state, expected)
    fitted = replace(fitted, state=state)
    if layers and not architecture.get("excitation"):
        architecture["excitation"] = {"kind": "lwe", "hidden_of": "layer", "unbiased": True, "layers": layers}
        fitted.notes.append(
            f"{len(layers)} convolutions of {origin} have layers fc1 and fc2 beside their weight: taken for LWE as the "
            'public implementation has it; otherwise give --model-option excitation=\'{"kind": "lwe+mwe", ...}\''
        )
    if not architecture.get("excitation") and (excitation := excitation_of_state(fitted.state, origin)):
        architecture["excitation"] = excitation
        fitted.notes.append(
            f"{len(excitation['layers'])} layers of {origin} have LWE, and it does not say with which settings: taken "
            'as lwe on standardized weights; otherwise give --model-option excitation=\'{"kind": ..., "normalize": '
            "false}'"
        )
    return fitted, architecture


def _from_own(file: WeightsFile, num_classes: int | None, options: Mapping[str, Any], weights_of: str) -> Model:
    """Make the model of a checkpoint that `save_checkpoint` wrote."""
    path, metadata = storable(str(file.path)), file.metadata
    architecture = metadata["architecture"]
    name = shown_name(architecture)
    if weights_of != AUTO:
        raise ModelError(f"{path} holds one set of weights, so {weights_of!r} is no choice; leave --weights-of out")
    _check_options(file.path, architecture, options)
    _check_num_classes(path, architecture["num_classes"], num_classes)
    net = _build_described(file, architecture)
    load_into(net, file.state, path, name)
    described = metadata.get("transform")
    try:
        transform = transform_of(described) if described else None
    except DataError as error:
        raise ModelError(f"{path}: {error}") from error
    notes = [storable(note) for note in metadata.get("notes") or ()]
    num_outputs = architecture["num_classes"]
    classes, synsets = (_names(path, key, metadata, num_outputs, notes) for key in ("classes", "synsets"))
    return Model(
        name=name,
        net=net,
        architecture=architecture,
        weights=storable(metadata.get("weights") or file.path.name),
        num_classes=num_outputs,
        classes=classes,
        transform=transform,
        notes=notes,
        synsets=synsets,
        checkpoint=LoadedFrom.now(file.path, net, metadata.get("recipe")),
    )


def _own_architecture(file: WeightsFile) -> dict[str, Any] | None:
    """Return the architecture that a checkpoint names, None if it names none; raise ModelError if it makes no sense."""
    if "architecture" not in file.metadata:
        return None
    try:
        schema.check(schema.ARCHITECTURE, file.metadata["architecture"], "architecture")
    except schema.Misfit as error:
        raise ModelError(f"{file.path} {NOT_UNDERSTOOD}: {error}") from None
    return file.metadata["architecture"]


def _names(path: str, key: str, metadata: Mapping[str, Any], wanted: int, notes: list[str]) -> tuple[str, ...] | None:
    """Return the names of the outputs that a checkpoint gives, None where it gives none or another number of them."""
    names = metadata.get(key)
    if names and len(names) != wanted:
        notes.append(f"{path} names {len(names):,} {key} for {wanted:,} outputs; the names were left out")
        return None
    return tuple(storable(name) for name in names) if names else None


def _build_described(file: WeightsFile, architecture: Mapping[str, Any]) -> nn.Module:
    """Build the network that a file describes, unless it is far larger than what the file holds."""
    origin = storable(str(file.path))
    with bounded(origin, len(file.sets[0].state), file.num_elements, bool(architecture.get("pruned"))):
        if may_be_large(architecture):
            build_shapes(architecture)
        return build(architecture)


def _check_options(path: Path, architecture: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    has = {**ABSENT, **architecture.get("options", {}), **architecture}
    for key, value in options.items():
        own = has.get(key)
        if isinstance(own, Mapping) and isinstance(value, Mapping):  # of an excitation, some settings may be named
            own = {name: own.get(name) for name in value}
        if own != value:
            raise ModelError(f"{path} was made with {key}={has.get(key)}, not {value}; leave the option out")


def _check_num_classes(origin: str, has: int, wanted: int | None) -> None:
    if wanted not in (None, has):
        raise ModelError(f"{origin} has {has} classes, not {wanted}; leave the number out, or give no weights")


def _num_classes(state: Mapping[str, Tensor], classifier: frozenset[str], architecture: Mapping[str, Any]) -> int:
    """Read off the classifier in a state dict how many classes it has; the architecture's number if it has none."""
    sizes = {state[name].shape[0] for name in classifier if name in state and state[name].dim() > 0}
    number = sizes.pop() if len(sizes) == 1 else architecture["num_classes"]
    return int(number)
