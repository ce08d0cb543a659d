"""From a shard of images and a list of ablations to the images whose prediction changed.

Four ways stand on what a network can do (`network`), and agree image by image: `exact.measure_naive` zeroes the
weights and runs the whole network; `exact.measure_exact` runs it once and then computes again, for each ablation, only
what lies downstream of the zeroed weights; `pooled.measure_pooled` does so for pairs of an image and an ablation, of
many layers at once; `screened.measure_screened` for those pairs alone that could change.

The fast ways are not believed but held to the naive one: in every process before a layer is measured (`vetting`), and
while it is, on answers drawn by lot (`checks`). A layer on which they disagree is measured the naive way, from its
first image on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from weanalysis.ablation.behaviour import Conduct
from weanalysis.ablation.evaluate.checks import MOST_ROUNDINGS, MOST_SHARE, Checks, Unsure
from weanalysis.ablation.evaluate.decisions import Decisions, Measured, merge_ablations
from weanalysis.ablation.evaluate.exact import Shard, measure_exact, measure_naive
from weanalysis.ablation.evaluate.network import Network
from weanalysis.ablation.evaluate.pooled import measure_pooled
from weanalysis.ablation.evaluate.repeats import Repeat, Sample, measure_again
from weanalysis.ablation.evaluate.risk import ScreenSettings
from weanalysis.ablation.evaluate.screened import measure_screened
from weanalysis.ablation.evaluate.vetting import Vetting
from weanalysis.ablation.graph import Untraceable, num_bytes
from weanalysis.ablation.studies import Ablation
from weanalysis.devices import is_out_of_memory, precision
from weanalysis.errors import DeviceError, WeanalysisError
from weanalysis.tasks.numbers import OutputTask

Mode = Literal["exact", "screened", "naive"]

# Images that are run at once, where nothing is known of their activations.
BATCH_SIZE = 50

# Activations that a process keeps of a batch of images, in bytes; and of a shard whose pairs are computed.
_KEPT_BYTES = 512 * 2**20
_KEPT_OF_SHARD = 2 * _KEPT_BYTES


class Evaluator:
    """Measures ablations of one network; works on a copy of its own, so the caller's weights are never touched.

    `mode` "exact" falls back to whole forward passes where the network cannot be traced; `note` then says so, and
    `distrusted` says of which layers, and why, the fast way is not believed. "screened" falls back to exact for
    ablations whose effect cannot be predicted: of several layers at once, or of one whole. `conduct` says how the
    network must be run, `probes` are images (N, 3, H, W) on which the fast way is vetted (None: the first ones that
    are measured), `task` what outputs and targets mean (None: classes). With `pooled`, exact evaluation too takes
    pairs of all layers together (None: on a GPU, which is busy only with many images at once). Memory: the network
    twice, one batch's kept activations (of pairs, up to `most_kept_bytes` of a shard's), and one batch of images;
    independent of the number of images and ablations. Where memory runs out the batch is halved. Raises
    StudyError for outputs that are no logits or hold NaN, for a layer that does not compute with the weight that is
    zeroed, and for whatever the network raises; DeviceError where one image is too large.

    A network that answers the brightest of three colours; without a filter, images of its colour are taken for another:

    >>> from weanalysis.ablation.studies import channel
    >>> net = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> net[0].weight.data = torch.eye(3)[:, :, None, None]
    >>> images, targets = (1 + torch.eye(3))[:, :, None, None].expand(3, 3, 4, 4), torch.arange(3)
    >>> measured = Evaluator(net).measure(images, targets, channel(net, side="out").ablations)
    >>> measured.counts.tolist(), measured.positions.tolist(), measured.classes.tolist()
    ([1, 1, 1], [0, 1, 2], [1, 0, 0])
    """

    def __init__(
        self,
        net: nn.Module,
        mode: Mode = "exact",
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = BATCH_SIZE,
        screen: ScreenSettings | None = None,
        tf32: bool = False,
        conduct: Conduct | None = None,
        probes: Tensor | None = None,
        pooled: bool | None = None,
        most_kept_bytes: int = _KEPT_OF_SHARD,
        task: OutputTask | None = None,
    ):
        conduct = conduct or Conduct()
        self.mode, self.device, self.batch_size = mode, torch.device(device), batch_size
        self.network = Network(net, self.device, dtype, conduct, mode != "naive" and not conduct.whole_passes, task)
        # A pair is told by its margin to other classes.
        usual = self.device.type != "cpu" and self.network.task.has_classes
        self.pooled = usual if pooled is None else pooled
        self._screen, self._tf32, self._most_kept_bytes = screen or ScreenSettings(), tf32, most_kept_bytes
        self._probes, self._in_pairs = probes, mode == "screened" or self.pooled
        self._vetting = Vetting(self.network, probes, self._screen.metric if self._in_pairs else None)

    @property
    def note(self) -> str:
        """What is to be said of how the network is measured; empty where nothing is."""
        return self.network.note

    @property
    def distrusted(self) -> dict[str, str]:
        """The layers that are measured the naive way, each with the reason."""
        return self.network.distrusted

    # What is known beforehand -----------------------------------------------------------------------------------------

    def cost(self, ablation: Ablation) -> float:
        """The part of a forward pass that an ablation repeats, in steps of the traced network (0 to 1).

        Of a screened one, for a guess: on one image in thirty.
        """
        twin = self.network.twin
        if twin is None or not self.network.is_fast(ablation.layers):
            return 1.0
        share = len(twin.plan(ablation.layers).steps) / len(twin.graph.steps)
        return share / 30 if self.can_screen(ablation) else share

    @torch.no_grad()
    def kept_bytes(self, image: Tensor, ablations: Sequence[Ablation]) -> int:
        """Bytes of activations that measuring these ablations keeps for one image (1, 3, H, W)."""
        network, twin = self.network, self.network.twin
        groups = {ablation.layers for ablation in ablations if network.is_fast(ablation.layers)}
        if twin is None or not groups:
            return 0
        frontier = frozenset().union(*(twin.plan(layers).frontier for layers in groups))
        if network.pairs is not None and self._in_pairs:
            single = {ablation.layers[0] for ablation in ablations if network.is_single(ablation)}
            frontier |= network.pairs.read(sorted(single))
        # A screened batch is kept as activations, as gradients, and channel by channel.
        return num_bytes(twin.values(network.placed(image), frontier)) * (3 if self.mode == "screened" else 1)

    def fit_batch(self, images: Tensor, ablations: Sequence[Ablation]) -> None:
        """Take the largest batch, up to 50 images on a CPU and 250 on a GPU, whose activations stay within bounds."""
        most = BATCH_SIZE if self.device.type == "cpu" else 250
        kept = self.kept_bytes(images[:1], ablations)
        self.batch_size = most if kept == 0 else int(np.clip(_KEPT_BYTES // kept, 1, most))

    def can_screen(self, ablation: Ablation) -> bool:
        """Whether an ablation's effect can be predicted, so that not all images need be computed."""
        return self.mode == "screened" and self.network.is_single(ablation)

    # Measuring --------------------------------------------------------------------------------------------------------

    def vet(self, ablations: Sequence[Ablation]) -> None:
        """Hold the fast way to the naive one on the probes, in every layer that these ablations touch.

        Afterwards `note` and `distrusted` say what will not be measured the fast way. Raises StudyError for a layer
        that does not compute with the weight that is zeroed.
        """
        assert self._probes is not None
        with self.network.one_line(0, len(self._probes)), precision(self.device, self._tf32), torch.no_grad():
            while True:
                try:
                    return self._vetting.vet(self._probes, ablations, self.batch_size)
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                self._halve_batch()

    def distrust(self, layers: Mapping[str, str]) -> None:
        """Measure layers (each with the reason) the naive way from now on."""
        self.network.distrust(layers)

    def measure(self, images: Tensor, targets: Tensor, ablations: Sequence[Ablation], start: int = 0) -> Measured:
        """Measure ablations on images (N, 3, H, W) with class indices (N,), which are `start` … of the data set."""
        began = time.perf_counter()
        if self.device.type == "cuda":
            # Copies to the GPU then go on while it computes.
            images, targets = images.pin_memory(), targets.pin_memory()
        with (
            self.network.one_line(start, start + len(images)),
            precision(self.device, self._tf32),
            torch.no_grad(),
        ):
            measured = self._measure_until_sure(images, targets, ablations, start)
        return replace(measured, seconds=time.perf_counter() - began, batch_size=self.batch_size)

    def repeat(self, sample: Sample, ablation: Ablation, data: Any) -> Repeat:
        """Measure a sample of somebody's answers the naive way, in a batch of another size; `data` are all images."""
        stop = sample.start + sample.size
        with self.network.one_line(sample.start, stop), precision(self.device, self._tf32), torch.no_grad():
            return measure_again(self.network, sample, ablation, data, (MOST_SHARE, MOST_ROUNDINGS))

    def _measure_until_sure(
        self, images: Tensor, targets: Tensor, ablations: Sequence[Ablation], start: int
    ) -> Measured:
        """Measure, again where memory was short, or where an answer that was checked says that others are not safe."""
        network, vetting = self.network, self._vetting
        tolerance, num_differed, is_short = 0.0, 0, False
        while True:
            share = network.task.tie_share
            checks, num_answers = Checks(tie_share=share), len(images) * len(ablations)
            try:
                vetting.vet(images, ablations, self.batch_size)
                tolerance = max(tolerance, vetting.tolerance)
                checks = Checks(tolerance, vetting.largest_difference, num_differed, share, num_answers)
                shard = Shard(images, targets, start, self.batch_size, self._most_kept_bytes)
                return self._checked(self._measure(shard, ablations, checks), ablations, checks)
            except Unsure as doubt:
                network.distrust(dict.fromkeys(doubt.layers, doubt.reason))
                tolerance, num_differed = checks.tolerance, checks.num_differed
            except Untraceable as reason:
                network.give_up_tracing(str(reason))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                is_short = True
            # Outside of the handlers, so that nothing of the failed batch is alive.
            if is_short:
                self._halve_batch()
                is_short = False

    def _checked(self, measured: Measured, ablations: Sequence[Ablation], checks: Checks) -> Measured:
        """What was measured, with what was checked on the way."""
        touched = {layer for ablation in ablations for layer in ablation.layers}
        return replace(
            measured,
            num_checked=checks.num_checked,
            num_differed=checks.num_differed,
            largest_difference=checks.largest_difference,
            distrusted={layer: why for layer, why in self.distrusted.items() if layer in touched},
            sample=checks.sampler.sample(list(ablations)),
        )

    def _halve_batch(self) -> None:
        """Take smaller batches; raise DeviceError where that cannot be."""
        if self.batch_size == 1 or self.network.conduct.fixed_batches:
            few = f"{self.batch_size} images and their" if self.batch_size > 1 else "one image and its"
            raise DeviceError(
                f"{few} activations do not fit into the memory of {self.device}; "
                "use --device cpu, or smaller images with --image-size"
            )
        self.batch_size = max(1, self.batch_size // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _measure(self, shard: Shard, ablations: Sequence[Ablation], checks: Checks) -> Measured:
        """Measure as pairs what can be, and batch by batch what cannot."""
        single = [place for place, one in enumerate(ablations) if self._in_pairs and self.network.is_single(one)]
        paired = self._measure_pairs(shard, [ablations[place] for place in single], checks) if single else None
        parts: list[tuple[Sequence[int], Measured]] = [] if paired is None else [(single, paired)]
        others = sorted(set(range(len(ablations))) - set(single if parts else ()))
        if not others and paired is not None:
            return paired
        rest = [ablations[place] for place in others]
        if self.network.twin is None:
            parts.append((others, measure_naive(self.network, shard, rest, checks)))
        else:
            parts.append((others, measure_exact(self.network, shard, rest, checks)))
        if paired is None and self.mode != "screened":
            return parts[0][1]
        return merge_ablations(parts, self.mode == "screened")

    def _measure_pairs(self, shard: Shard, ablations: Sequence[Ablation], checks: Checks) -> Measured | None:
        """Measure ablations of single layers as pairs; None for a network that cannot be computed in that way.

        It is tried anew for every shard, so that a shard's answer does not depend on those before.
        """
        try:
            if self.mode == "screened":
                return measure_screened(self.network, shard, ablations, checks, self._screen)
            return measure_pooled(self.network, shard, ablations, checks)
        except (WeanalysisError, Unsure):
            raise
        except Exception as reason:  # also whatever somebody else's code raises on a part of a batch
            if is_out_of_memory(reason):
                raise
            self.network.give_up_pairs(reason)
            return None

    # Single batches ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def intact(self, images: Tensor, targets: Tensor, start: int = 0) -> Decisions:
        """Decide one batch with the untouched network; raise StudyError for NaN or for a class it does not have."""
        return self.network.intact(images, targets, start)

    @torch.no_grad()
    def logits(self, images: Tensor, ablation: Ablation | None = None) -> Tensor:
        """Compute the (N, classes) logits of images (N, 3, H, W), intact or under an ablation, in this mode's way."""
        images = self.network.placed(images)
        return self.network.whole(images) if ablation is None else self.network.logits(images, ablation)
