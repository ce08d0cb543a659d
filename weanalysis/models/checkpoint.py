"""Files of weights: reading those of any origin without running their code, fitting their names, writing our own."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from weanalysis import schema
from weanalysis.cache import write_atomically
from weanalysis.errors import ModelError, some_names
from weanalysis.models.formats import check_format, most_bytes
from weanalysis.models.pickles import TooCostly, check_pickles
from weanalysis.models.sets import WRAPPERS, WeightSet, find_sets, fit_names

METADATA_KEY = "weanalysis"
NOT_UNDERSTOOD = "describes its network in a way that is not understood here"

# Classifiers that help to train GoogLeNet and Inception and are no part of the network afterwards.
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
_COUNTER = "num_batches_tracked"
_CODE = re.compile(r"GLOBAL|whose module|Can only (?:create|build|append|extend|set)|Trying to")


@dataclass(frozen=True)
class WeightsFile:
    """What a file of weights holds: one set of tensors or several, and what this program wrote about them."""

    path: Path
    sets: list[WeightSet]
    metadata: dict[str, Any]

    @property
    def state(self) -> dict[str, Tensor]:
        """The first set by name, without what DataParallel and torch.compile put before every name."""
        state: dict[str, Tensor] = self.sets[0].state
        for prefix in ("module.", "_orig_mod.", "module."):
            if state and all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        return state

    @property
    def num_elements(self) -> int:
        """How many numbers the first set has."""
        return sum(tensor.numel() for tensor in self.sets[0].state.values())


def read_state_dict(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors of a checkpoint by name, on the CPU, and what this program wrote about them ({} if it did not).

    Of several sets of weights in the file, the first; see `read_weights`. Raises ModelError.

    >>> from weanalysis.models.model import load_network
    >>> model = load_network("resnet20", weights="none", num_classes=10)
    >>> save_checkpoint("mine.safetensors", model.net, model.architecture)
    >>> state, metadata = read_state_dict("mine.safetensors")
    >>> state["fc.weight"].shape, metadata["architecture"]["name"]
    (torch.Size([10, 64]), 'resnet20')
    """
    weights = read_weights(path)
    return weights.state, weights.metadata


def read_weights(path: str | Path) -> WeightsFile:
    """Read a file of weights: safetensors, or what torch.save wrote (a state dict, or dicts that hold some).

    Formats are told apart by content. Never runs code from the file, and takes no more memory than a few times its
    size. Raises ModelError for a file that is missing, damaged, of another format, too large for what it has, that
    would run code, or that says of itself what `schema.CHECKPOINT` does not allow.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            head = check_format(path, file, size)
            # safetensors: eight bytes with the length of a JSON header, then the header.
            is_safetensors = head[8:9] == b"{"
            content = None if is_safetensors else _unpickled(path, file, zipped=head.startswith(b"PK"))
    except (OSError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"the checkpoint {schema.storable(str(path))} cannot be read: {reason}") from error
    if is_safetensors:
        state, metadata = _read_safetensors(path)
        return WeightsFile(path, [WeightSet("", state)], metadata)
    sets = find_sets(content)
    if not sets:
        raise ModelError(f"{path} holds no state dict; one is looked for at its top and under {', '.join(WRAPPERS)}")
    for one in sets:
        if nested := [name for name, tensor in one.state.items() if tensor.is_nested]:
            raise ModelError(f"{some_names(nested)} in {path} is a nested tensor, which no weight is; leave it out")
        _check_expansion(path, one.state, size)
        _check_indices(path, one.state)
    return WeightsFile(path, sets, {})


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if schema.storable(str(path)) != str(path):
        raise ModelError(f"{path} is not named in UTF-8, which safetensors needs; rename it, or link to it")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file is no dict)
            text = (file.metadata() or {}).get(METADATA_KEY, "{}")
    except Exception as error:  # its own error, and torch's for number types that torch does not have
        raise ModelError(f"{path} is no complete safetensors file ({_first_line(error)}); get it again") from error
    try:
        metadata = schema.read_json(text)
    except schema.Misfit as error:
        raise ModelError(f"{path} has damaged metadata ({error}); get it again") from error
    if not isinstance(metadata, dict):
        raise ModelError(f"{path} has damaged metadata; get it again")
    try:
        schema.check(schema.CHECKPOINT, metadata)
    except schema.Misfit as error:
        raise ModelError(f"{path} {NOT_UNDERSTOOD}: {error}") from None
    return state, metadata


def _unpickled(path: Path, file: BinaryIO, zipped: bool) -> Any:
    try:
        file.seek(0)
        check_pickles(file, zipped)
        file.seek(0)
        # A handle, not a path: torch.load decides by the suffix of a path what the file is.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except TooCostly as error:
        raise ModelError(
            f"{path} would take far more time or memory than it is large: {error}; it was not loaded; save its "
            "state_dict alone, or as safetensors"
        ) from None
    except pickle.UnpicklingError as error:
        if _CODE.search(str(error)):
            match = re.search(r"GLOBAL (\S+)", str(error))
            named = f" ({some_names([match[1][:200]])})" if match else ""
            raise ModelError(
                f"{path} holds more than tensors{named}, so that loading it could run "
                "code, and it was not loaded; save its state_dict alone, or as safetensors"
            ) from None
        raise ModelError(f"{path} is damaged or no checkpoint; get it again") from error
    except RuntimeError as error:
        if "TorchScript" in str(error):
            raise ModelError(f"{path} is a TorchScript program; save its state_dict() instead") from None
        raise ModelError(f"{path} is damaged or no checkpoint ({_first_line(error)}); get it again") from error
    except Exception as error:  # a damaged pickle may raise anything: EOFError, KeyError, UnicodeDecodeError, ...
        raise ModelError(f"{path} is damaged or no checkpoint ({_first_line(error)}); get it again") from error


def _check_expansion(path: Path, state: Mapping[str, Tensor], size: int) -> None:
    """Refuse tensors that stand for far more numbers than the file has, as views that repeat one row do."""
    taken = {
        name: max(
            tensor.numel() * tensor.element_size(), sum(part.numel() * part.element_size() for part in _parts(tensor))
        )
        for name, tensor in state.items()
        if not tensor.is_meta
    }
    if sum(taken.values()) > most_bytes(size):
        name = max(taken, key=lambda name: taken[name])
        raise ModelError(
            f"{path} has {size:,} bytes, and its tensors would take {sum(taken.values()):,}, most of them "
            f"{some_names([name])} ({_shape(state[name])}); it was not loaded"
        )


def _parts(tensor: Tensor) -> list[Tensor]:
    """The indices and values of a sparse tensor, which may be views that repeat one number; of another one, nothing."""
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return []


def _check_indices(path: Path, state: Mapping[str, Tensor]) -> None:
    """Refuse sparse tensors whose indices lie outside: they would be read outside of their memory.

    Torch looks at indices only when asked to, and takes a second for a hundred million of them, so that they are
    counted before.
    """
    for tensor in state.values():
        parts = _parts(tensor)
        try:
            if tensor.layout is torch.sparse_coo:
                torch.sparse_coo_tensor(parts[0], parts[1], tensor.shape, check_invariants=True)
            elif parts:
                torch.sparse_compressed_tensor(
                    parts[0], parts[1], parts[2], list(tensor.shape), layout=tensor.layout, check_invariants=True
                )
        except RuntimeError as error:
            raise ModelError(f"{path} is damaged or no checkpoint ({_first_line(error)}); get it again") from error


def load_into(net: nn.Module, state: Mapping[str, Tensor], origin: str, name: str) -> list[str]:
    """Load `state` into `net`, and return what a user should know about it; nothing is loaded unless all of it fits.

    `origin` and `name` are what the user calls the file and the network. Batch counters may be missing, and auxiliary
    classifiers that `net` does not have are left out. Raises ModelError with the names that do not match, that hold
    whole numbers in place of weights, or NaN or infinite values.
    """
    expected = {key: value for key, value in net.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    state = fit_names(state, expected)
    notes = []
    auxiliary = [key for key in state if key not in expected and key.startswith(_AUXILIARY)]
    if auxiliary:
        notes.append(f"the auxiliary classifiers in {origin} ({len(auxiliary)} tensors) were left out")
    state = {key: tensor for key, tensor in state.items() if key not in auxiliary}
    missing = [key for key in expected if key not in state and not key.endswith(_COUNTER)]
    unexpected = [key for key in state if key not in expected and not key.endswith(_COUNTER)]
    reshaped = [
        f"{key} {_shape(state[key])} instead of {_shape(expected[key])}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape and not key.endswith(_COUNTER)
    ]
    if missing or unexpected or reshaped:
        parts = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        listed = "; ".join(f"{len(names)} {what}: {some_names(names)}" for what, names in parts if names)
        raise ModelError(f"the weights in {origin} are not those of {name}; {listed}. Name the network they are from")
    used = {key: state[key] for key in expected if key in state}
    _check_values(used, expected, origin)
    try:
        with torch.no_grad():
            for key, tensor in used.items():  # names and shapes are the network's own: nothing is left to convert
                expected[key].copy_(tensor.reshape(expected[key].shape))
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ModelError(f"the weights in {origin} cannot be put into {name}: {_first_line(error)}") from error
    return notes


def _check_values(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], origin: str) -> None:
    """Raise ModelError where weights are no real numbers, or not all finite."""
    wanted = {key: tensor for key, tensor in state.items() if expected[key].is_floating_point()}
    for key, tensor in wanted.items():
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ModelError(
                f"{key} in {origin} holds {kind} where floating-point weights are needed; save the "
                "network as it was before it was quantized"
            )
    # The sum of finite numbers is finite, unless it overflows: then each is looked at.
    sums = [(tensor if tensor.element_size() > 1 else tensor.float()).sum() for tensor in wanted.values()]
    if len({total.dtype for total in sums}) == 1 and torch.stack(sums).isfinite().all():
        return
    for key, tensor in wanted.items():
        wide = tensor if tensor.element_size() > 1 else tensor.float()
        if bad := int((~wide.isfinite()).sum()):
            raise ModelError(
                f"{key} in {origin} has {bad:,} values of {tensor.numel():,} that are NaN or infinite, as "
                "training that diverged leaves them; take an earlier checkpoint"
            )


def save_checkpoint(
    path: str | Path, net: nn.Module, architecture: Mapping[str, Any], extra: Mapping[str, Any] | None = None
) -> None:
    """Write the weights of `net` and all that `load_network` needs to rebuild it as one safetensors file, atomically.

    `architecture` is what `build` takes; `extra` is JSON, of which `classes`, `synsets`, `transform` (a description),
    `weights` (a label) and `notes` are read back into a `Model`. Raises ModelError if the name does not end in
    .safetensors or the file cannot be written. Of a caller's own module, which nothing here can build again, only the
    plain tensors are written; any other network must have no others.

    >>> from weanalysis.models.model import load_network
    >>> model = load_network("resnet20", weights="none", num_classes=2)
    >>> save_checkpoint("mine.safetensors", model.net, model.architecture, {"classes": ["cat", "dog"]})
    >>> again = load_network("mine.safetensors")
    >>> again.classes, again.weights_hash == model.weights_hash
    (('cat', 'dog'), True)
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ModelError(f"a checkpoint is written as safetensors: name it {path.stem}.safetensors, not {path.name}")
    values = net.state_dict()
    others = [name for name, value in values.items() if not is_plain(value)]
    if others and _can_be_built(architecture):
        raise ModelError(f"{path.name} cannot hold {some_names(others)}, which is no plain tensor; nothing was written")
    # Copies, since safetensors refuses tensors that share memory, as tied weights do.
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in values.items()
        if name not in others
    }
    metadata = {"format": "pt", METADATA_KEY: json.dumps({**(extra or {}), "architecture": dict(architecture)})}
    try:
        write_atomically(path, safetensors.torch.save(state, metadata=metadata))
    except OSError as error:
        raise ModelError(f"the checkpoint {path} cannot be written: {error.strerror or error}") from error


def is_plain(value: Any) -> bool:
    """Say whether an entry of a state dict is a tensor that is neither sparse nor quantized."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized


def _can_be_built(architecture: Mapping[str, Any]) -> bool:
    try:
        schema.check(schema.ARCHITECTURE, architecture)
    except schema.Misfit:
        return False
    return True


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return some_names([lines[0][:160]]) if lines and lines[0] else type(error).__name__
