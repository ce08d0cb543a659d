"""Files of weights: reading those of any origin without running their code, fitting their names, writing our own."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from weanalysis.cache import write_atomically
from weanalysis.errors import ModelError

SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin", ".ckpt", ".tar")
METADATA_KEY = "weanalysis"

# Where training scripts put the state dict in what they save, in the order of preference.
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "state_dict_ema",
    "model_ema",
    "ema",
    "params",
)
# What DataParallel, torch.compile and common wrapper classes put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
# Other people's names for the same modules: the classifier and the projections of CIFAR ResNets, the dots within
# DenseNet's layers before torch 0.4.
_ALIASES = (
    (re.compile(r"^linear\."), "fc."),
    (re.compile(r"\.shortcut\."), ".downsample."),
    (re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\."), r"\1\2."),
)
# Classifiers that help to train GoogLeNet and Inception and are no part of the network afterwards.
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
_COUNTER = "num_batches_tracked"
_CODE = re.compile(r"GLOBAL|whose module|Can only (?:create|build|append|extend|set)|Trying to")
_MOST_NAMES = 6


def read_state_dict(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors of a checkpoint by name, on the CPU, and what this program wrote about them ({} if it did not).

    Reads safetensors and what torch.save wrote (a state dict, or a dict that holds one), told apart by content; the
    prefixes that DataParallel and torch.compile add to every name are taken off. Never runs code from the file.
    Raises ModelError for a file that is missing, damaged, no checkpoint, or that would run code.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise ModelError(f"the checkpoint {path} cannot be read: {error.strerror or error}") from error
    # safetensors: eight bytes with the length of a JSON header, then the header.
    state, metadata = _read_safetensors(path) if head[8:] == b"{" else (_read_pickle(path), {})
    for prefix in ("module.", "_orig_mod.", "module."):
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state, metadata


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file is no dict)
            text = (file.metadata() or {}).get(METADATA_KEY, "{}")
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(f"{path} is no complete safetensors file ({_first_line(error)}); get it again") from error
    try:
        metadata = json.loads(text)
    except json.JSONDecodeError:
        metadata = None
    if not isinstance(metadata, dict):
        raise ModelError(f"{path} has damaged metadata; get it again")
    return state, metadata


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        # A handle, not a path: torch.load decides by the suffix of a path what the file is.
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _CODE.search(str(error)):
            found = re.search(r"GLOBAL (\S+)", str(error))
            raise ModelError(
                f"{path} holds more than tensors{f' ({found[1]})' if found else ''}, so that loading it could run "
                "code, and it was not loaded; save its state_dict alone, or as safetensors"
            ) from None
        raise ModelError(f"{path} is damaged or no checkpoint; get it again") from error
    except RuntimeError as error:
        if "TorchScript" in str(error):
            raise ModelError(f"{path} is a TorchScript program; save its state_dict() instead") from None
        raise ModelError(f"{path} is damaged or no checkpoint ({_first_line(error)}); get it again") from error
    except Exception as error:  # a damaged pickle may raise anything: EOFError, KeyError, UnicodeDecodeError, ...
        raise ModelError(f"{path} is damaged or no checkpoint ({_first_line(error)}); get it again") from error
    state = _find_state(content)
    if state is None:
        raise ModelError(f"{path} holds no state dict; one is looked for at its top and under {', '.join(_WRAPPERS)}")
    return state


def _find_state(content: Any) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping):
        return None
    for wrapper in _WRAPPERS:
        if (inner := _find_state(content.get(wrapper))) is not None:
            return inner
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    return tensors if len(tensors) > len(content) / 2 else None


def fit_names(state: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """Return `state` under the names that a network `expected`, as far as prefixes and other people's names explain."""
    candidates = [_without_aliases(plain, expected) for plain in _without_prefixes(state)]
    return max(candidates, key=lambda candidate: sum(name in expected for name in candidate))


def _without_prefixes(state: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    while True:
        yield state
        counts = {prefix: sum(name.startswith(prefix) for name in state) for prefix in _PREFIXES}
        commonest = max(counts, key=lambda prefix: counts[prefix])
        if 2 * counts[commonest] <= len(state):
            return
        state = {name.removeprefix(commonest): tensor for name, tensor in state.items()}


def _without_aliases(state: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        known_as = name
        if name not in expected:
            others = (pattern.sub(replacement, name) for pattern, replacement in _ALIASES)
            known_as = next((other for other in others if other in expected and other not in state), name)
        renamed[known_as] = tensor
    return renamed


def load_into(net: nn.Module, state: Mapping[str, Tensor], origin: str, name: str) -> list[str]:
    """Load `state` into `net`, and return what a user should know about it; nothing is loaded unless all of it fits.

    `origin` and `name` are what the user calls the file and the network. Batch counters may be missing, and auxiliary
    classifiers that `net` does not have are left out. Raises ModelError with the names that do not match.
    """
    expected = net.state_dict()
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
        listed = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in parts if names)
        raise ModelError(f"the weights in {origin} are not those of {name}; {listed}. Name the network they are from")
    net.load_state_dict(
        {key: state[key].reshape(expected[key].shape) for key in expected if key in state}, strict=False
    )
    return notes


def save_checkpoint(
    path: str | Path, net: nn.Module, architecture: Mapping[str, Any], extra: Mapping[str, Any] | None = None
) -> None:
    """Write the weights of `net` and all that `load_network` needs to rebuild it as one safetensors file, atomically.

    `architecture` is what `build` takes; `extra` is JSON, of which `classes`, `synsets`, `transform` (a description),
    `weights` (a label) and `notes` are read back into a `Model`. Raises ModelError if the name does not end in
    .safetensors or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ModelError(f"a checkpoint is written as safetensors: name it {path.stem}.safetensors, not {path.name}")
    # Copies, since safetensors refuses tensors that share memory, as tied weights do.
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in net.state_dict().items()
    }
    metadata = {"format": "pt", METADATA_KEY: json.dumps({**(extra or {}), "architecture": dict(architecture)})}
    try:
        write_atomically(path, safetensors.torch.save(state, metadata=metadata))
    except OSError as error:
        raise ModelError(f"the checkpoint {path} cannot be written: {error.strerror or error}") from error


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES])
    return shown if len(names) <= _MOST_NAMES else f"{shown}, ..."


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:160] if lines else type(error).__name__
