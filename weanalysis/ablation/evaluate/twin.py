"""The traced copy of a network: what it keeps of a batch, and how it computes again what an ablation changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from weanalysis.ablation.copies import copied
from weanalysis.ablation.evaluate.outputs import Path, logits_of
from weanalysis.ablation.graph import Downstream, Graph
from weanalysis.ablation.studies import Ablation, Part
from weanalysis.ablation.weights import Weights, some_channels
from weanalysis.devices import is_out_of_memory

_T = TypeVar("_T")


@dataclass
class Kept:
    """One batch's activations that the ablations of some layers read, and the intact outputs of those layers."""

    downstream: Downstream
    frontier: dict[fx.Node, Any]
    outputs: dict[fx.Node, Tensor]


class Twin:
    """A network's traced copy, in the memory format that is faster where the network bears it.

    `net` is the copy, whose weights are to be zeroed together with the network's own; `output` says where in what it
    returns the logits are. Raises Untraceable.
    """

    def __init__(self, net: nn.Module, fold: bool, output: Path | None = None):
        self.net, self._output = copied(net), output
        self.graph = Graph(self.net, fold)
        self._plans: dict[tuple[str, ...], Downstream] = {}
        self._channels_last = True
        self._lay_out_weights(torch.channels_last)

    def _lay_out_weights(self, memory_format: torch.memory_format) -> None:
        """Lay the weights out in memory as the activations are."""
        for parameter in self.net.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=memory_format)

    def in_fast_format(self, run: Callable[[Tensor], _T], images: Tensor) -> _T:
        """Run on images in channels-last format, or in the usual one where the network has a view of it."""
        if self._channels_last:
            # Clips and signals have no such format, and may be pictures inside the network, such as a clip's frames.
            usual = torch.channels_last if images.ndim == 4 else torch.contiguous_format
            try:
                return run(images.contiguous(memory_format=usual))
            except RuntimeError as error:  # a view that only the usual format allows; weights too choose the format
                if is_out_of_memory(error):
                    raise
                self._channels_last = False
                self._lay_out_weights(torch.contiguous_format)
        return run(images)

    def plan(self, layers: tuple[str, ...]) -> Downstream:
        """What must be computed again when these layers change."""
        if layers not in self._plans:
            self._plans[layers] = self.graph.downstream(layers)
        return self._plans[layers]

    def values(self, images: Tensor, keep: frozenset[fx.Node]) -> dict[fx.Node, Any]:
        """Run the intact network on images (N, 3, H, W) and return what is to be kept."""
        return self.in_fast_format(lambda images: self.graph.run(images, keep)[1], images)

    def intact(self, images: Tensor) -> Tensor:
        """The intact logits (N, classes)."""
        output = self.in_fast_format(lambda images: self.graph.run(images, frozenset())[0], images)
        return logits_of(output, self._output)

    def keep(self, plan: Downstream, values: dict[fx.Node, Any]) -> Kept:
        """Of values that are at hand, those that ablations of the plan's layers read."""
        frontier = {node: values[node] for node in plan.frontier}
        return Kept(plan, frontier, {step.node: step.run(frontier) for step in plan.first})

    def rerun(self, kept: Kept, ablation: Ablation, weights: Weights) -> Tensor:
        """Compute the logits (N, classes) under an ablation whose weights are zero at this moment."""
        parts: dict[str | None, list[Part]] = {}
        for part in ablation.parts:
            parts.setdefault(part.layer, []).append(part)
        changed: dict[fx.Node, Any] = {}
        borrowed: list[tuple[Tensor, Tensor, Tensor]] = []
        try:
            for step in kept.downstream.first:
                channels = weights.changed_channels(parts[step.layer])
                some = None
                if channels is not None and step.source is not None:
                    some = some_channels(step.function, kept.frontier[step.source], channels)  # type: ignore[arg-type]
                if some is None:
                    changed[step.node] = step.run(kept.frontier)
                    continue
                # The few new channels are written into the intact output and taken out again: cheaper than a copy.
                output = kept.outputs[step.node]
                index = torch.tensor(channels, device=output.device)
                borrowed.append((output, index, output[:, index]))
                output[:, index] = some
                changed[step.node] = output
            return logits_of(self.graph.rerun(kept.downstream, kept.frontier, changed), self._output)
        finally:
            for output, index, values in borrowed:
                output[:, index] = values
