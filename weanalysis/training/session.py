"""One process's work on one run: the training loop itself."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader

from weanalysis.cache import storable, write_atomically
from weanalysis.data import ImageData
from weanalysis.errors import TrainingError
from weanalysis.excitation import ExcitedOptimizer, can_be_beside, doubts_of
from weanalysis.models import save_checkpoint
from weanalysis.training.images import (
    Batches,
    default_num_workers,
    derived_seed,
    training_images,
    training_loader,
    validation_loader,
)
from weanalysis.training.interruption import Interruption
from weanalysis.training.optimization import OPTIMIZERS, learning_rate
from weanalysis.training.progress import ProgressCallback, TrainingProgress, silent
from weanalysis.training.recipe import Recipe
from weanalysis.training.runs import METRICS, Run
from weanalysis.training.scores import score_for
from weanalysis.training.state import TrainingState, load_state, save_state

_VALIDATION_BATCH_SIZE = 100
# A GPU runs ahead of Python; asking it for the loss makes both wait.
_STEPS_PER_SYNC_ON_GPU = 10
_DROPOUT = 1


class Session:
    """One process's work on one run, from the state it finds to the end."""

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        accelerator: Accelerator,
        net: nn.Module,
        architecture: dict[str, Any],
        train_data: ImageData,
        val_data: ImageData,
        progress: ProgressCallback,
    ) -> None:
        self.run, self.recipe, self.accelerator, self.architecture = run, recipe, accelerator, architecture
        self.train_data, self.val_data = train_data, val_data
        self.score = score_for(train_data.task, len(train_data.classes))
        self.progress = progress if accelerator.is_main_process else silent
        self.steps_per_epoch = len(train_data) // recipe.batch_size
        self.num_steps = max(1, round(recipe.epochs * self.steps_per_epoch))
        # torch has this format for pictures, and a network of other convolutions cannot be brought into it.
        self.channels_last = recipe.channels_last and all(parameter.dim() != 5 for parameter in net.parameters())
        if self.channels_last:
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        # Moved before the optimizer is made: excitation beside it follows from weights where they are.
        net = net.to(accelerator.device)
        self.raw_optimizer = OPTIMIZERS[recipe.optimizer](net.parameters(), recipe)
        if can_be_beside(net):
            self.raw_optimizer = ExcitedOptimizer(self.raw_optimizer, net)
        self.trained_net, self.optimizer = accelerator.prepare(net, self.raw_optimizer)
        # The same network without the wrapper that averages gradients over processes.
        self.net = accelerator.unwrap_model(self.trained_net)
        self.state = TrainingState(sums=[0.0] * self.score.num_sums)
        resumes = run.state_file.is_file()
        if resumes:
            with self._as_described():
                self.state = load_state(run.state_file, self.net, self.raw_optimizer)
            if accelerator.scaler is not None and self.state.scaler:
                accelerator.scaler.load_state_dict(self.state.scaler)
        self.first_step, self.seconds_before = self.state.step, self.state.seconds
        self.started = time.perf_counter()
        self.stop = Interruption()
        self._tell_start(resumes)

    def train(self, num_workers: int | None, save_every_s: float) -> None:
        """Train from the state to the recipe's last step, and finish the run."""
        accelerator, state = self.accelerator, self.state
        if state.rows and state.rows[-1]["step"] == state.step and accelerator.is_main_process:
            # Killed between the state and what follows from it, perhaps.
            self._publish()
        batches, val_batches = self._loaders(num_workers)
        steps_per_sync = 1 if accelerator.device.type == "cpu" else _STEPS_PER_SYNC_ON_GPU
        saved = time.perf_counter()
        sums = self._no_sums()
        with self.stop.listening():
            for step in range(state.step, self.num_steps):
                sums += self._step(step, batches)
                state.advance()
                epoch_ends = state.step % self.steps_per_epoch == 0 or state.step == self.num_steps
                if not epoch_ends and state.step % steps_per_sync:
                    continue
                save_due = time.perf_counter() - saved >= save_every_s
                stop, save_due = self._synchronize(sums, save_due)
                sums.zero_()
                if epoch_ends:
                    self._end_epoch(val_batches)
                elif stop or save_due:
                    self._save()
                if epoch_ends or save_due:
                    saved = time.perf_counter()
                if stop and state.step < self.num_steps:
                    self._interrupt()
        if accelerator.is_main_process:
            self._finish()
        accelerator.wait_for_everyone()
        if self.stop.asked:
            raise KeyboardInterrupt(f"the run {self.run.name} had just finished")

    def _tell_start(self, resumes: bool) -> None:
        if resumes:
            self._note(f"continues the run {self.run.name} after step {self.first_step} of {self.num_steps}")
        else:
            self._note(
                f"trains {self.recipe.model} on {self.recipe.data}: {len(self.train_data):,} images, "
                f"{self.num_steps} steps, in {self.run.folder}"
            )
        doubts = doubts_of(self.net, self.recipe.excitation)
        for line in dict.fromkeys([*doubts, *self.train_data.notes, *self.val_data.notes]):
            self._note(line)

    def _loaders(self, num_workers: int | None) -> tuple[Iterator[list[Tensor]], DataLoader]:
        """Serve this process's shares: all batches that are left to train on, and those of a validation."""
        on_gpu = self.accelerator.device.type == "cuda"
        process, num_processes = self.accelerator.process_index, self.accelerator.num_processes
        if num_workers is None:
            num_workers = default_num_workers(num_processes)
        images = training_images(self.train_data, self.recipe.augmentation)
        drawn = Batches(
            len(images),
            self.recipe.batch_size,
            self.recipe.seed,
            range(self.state.step, self.num_steps),
            self.recipe.accumulation_steps,
            process,
            num_processes,
        )
        # Where the network itself needs the cores, augmenting what is in memory ahead of time gains nothing.
        busy = images.pixels is not None and not on_gpu
        batches = training_loader(images, drawn, 0 if busy else num_workers, on_gpu)
        val_batches = validation_loader(
            self.val_data, _VALIDATION_BATCH_SIZE, num_workers, on_gpu, process, num_processes
        )
        return iter(batches), val_batches

    def _step(self, step: int, batches: Iterator[list[Tensor]]) -> Tensor:
        """Do one optimizer step; return what the score adds up."""
        self.trained_net.train()
        rate = learning_rate(self.recipe, step, self.steps_per_epoch, self.num_steps)
        for group in self.raw_optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(derived_seed(self.recipe.seed, _DROPOUT, step, self.accelerator.process_index))
        sums = self._no_sums()
        for _ in range(self.recipe.accumulation_steps):
            pixels, targets = (part.to(self.accelerator.device, non_blocking=True) for part in next(batches))
            images = self._arranged(self.train_data.transform.normalize(pixels))
            with self.accelerator.accumulate(self.trained_net):
                logits, auxiliary = _logits(self.trained_net(images))
                loss = self.score.loss(logits, targets, self.recipe.label_smoothing)
                total = loss + sum(self.score.auxiliary * self.score.loss(aux, targets) for aux in auxiliary)
                self.accelerator.backward(total)
                self.optimizer.step()
                self.optimizer.zero_grad()
            sums += self.score.sums(loss.detach() * len(targets), logits.detach(), targets)
        return sums

    def _synchronize(self, sums: Tensor, save_due: bool) -> tuple[bool, bool]:
        """Add up all processes' sums in the state, check and tell them; return whether to stop and whether to save."""
        flags = torch.tensor([self.stop.asked, save_due], dtype=sums.dtype, device=sums.device)
        *sums_now, stop, save = self.accelerator.reduce(torch.cat([sums, flags]), "sum").tolist()
        state = self.state
        state.count(sums_now, self._seconds())
        if not math.isfinite(state.sums[0]):
            raise self._diverged()
        self._report()
        return stop > 0, save > 0

    def _seconds(self) -> float:
        """How long the run has taken by now."""
        return self.seconds_before + time.perf_counter() - self.started

    def _end_epoch(self, val_batches: DataLoader) -> None:
        """Validate, record, and keep the state, then what follows from it."""
        state = self.state
        val = self.score.means(self._validate(val_batches))
        if not math.isfinite(val["loss"]):
            # The step after the last loss spoiled the weights; what is kept must not be overwritten with them.
            raise self._diverged()
        train, epoch = self.score.means(state.sums), len(state.rows) + 1
        values = {
            "epoch": epoch,
            "step": state.step,
            "seconds": self._seconds(),
            "learning_rate": self.raw_optimizer.param_groups[0]["lr"],
            **{f"train_{name}": value for name, value in train.items()},
            **{f"val_{name}": value for name, value in val.items()},
            "peak_memory_gib": _peak_memory_gib(self.accelerator.device),
        }
        name, label = self.score.name, self.score.label
        state.end_epoch({column: values.get(column, math.nan) for column in METRICS}, val[name], self.score.num_sums)
        self._save()
        if self.accelerator.is_main_process:
            self._publish()
            self._log(
                f"epoch {epoch} of {self.recipe.epochs:g}: train loss {train['loss']:.4f}, {label} {train[name]:.2f} %;"
                f" validation loss {val['loss']:.4f}, {label} {val[name]:.2f} %; {state.seconds:.0f} s"
            )
        self._report()

    def _validate(self, val_batches: DataLoader) -> list[float]:
        net, device = self.net, self.accelerator.device
        if self.accelerator.num_processes > 1:
            for buffer in net.buffers():
                torch.distributed.broadcast(buffer, 0)
        net.eval()
        sums = self._no_sums()
        # Within `cached`, an excited weight is computed once, not once a batch.
        with torch.inference_mode(), parametrize.cached():
            for images, targets in val_batches:
                images, targets = self._arranged(images.to(device)), targets.to(device)
                logits, _ = _logits(net(images))
                sums += self.score.sums(self.score.total_loss(logits, targets), logits, targets)
        return self.accelerator.reduce(sums, "sum").tolist()

    def _no_sums(self) -> Tensor:
        return torch.zeros(self.score.num_sums, dtype=self.score.dtype, device=self.accelerator.device)

    def _arranged(self, images: Tensor) -> Tensor:
        with_format = self.channels_last and images.dim() == 4
        return images.contiguous(memory_format=torch.channels_last) if with_format else images

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = self.state if scaler is None else replace(self.state, scaler=scaler.state_dict())
            with self._as_described():
                save_state(self.run.state_file, state, self.net, self.raw_optimizer)

    def _publish(self) -> None:
        """Write what follows from a state at an epoch's end: metrics, and the last and perhaps best checkpoint."""
        last = self.state.rows[-1]
        columns = METRICS if self.score.name == "miou" else METRICS[: METRICS.index("train_miou")]
        lines = [",".join(columns), *(",".join(_cell(row[name]) for name in columns) for row in self.state.rows)]
        write_atomically(self.run.metrics_file, ("\n".join(lines) + "\n").encode())
        extra = {
            "classes": list(self.train_data.classes),
            "transform": self.val_data.transform.describe(),
            "data": self.recipe.data,
            "recipe": self.recipe.to_json(),
            "run": self.run.name,
            "epoch": last["epoch"],
            self.score.name: last[f"val_{self.score.name}"],
        }
        with self._as_described():
            save_checkpoint(self.run.checkpoint, self.net, self.architecture, extra)
            if self.state.best_epoch == last["epoch"]:
                save_checkpoint(self.run.best_checkpoint, self.net, self.architecture, extra)

    def _as_described(self) -> contextlib.AbstractContextManager[None]:
        """Within, the network has the parametrizations that its architecture says: raw weights and excitation."""
        if isinstance(self.raw_optimizer, ExcitedOptimizer):
            return self.raw_optimizer.parametrized()
        return contextlib.nullcontext()

    def _finish(self) -> None:
        state = self.state
        last, name = state.rows[-1], self.score.name
        top5 = None if math.isnan(last["val_top5"]) else last["val_top5"]
        result = {
            "top1": last["val_top1"],
            "top5": top5,
            "best_top1": math.nan,
            **({} if name == "top1" else {name: last[f"val_{name}"]}),
            f"best_{name}": state.best_top1,
            "best_epoch": state.best_epoch,
            "epochs": self.recipe.epochs,
            "seconds": state.seconds,
            "num_images": len(self.val_data),
            "num_classes": len(self.train_data.classes),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_atomically(self.run.result_file, json.dumps(result, indent=1).encode())
        self.run.state_file.unlink(missing_ok=True)
        self._note(f"finished the run {self.run.name}: {self.score.label} {last[f'val_{name}']:.2f} %")

    def _interrupt(self) -> None:
        line = (
            f"stopped the run {self.run.name} after step {self.state.step} of {self.num_steps}; "
            "the same command continues it, nothing is lost"
        )
        self._log(line)
        raise KeyboardInterrupt(line)

    def _diverged(self) -> TrainingError:
        rate = self.raw_optimizer.param_groups[0]["lr"]
        rows = self.state.rows
        kept = f"epoch {rows[-1]['epoch']} is kept in {self.run.checkpoint}" if rows else "no epoch was finished"
        line = (
            f"the run {self.run.name} diverged: the loss is no finite number at step {self.state.step} of "
            f"{self.num_steps} (learning rate {rate:.3g}); {kept}; train with a lower learning rate"
        )
        self._log(line)
        return TrainingError(line)

    def _report(self, note: str = "") -> None:
        state = self.state
        means = self.score.means(state.sums) if state.sums[3] else {}
        done, left = state.step - self.first_step, self.num_steps - state.step
        eta = (state.seconds - self.seconds_before) / done * left if done else math.nan
        self.progress(
            TrainingProgress(
                run=self.run.name,
                epoch=min(state.step, self.num_steps - 1) // self.steps_per_epoch + 1,
                num_epochs=self.recipe.epochs,
                step=state.step,
                num_steps=self.num_steps,
                seconds=state.seconds,
                eta_seconds=eta,
                loss=means.get("loss", math.nan),
                top1=means.get("top1", math.nan),
                val_top1=state.rows[-1]["val_top1"] if state.rows else math.nan,
                miou=means.get("miou", math.nan),
                val_miou=state.rows[-1]["val_miou"] if state.rows else math.nan,
                note=note,
            )
        )

    def _note(self, line: str) -> None:
        self._log(line)
        self._report(line)

    def _log(self, line: str) -> None:
        if self.accelerator.is_main_process:
            with open(self.run.log_file, "a", encoding="utf-8") as file:
                file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {storable(line)}\n")


def _logits(output: Any) -> tuple[Tensor, list[Tensor]]:
    """Split what a network returns into its logits and, in training, those of its auxiliary classifiers."""
    if isinstance(output, Tensor):
        return output, []
    logits, *auxiliary = output.values() if isinstance(output, dict) else output
    return logits, [aux for aux in auxiliary if aux is not None]


def _cell(value: float) -> str:
    return "" if isinstance(value, float) and math.isnan(value) else repr(value)


def _peak_memory_gib(device: torch.device) -> float:
    """The most memory in use so far: of the GPU by torch, else of this process since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows.
        import psutil

        memory: Any = psutil.Process().memory_info()
        return memory.peak_wset / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
