"""The state of a run between two optimizer steps: one file, written whole or not at all, without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from weanalysis.cache import write_atomically
from weanalysis.errors import TrainingError

_KEY = "weanalysis_state"


@dataclass
class TrainingState:
    """Where a run stands: all but the tensors. The rest (data order, augmentation, dropout) follows from `step`."""

    step: int = 0
    seconds: float = 0.0
    # Sums over the running epoch's images; see `scores`. The best score is top-1, or the mean IoU.
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)
    rows: list[dict[str, float]] = field(default_factory=list)
    best_top1: float = -1.0
    best_epoch: int = 0
    scaler: dict[str, Any] = field(default_factory=dict)

    def count(self, sums: Sequence[float], seconds: float) -> None:
        """Add sums over images of the running epoch; the run has taken so many `seconds` by now."""
        self.sums = [total + now for total, now in zip(self.sums, sums, strict=True)]
        self.seconds = seconds

    def advance(self) -> None:
        """One more optimizer step is done."""
        self.step += 1

    def end_epoch(self, row: Mapping[str, float], score: float, num_sums: int) -> None:
        """Keep what an epoch came to (`runs.METRICS`), its score among it, and begin the next one."""
        self.rows.append(dict(row))
        self.sums, self.seconds = [0.0] * num_sums, row["seconds"]
        if score > self.best_top1:
            self.best_top1, self.best_epoch = score, len(self.rows)


def save_state(path: Path, state: TrainingState, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write state, network and optimizer in one file, atomically; raise OSError where it cannot be written."""
    tensors = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items() if value is not None}
    # Cloned, since safetensors takes neither shared nor strided memory.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(path, safetensors.torch.save(plain, {_KEY: json.dumps(asdict(state))}))


def load_state(path: Path, net: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Read what `save_state` wrote into `net` and `optimizer`; raise TrainingError where it does not fit."""
    try:
        with safe_open(path, "pt") as file:
            state = TrainingState(**json.loads(file.metadata()[_KEY]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not iterable itself)
        net.load_state_dict({name[4:]: tensor for name, tensor in tensors.items() if name.startswith("net.")})
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise TrainingError(
            f"{path} cannot be continued from ({' '.join(str(error).split())}); remove it to begin this run anew"
        ) from error
    optimizer.load_state_dict({**optimizer.state_dict(), "state": _optimizer_state(tensors, optimizer)})
    return state


def _optimizer_state(tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if not name.startswith("optimizer."):
            continue
        _, index, key = name.split(".", 2)
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            # In the memory format of the parameter, as the optimizer itself had made it.
            tensor = torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
        state.setdefault(int(index), {})[key] = tensor
    return state
