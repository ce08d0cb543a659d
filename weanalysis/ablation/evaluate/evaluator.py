"""From a batch of images and a list of ablations to the images whose prediction changed.

Two ways that agree image by image: `naive` zeroes the weights and runs the whole network; `exact` runs it once
and then recomputes, for each ablation, only what lies downstream of the zeroed weights. A third, `screened`, does
this for those images alone that could change.

The fast ways are not believed but held to the naive one: in every process before a layer is measured (`vetting`), and
while it is, on answers drawn by lot. A layer on which they disagree is measured the naive way, from its first image on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from weanalysis.ablation.behaviour import Conduct, State, drawn_from
from weanalysis.ablation.copies import copied, first_line, number_types
from weanalysis.ablation.evaluate.decisions import Batch, Decisions, Measured, merge_ablations, merge_batches
from weanalysis.ablation.evaluate.outputs import logits_of
from weanalysis.ablation.evaluate.pairs import Look, Pairs
from weanalysis.ablation.evaluate.risk import ScreenSettings
from weanalysis.ablation.evaluate.shard import Shard
from weanalysis.ablation.evaluate.twin import Kept, Twin
from weanalysis.ablation.evaluate.vetting import NUM_VETTED, check_zeroing, strongest_ablations
from weanalysis.ablation.graph import Untraceable, num_bytes, versions
from weanalysis.ablation.studies import Ablation
from weanalysis.ablation.weights import Weights
from weanalysis.devices import precision
from weanalysis.errors import DeviceError, StudyError, WeanalysisError
from weanalysis.tasks.classification import Classification
from weanalysis.tasks.numbers import Numbers

Mode = Literal["exact", "screened", "naive"]

OutputTask = Classification | Numbers

# Of each shard, so many images' intact logits are computed both ways.
_NUM_COMPARED = 8

# An image whose decision hangs on less than this many times the largest difference seen between the two ways
# is decided by the naive way. What is seen later may be larger by the second number: the first leaves room for that.
TIE_FACTOR, _ROOM = 100.0, 10.0

# Logits that differ by more than this many roundings, or by this share of the largest one, differ by a fault.
_MOST_ROUNDINGS, _MOST_SHARE = 2.0**14, 0.1

# Activations that a process keeps of a batch of images, in bytes; and of a shard whose pairs are computed.
KEPT_BYTES = 512 * 2**20
_KEPT_OF_SHARD = 2 * KEPT_BYTES


class _Unsure(Exception):
    """Answers of the fast way in the task in hand may be wrong: it must be measured again.

    `layers` are those that are measured the naive way from now on; none where a wider tolerance is enough.
    """

    def __init__(self, layers: tuple[str, ...], reason: str):
        super().__init__(reason)
        self.layers, self.reason = layers, reason


@dataclass
class _Checks:
    """What the answers of a task that were computed both ways said: how many they were, and how many differed."""

    num_checked: int = 0
    num_differed: int = 0
    largest_difference: float = 0.0


class Evaluator:
    """Measures ablations of one network; works on a copy of its own, so the caller's weights are never touched.

    `mode` "exact" falls back to whole forward passes where the network cannot be traced; `note` then says so, and
    `distrusted` says of which layers, and why, the fast way is not believed. "screened" falls back to exact for
    ablations whose effect cannot be predicted: of several layers at once, or of one whole. `conduct` says how the
    network must be run, `probes` are images (N, 3, H, W) on which the fast way is vetted (None: the first ones that
    are measured). Memory: the network twice, one batch's kept activations (of pairs, up to 1 GiB of a shard's), and one
    batch of images; independent of the number of images and ablations. On a GPU that runs out of memory the batch is
    halved. Raises StudyError for outputs that are no logits or hold NaN, for a layer that does not compute with the
    weight that is zeroed, and for whatever the network raises; DeviceError where one image is too large.
    """

    def __init__(
        self,
        net: nn.Module,
        mode: Mode = "exact",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 50,
        screen: ScreenSettings | None = None,
        tf32: bool = False,
        conduct: Conduct | None = None,
        probes: Tensor | None = None,
        task: OutputTask | None = None,
    ):
        self.mode, self.device, self.dtype, self.batch_size = mode, torch.device(device), dtype, batch_size
        self.screen, self.kept_limit, self.tf32 = screen or ScreenSettings(), _KEPT_OF_SHARD, tf32
        self.conduct, self._probes = conduct or Conduct(), probes
        self.task = task or Classification(self.conduct.probabilities)
        # A GPU is busy only with many images at once: there, exact evaluation too takes pairs of all layers together.
        # A pair is told by its margin to other classes.
        self.pooled = self.device.type != "cpu" and self.task.has_classes
        self._net = _moved(copied(net), self.device, dtype)
        self._state = State(self._net) if self.conduct.put_back else None
        self.note = ""
        self.distrusted: dict[str, str] = {}
        self._vetted: set[str] = set()
        self._at: Ablation | None = None
        # Of the task in hand: what was checked, and by how much a decision must be clear.
        self._checks, self.tolerance, self._num_differed = _Checks(), 0.0, 0
        # What vetting showed of rounding, from which every task begins.
        self._least_tolerance = self._least_difference = 0.0
        self._twin: Twin | None = None
        if mode != "naive" and not self.conduct.whole_passes:
            try:
                # Merging a batch norm rounds the weights: harmless in float32, not in 16 bits.
                self._twin = Twin(self._net, dtype == torch.float32, self.conduct.output)
                self.distrusted = {
                    layer: f"its weight is read by {reader} too" for layer, reader in self._twin.graph.elsewhere.items()
                }
            except Untraceable as reason:
                self._give_up_tracing(str(reason))
        self._use_twin(self._twin)

    def _use_twin(self, twin: Twin | None) -> None:
        self._twin = twin
        self.weights = Weights(self._net, None if twin is None else twin.net)
        self._pairs = None if twin is None else Pairs(twin.graph, self.weights, self.conduct.output)

    def _give_up_tracing(self, reason: str) -> None:
        self._use_twin(None)
        self.note = f"the network cannot be traced ({reason}): every ablation runs the whole network"

    # What is known beforehand ----------------------------------------------------------------------------------------

    def cost(self, ablation: Ablation) -> float:
        """The part of a forward pass that an ablation repeats, in steps of the traced network (0 to 1).

        Of a screened one, for a guess: on one image in thirty.
        """
        if not self._is_fast(ablation.layers):
            return 1.0
        assert self._twin is not None
        share = len(self._twin.plan(ablation.layers).steps) / len(self._twin.graph.steps)
        return share / 30 if self.can_screen(ablation) else share

    @torch.no_grad()
    def kept_bytes(self, image: Tensor, ablations: Sequence[Ablation]) -> int:
        """Bytes of activations that measuring these ablations keeps for one image (1, 3, H, W)."""
        groups = {ablation.layers for ablation in ablations if self._is_fast(ablation.layers)}
        if self._twin is None or not groups:
            return 0
        frontier = frozenset().union(*(self._twin.plan(layers).frontier for layers in groups))
        if self._pairs is not None and (self.mode == "screened" or self.pooled):
            single = {ablation.layers[0] for ablation in ablations if self._is_single(ablation)}
            frontier |= self._pairs.read(sorted(single))
        # A screened batch is kept as activations, as gradients, and channel by channel.
        kept = self._twin.values(image.to(self.device, self.dtype), frontier)
        return num_bytes(kept) * (3 if self.mode == "screened" else 1)

    def fit_batch(self, images: Tensor, ablations: Sequence[Ablation]) -> None:
        """Take the largest batch, up to 50 images on a CPU and 250 on a GPU, whose activations stay within bounds."""
        most = 50 if self.device.type == "cpu" else 250
        kept = self.kept_bytes(images[:1], ablations)
        self.batch_size = most if kept == 0 else int(np.clip(KEPT_BYTES // kept, 1, most))

    def can_screen(self, ablation: Ablation) -> bool:
        """Whether an ablation's effect can be predicted, so that not all images need be computed."""
        return self.mode == "screened" and self._is_single(ablation)

    def _is_fast(self, layers: Sequence[str]) -> bool:
        """Whether ablations of these layers are measured the fast way."""
        return self._twin is not None and self.distrusted.keys().isdisjoint(layers)

    def _is_single(self, ablation: Ablation) -> bool:
        """Whether it zeroes a part of one layer that is called once, so that it can be computed along with others."""
        return self._pairs is not None and self._is_fast(ablation.layers) and self._pairs.can(ablation)

    # Measuring --------------------------------------------------------------------------------------------------------

    def vet(self, ablations: Sequence[Ablation]) -> None:
        """Hold the fast way to the naive one on the probes, in every layer that these ablations touch.

        Afterwards `note` and `distrusted` say what will not be measured the fast way. Raises StudyError for a layer
        that does not compute with the weight that is zeroed.
        """
        assert self._probes is not None
        with self._one_line(0, len(self._probes)), precision(self.device, self.tf32), torch.no_grad():
            while True:
                try:
                    return self._vet(self._probes, ablations)
                except torch.OutOfMemoryError:
                    pass
                self._halve_batch()

    def distrust(self, layers: Mapping[str, str]) -> None:
        """Measure layers (each with the reason) the naive way from now on."""
        self.distrusted |= layers

    def measure(self, images: Tensor, targets: Tensor, ablations: Sequence[Ablation], start: int = 0) -> Measured:
        """Measure ablations on images (N, 3, H, W) with class indices (N,), which are `start` … of the data set."""
        began = time.perf_counter()
        if self.device.type == "cuda":
            # Copies to the GPU then go on while it computes.
            images, targets = images.pin_memory(), targets.pin_memory()
        with self._one_line(start, start + len(images)), precision(self.device, self.tf32), torch.no_grad():
            measured = self._measure_until_sure(images, targets, ablations, start)
        for name, value in vars(self._checks).items():
            setattr(measured, name, value)
        touched = {layer for ablation in ablations for layer in ablation.layers}
        measured.distrusted = {layer: why for layer, why in self.distrusted.items() if layer in touched}
        measured.seconds = time.perf_counter() - began
        return measured

    def _measure_until_sure(
        self, images: Tensor, targets: Tensor, ablations: Sequence[Ablation], start: int
    ) -> Measured:
        """Measure, again where memory was short, or where an answer that was checked says that others are not safe."""
        tolerance, self._num_differed, short = 0.0, 0, False
        while True:
            try:
                self._vet(images, ablations)
                tolerance = max(tolerance, self._least_tolerance)
                self._checks, self.tolerance = _Checks(largest_difference=self._least_difference), tolerance
                measured = self._measure(images, targets, ablations, start)
                self._checks.num_differed = self._num_differed
                return measured
            except _Unsure as doubt:
                self.distrusted |= dict.fromkeys(doubt.layers, doubt.reason)
                tolerance = self.tolerance
            except Untraceable as reason:
                self._give_up_tracing(str(reason))
            except torch.OutOfMemoryError:
                short = True
            # Outside of the handlers, so that nothing of the failed batch is alive.
            if short:
                self._halve_batch()
                short = False

    def _halve_batch(self) -> None:
        """Take smaller batches; raise DeviceError where that cannot be."""
        if self.batch_size == 1 or self.conduct.fixed_batches:
            few = f"{self.batch_size} images and their" if self.batch_size > 1 else "one image and its"
            raise DeviceError(
                f"{few} activations do not fit into the memory of {self.device}; "
                "use --device cpu, or smaller images with --image-size"
            )
        self.batch_size = max(1, self.batch_size // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def _one_line(self, start: int, stop: int) -> Iterator[None]:
        """Turn whatever somebody else's code raises within into a StudyError that says where it happened."""
        try:
            yield
        except WeanalysisError:
            raise
        except Exception as error:
            where = "the intact network" if self._at is None else f"the network, with {self._at.layers[0]} ablated,"
            raise StudyError(
                f"{where} fails on images {start} to {stop - 1} ({type(error).__name__}: {first_line(error)})"
            ) from error

    def _measure(self, images: Tensor, targets: Tensor, ablations: Sequence[Ablation], start: int) -> Measured:
        single = [place for place, ablation in enumerate(ablations) if self._is_single(ablation)]
        if single and (self.mode == "screened" or self.pooled):
            part = self._measure_pairs(images, targets, [ablations[place] for place in single], start)
            if part is not None:
                others = sorted(set(range(len(ablations))) - set(single))
                if not others:
                    return part
                rest = self._in_batches(images, targets, [ablations[place] for place in others], start)
                return merge_ablations([(single, part), (others, rest)], self.mode == "screened")
        measured = self._in_batches(images, targets, ablations, start)
        return merge_ablations([(range(len(ablations)), measured)], True) if self.mode == "screened" else measured

    def _measure_pairs(
        self, images: Tensor, targets: Tensor, ablations: Sequence[Ablation], start: int
    ) -> Measured | None:
        """Measure ablations of single layers as pairs; None for a network that cannot be computed in that way.

        It is tried anew for every shard, so that a shard's answer does not depend on those before.
        """
        assert self._pairs is not None
        shard = Shard(self, self._pairs, images, targets, start)
        try:
            return (shard.screen if self.mode == "screened" else shard.measure)(tuple(ablations))
        except (torch.OutOfMemoryError, WeanalysisError, _Unsure):
            raise
        except Exception as reason:  # also whatever somebody else's code raises on a part of a batch
            self._note_no_pairs(reason)
            return None

    def _in_batches(self, images: Tensor, targets: Tensor, ablations: Sequence[Ablation], start: int) -> Measured:
        """Measure batch by batch; for each group of ablations one of them is checked, in a batch drawn by lot."""
        lows = range(0, len(images), self.batch_size)
        rng = np.random.default_rng([start, len(ablations)])
        checks = {(int(rng.integers(low, high)), int(rng.choice(lows))) for low, high in _groups(ablations)}
        return merge_batches(
            [
                self._measure_batch(
                    images[low : low + self.batch_size],
                    targets[low : low + self.batch_size],
                    ablations,
                    start + low,
                    {place for place, at in checks if at == low},
                )
                for low in lows
            ],
            start,
        )

    def _measure_batch(
        self, images: Tensor, targets: Tensor, ablations: Sequence[Ablation], start: int, checks: set[int]
    ) -> Batch:
        """Measure one batch, the images `start` … of the data set: the intact network once, then each ablation.

        `checks` are the places of ablations that are computed both ways.
        """
        images = images.to(self.device, self.dtype, non_blocking=True)
        targets = targets.to(self.device, non_blocking=True)
        self._at = None
        batch = Batch.of(self.task.kept_classes(targets), self.intact(images, targets, start))
        spans = _groups(ablations)
        plans = [
            self._twin.plan(ablations[low].layers) if self._twin and self._is_fast(ablations[low].layers) else None
            for low, _ in spans
        ]
        # From the last group to the first: what each group and all later ones read, so that values are let go early.
        still_read: list[frozenset] = [frozenset()]
        for plan in reversed(plans):
            still_read.append(still_read[-1] | plan.frontier if plan else still_read[-1])
        needed = still_read.pop()
        values = self._twin.values(images, needed) if self._twin and any(plans) else {}
        for plan, (low, high) in zip(plans, spans, strict=True):
            if plan is None:
                for ablation in ablations[low:high]:
                    batch.add(self.decide(self._naive(images, ablation, start), targets))
            else:
                assert self._twin is not None
                self._at = ablations[low]
                with self._unsure_where_it_fails(ablations[low].layers):
                    kept = self._twin.keep(plan, values)
                among = {place - low for place in checks if low <= place < high}
                self._measure_group(kept, ablations[low:high], images, targets, batch, among)
            needed = still_read.pop()
            values = {node: value for node, value in values.items() if node in needed}
        return batch

    def _measure_group(
        self, kept: Kept, ablations: Sequence[Ablation], images: Tensor, targets: Tensor, batch: Batch, checks: set[int]
    ) -> None:
        """Measure ablations of the same layers the fast way; those at the places `checks` the naive way, too."""
        assert self._twin is not None
        before = versions(kept.frontier)
        for place, ablation in enumerate(ablations):
            self._at, whole = ablation, None
            with self.weights.zeroed(ablation):
                with self._unsure_where_it_fails(ablation.layers):
                    logits = self._twin.rerun(kept, ablation, self.weights)
                decisions = self.decide(logits, targets, self.tolerance)
                near = bool(decisions.near.any())
                if near or place in checks:
                    whole = self._whole(images)
            if whole is not None:
                naive = self.decide(whole, targets)
                if near:
                    batch.num_rechecked += int(decisions.near.sum())
                    decisions = naive
                if place in checks:
                    self._check(logits, whole, ablation, decisions, naive)
            batch.add(decisions)
        if versions(kept.frontier) != before:
            raise Untraceable("one of its operations writes into an activation that others read")

    @contextmanager
    def _unsure_where_it_fails(self, layers: tuple[str, ...]) -> Iterator[None]:
        """Give the fast way up for these layers where it raises: a hook may count on the whole of an activation."""
        try:
            yield
        except (torch.OutOfMemoryError, WeanalysisError, Untraceable):
            raise
        except Exception as error:
            raise _Unsure(layers, f"the fast way fails ({type(error).__name__}: {first_line(error)})") from error

    # Held to the naive way --------------------------------------------------------------------------------------------

    def _vet(self, images: Tensor, ablations: Sequence[Ablation]) -> None:
        """Before a layer is measured for the first time here: show that zeroing takes effect, and that both ways agree.

        On fixed images where there are some, so that a task's answer does not hang on those before.
        """
        new = [
            layer
            for layer in dict.fromkeys(name for one in ablations for name in one.layers)
            if layer not in self._vetted
        ]
        if not new:
            return
        self._at, self._checks = None, _Checks(largest_difference=self._least_difference)
        self.tolerance = self._least_tolerance
        most = min(NUM_VETTED, self.batch_size)
        probes = (images if self._probes is None else self._probes)[:most].to(self.device, self.dtype)
        whole = self._whole(probes)
        check_zeroing(self._net, new, probes, self.weights, self._whole)
        if self._twin is not None:
            with self._unsure_of_all():
                self._compare(self._twin.intact(probes), whole, ())
        for layer in new:
            if self._is_fast([layer]):
                try:
                    self._vet_layer(layer, probes)
                except _Unsure as doubt:
                    self.distrusted |= dict.fromkeys(doubt.layers, doubt.reason)
        self._vetted.update(new)
        self._at, self._least_tolerance = None, self.tolerance
        self._least_difference = self._checks.largest_difference

    @contextmanager
    def _unsure_of_all(self) -> Iterator[None]:
        try:
            yield
        except (torch.OutOfMemoryError, WeanalysisError):
            raise
        except Exception as error:
            self._give_up_tracing(first_line(error))

    def _vet_layer(self, layer: str, probes: Tensor) -> None:
        """Compute ablations that must change a layer's output both ways; raise _Unsure where these differ."""
        assert self._twin is not None and self._pairs is not None
        plan = self._twin.plan((layer,))
        with self._unsure_where_it_fails((layer,)):
            kept = self._twin.keep(plan, self._twin.values(probes, plan.frontier))
        for ablation in strongest_ablations(layer, self._net, kept):
            self._at = ablation
            with self.weights.zeroed(ablation):
                with self._unsure_where_it_fails((layer,)):
                    logits = self._twin.rerun(kept, ablation, self.weights)
                whole = self._whole(probes)
            self._compare(logits, whole, (layer,))
            if self._is_single(ablation) and (self.mode == "screened" or self.pooled):
                self._vet_pairs(layer, ablation, probes, whole)

    def _vet_pairs(self, layer: str, ablation: Ablation, probes: Tensor, whole: Tensor) -> None:
        """Compute an ablation of some images as pairs, and hold it to the naive logits; note where that cannot be."""
        assert self._pairs is not None
        rows = torch.arange(len(probes), device=self.device)
        try:
            look, _ = self.look(probes, torch.zeros_like(rows), [layer], gradients=False)
            logits = self._pairs.logits(look, [(layer, (ablation,), rows, torch.zeros_like(rows))])
        except (torch.OutOfMemoryError, WeanalysisError, _Unsure):
            raise
        except Exception as reason:  # also whatever somebody else's code raises on a part of a batch
            self._note_no_pairs(reason)
            return
        self._compare(logits, whole, (layer,))

    def _note_no_pairs(self, reason: Exception) -> None:
        self.note = (
            f"this network cannot be computed image by image ({first_line(reason)}): every ablation is on all of them"
        )

    def _compare(self, logits: Tensor, whole: Tensor, layers: tuple[str, ...]) -> float:
        """Widen the margin under which a decision counts as near, by what both ways differ; return the difference.

        Raises _Unsure where that is no rounding.
        """
        difference = (whole - logits).abs().nan_to_num().max().item()
        largest, eps = whole.abs().nan_to_num().max().item(), torch.finfo(logits.dtype).eps
        fault = bool((whole.isnan() != logits.isnan()).any())
        if fault or difference > min(_MOST_SHARE, _MOST_ROUNDINGS * eps) * largest:
            raise _Unsure(
                layers,
                f"the fast way gives other logits than the whole network (by up to {difference:.2g}, of {largest:.2g})",
            )
        self._checks.largest_difference = max(self._checks.largest_difference, difference)
        self.tolerance = max(self.tolerance, TIE_FACTOR * difference, 16 * eps * largest)
        return difference

    def _check(self, logits: Tensor, whole: Tensor, ablation: Ablation, decisions: Decisions, naive: Decisions) -> None:
        """Hold the fast way's logits and decisions to the naive ones; raise _Unsure where others are not safe."""
        tolerance = self.tolerance
        difference = self._compare(logits, whole, ablation.layers)
        differs = (naive.predictions != decisions.predictions) | (naive.correct != decisions.correct)
        self._count_checked(differs.cpu().numpy(), ablation)
        if difference * TIE_FACTOR > _ROOM * tolerance:
            raise _Unsure((), "rounding is larger than it seemed")

    # Parts that others use --------------------------------------------------------------------------------------------

    def decide(self, logits: Tensor, targets: Tensor, tolerance: float = 0.0) -> Decisions:
        """What logits (N, classes) say of each image, and which hang on less than the tolerance."""
        return Decisions.of(logits, targets, tolerance, self.task)

    @torch.no_grad()
    def intact(self, images: Tensor, targets: Tensor, start: int = 0) -> Decisions:
        """Decide one batch with the untouched network; raise StudyError for NaN or for a class it does not have."""
        logits = self._whole(images.to(self.device, self.dtype), start)
        self.task.check(logits, targets)
        return self.decide(logits, targets.to(self.device))

    def look(
        self, images: Tensor, targets: Tensor, layers: Sequence[str], check: bool = False, gradients: bool = True
    ) -> tuple[Look, Decisions]:
        """Run one batch through the intact traced network: what pairs of these layers need, and the decisions.

        With `check`, some images also go through the network as it is, to see how far the two differ.
        """
        assert self._pairs is not None and self._twin is not None
        pairs, metric = self._pairs, self.screen.metric
        images = images.to(self.device, self.dtype, non_blocking=True)
        targets = targets.to(self.device, non_blocking=True)
        look, logits = self._twin.in_fast_format(
            lambda images: pairs.look(images, targets, layers, metric, gradients), images
        )
        if check:
            self._compare(logits[:_NUM_COMPARED], self._whole(images[:_NUM_COMPARED]), tuple(layers))
        decisions = self.decide(logits, targets, self.tolerance)
        if bool(decisions.near.any()):
            near = decisions.near
            decisions.replace(near, self.decide(self._whole(images[near]), targets[near]))
        return look, decisions

    def naive_logits(self, images: Tensor, ablation: Ablation) -> Tensor:
        """Zero the weights, run the whole network on images (N, 3, H, W), put the weights back."""
        return self._naive(images.to(self.device, self.dtype), ablation)

    def _naive(self, images: Tensor, ablation: Ablation, start: int = 0) -> Tensor:
        self._at = ablation
        with self.weights.zeroed(ablation):
            return self._whole(images, start)

    def check(
        self, images: Tensor, targets: Tensor, ablation: Ablation, predictions: np.ndarray, correct: np.ndarray
    ) -> None:
        """Hold decisions that the fast way gave for some images to the naive way; raise _Unsure where they differ."""
        naive = self.decide(self.naive_logits(images, ablation), targets.to(self.device))
        differs = (naive.predictions.cpu().numpy() != predictions) | (naive.correct.cpu().numpy() != correct)
        self._count_checked(differs, ablation)

    def _count_checked(self, differs: np.ndarray, ablation: Ablation) -> None:
        """Note how many answers were checked; raise _Unsure where one differs."""
        self._checks.num_checked += len(differs)
        if num_differing := int(differs.sum()):
            self._num_differed += num_differing
            raise _Unsure(
                ablation.layers, f"{num_differing} of {len(differs)} answers checked differ from the whole network's"
            )

    @torch.no_grad()
    def logits(self, images: Tensor, ablation: Ablation | None = None) -> Tensor:
        """Compute the (N, classes) logits of images (N, 3, H, W), intact or under an ablation, in this mode's way."""
        images = images.to(self.device, self.dtype)
        if ablation is None:
            return self._whole(images)
        if self._twin is None or not self._is_fast(ablation.layers):
            return self._naive(images, ablation)
        plan = self._twin.plan(ablation.layers)
        kept = self._twin.keep(plan, self._twin.values(images, plan.frontier))
        with self.weights.zeroed(ablation):
            return self._twin.rerun(kept, ablation, self.weights)

    def _whole(self, images: Tensor, start: int = 0) -> Tensor:
        """The logits of the network as it is, run as its conduct asks for."""
        if self._state is not None:
            self._state.put_back()
        if not self.conduct.keeps_images:
            images = images.clone()
        seed = self.conduct.seed
        with drawn_from(None if seed is None else seed + start):
            return logits_of(self._net(images), self.conduct.output)


def _moved(net: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Bring a network to a device and to a type of numbers; one that mixes types keeps them."""
    kinds = number_types(net)
    if len(kinds) > 1 and dtype != torch.float32:
        raise StudyError(
            f"the network's weights are of several types ({', '.join(sorted(map(str, kinds)))}), so that "
            f"it cannot be run in {dtype}; leave --dtype out"
        )
    try:
        moved = net.to(device) if len(kinds) > 1 else net.to(device, dtype)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(f"the network cannot be moved to {device}: {first_line(error)}") from error
    for parameter in moved.parameters():
        if parameter.is_leaf:
            parameter.requires_grad_(False)
    return moved.eval()


def _groups(ablations: Sequence[Ablation]) -> list[tuple[int, int]]:
    """Where ablations of the same layers that follow one another begin and end."""
    sizes = [len(list(members)) for _, members in groupby(ablations, lambda one: one.layers)]
    ends = np.cumsum(sizes).tolist()
    return [(end - size, end) for size, end in zip(sizes, ends, strict=True)]
