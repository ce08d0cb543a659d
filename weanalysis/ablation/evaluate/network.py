"""What a network can do for those who measure it: whole passes, and what lies downstream of zeroed weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from weanalysis.ablation.behaviour import Conduct, State, drawn_from
from weanalysis.ablation.copies import copied, first_line, moved
from weanalysis.ablation.evaluate.decisions import Decisions
from weanalysis.ablation.evaluate.outputs import logits_of
from weanalysis.ablation.evaluate.pairs import IntactPass, Pairs
from weanalysis.ablation.evaluate.twin import Twin
from weanalysis.ablation.graph import Untraceable
from weanalysis.ablation.studies import Ablation
from weanalysis.ablation.weights import Weights
from weanalysis.errors import StudyError, WeanalysisError
from weanalysis.tasks.classification import Classification
from weanalysis.tasks.numbers import OutputTask


class Network:
    """A copy of a network on a device, run as its `conduct` asks for; with `traced`, its traced twin beside it.

    `twin` and `pairs` are None where there is none; `note` then says why, and `distrusted` of which layers, each with
    the reason, the twin is not believed. `ablated` is what is zeroed, and stays so where something fails meanwhile.
    """

    def __init__(
        self,
        net: nn.Module,
        device: torch.device,
        dtype: torch.dtype,
        conduct: Conduct,
        traced: bool,
        task: OutputTask | None = None,
    ):
        self.device, self.dtype, self.conduct = device, dtype, conduct
        self.net = moved(copied(net), device, dtype)
        for parameter in self.net.parameters():
            if parameter.is_leaf:
                parameter.requires_grad_(False)
        self.task = task or Classification(conduct.probabilities)
        self._state = State(self.net) if conduct.put_back else None
        self.note = ""
        self.distrusted: dict[str, str] = {}
        self.ablated: Ablation | None = None
        self.twin: Twin | None = None
        self.pairs: Pairs | None = None
        self.weights = Weights(self.net, None)
        if traced:
            try:
                # Merging a batch norm rounds the weights: harmless in float32, not in 16 bits.
                self.twin = Twin(self.net, dtype == torch.float32, conduct.output)
            except Untraceable as reason:
                self.give_up_tracing(str(reason))
        if self.twin is not None:
            self.weights = Weights(self.net, self.twin.net)
            self.pairs = Pairs(self.twin.graph, self.weights, conduct.output)
            elsewhere = self.twin.graph.elsewhere
            self.distrusted = {layer: f"its weight is read by {reader} too" for layer, reader in elsewhere.items()}

    # What is believed -------------------------------------------------------------------------------------------------

    def give_up_tracing(self, reason: str) -> None:
        """Run the whole network for every ablation from now on."""
        self.twin, self.pairs, self.weights = None, None, Weights(self.net, None)
        self.note = f"the network cannot be traced ({reason}): every ablation runs the whole network"

    def give_up_pairs(self, reason: Exception) -> None:
        """Note that the network cannot be computed image by image."""
        why = first_line(reason)
        self.note = f"this network cannot be computed image by image ({why}): every ablation is on all of them"

    def distrust(self, layers: Mapping[str, str]) -> None:
        """Measure layers (each with the reason) the naive way from now on."""
        self.distrusted |= layers

    def is_fast(self, layers: Sequence[str]) -> bool:
        """Whether ablations of these layers are measured on the twin."""
        return self.twin is not None and self.distrusted.keys().isdisjoint(layers)

    def is_single(self, ablation: Ablation) -> bool:
        """Whether it zeroes a part of one layer that is called once, so that it can be computed along with others."""
        return self.pairs is not None and self.is_fast(ablation.layers) and self.pairs.can(ablation)

    # What it computes -------------------------------------------------------------------------------------------------

    def placed(self, images: Tensor) -> Tensor:
        """Images on the device, in the type of numbers that the network has."""
        return images.to(self.device, self.dtype, non_blocking=True)

    def whole(self, images: Tensor, start: int = 0) -> Tensor:
        """The logits of the network as it is, for placed images that are the `start`-th … of the data set."""
        if self._state is not None:
            self._state.put_back()
        if not self.conduct.keeps_images:
            images = images.clone()
        seed = self.conduct.seed
        with drawn_from(None if seed is None else seed + start):
            return logits_of(self.net(images), self.conduct.output)

    @contextmanager
    def zeroed(self, ablation: Ablation) -> Iterator[None]:
        """Zero an ablation's weights within, in the network and in its twin."""
        self.ablated = ablation
        with self.weights.zeroed(ablation):
            yield
        self.ablated = None

    def naive(self, images: Tensor, ablation: Ablation, start: int = 0) -> Tensor:
        """Zero the weights, run the whole network on placed images, put the weights back."""
        with self.zeroed(ablation):
            return self.whole(images, start)

    def logits(self, images: Tensor, ablation: Ablation) -> Tensor:
        """The logits of placed images under an ablation: by the twin, or where that is not believed the naive way."""
        if self.twin is None or not self.is_fast(ablation.layers):
            return self.naive(images, ablation)
        plan = self.twin.plan(ablation.layers)
        kept = self.twin.keep(plan, self.twin.values(images, plan.frontier))
        with self.zeroed(ablation):
            return self.twin.rerun(kept, ablation, self.weights)

    def decide(self, logits: Tensor, targets: Tensor, tolerance: float = 0.0) -> Decisions:
        """What logits (N, classes) say of each image, and which hang on less than the tolerance."""
        return Decisions.of(logits, targets, tolerance, self.task)

    def intact(self, images: Tensor, targets: Tensor, start: int = 0) -> Decisions:
        """Decide a batch with nothing zeroed; raise StudyError for NaN, or a class that the network does not have."""
        self.ablated = None
        logits = self.whole(self.placed(images), start)
        self.task.check(logits, targets)
        return self.decide(logits, targets.to(self.device))

    def run_intact(
        self, images: Tensor, targets: Tensor, layers: Sequence[str], metric: str, gradients: bool
    ) -> tuple[IntactPass, Tensor]:
        """Run placed images through the twin once: what pairs of these layers need, and the logits."""
        assert self.twin is not None and self.pairs is not None
        pairs = self.pairs
        return self.twin.in_fast_format(
            lambda images: pairs.run_intact(images, targets, layers, metric, gradients), images
        )

    # Where it fails ---------------------------------------------------------------------------------------------------

    @contextmanager
    def one_line(self, start: int, stop: int) -> Iterator[None]:
        """Turn whatever somebody else's code raises within into a StudyError that says where it happened."""
        self.ablated = None
        try:
            yield
        except WeanalysisError:
            raise
        except Exception as error:
            under = self.ablated
            where = "the intact network" if under is None else f"the network, with {under.layers[0]} ablated,"
            raise StudyError(
                f"{where} fails on images {start} to {stop - 1} ({type(error).__name__}: {first_line(error)})"
            ) from error
