"""Pairs of an image and a change, computed together by a traced network: each pair joins it at its own layer.

Three pairs, of which the first joins at the first of two layers and the others at the second: what lies between the
layers is computed for one row, and for three from the second on. Where a row is read that no pair has changed so far,
such as a shortcut around the second layer, it is the intact one of the pair's image.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from weanalysis.ablation.graph.steps import Step, has_row_an_image
from weanalysis.ablation.graph.tracing import Untraceable


class Memory:
    """Which of the values computed so far lie in memory of their own, shared with no kept activation or other value."""

    def __init__(self) -> None:
        self._own: set[fx.Node] = set()

    def spent(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """Those of some values that may be written over, once nobody reads them."""
        return self._own.intersection(nodes)

    def add(self, step: Step, value: Any, values: Mapping[fx.Node, Any], spent: set[fx.Node]) -> None:
        """Note where a step's new value lies, given the `values` that it read and which of these were `spent`."""
        if not isinstance(value, Tensor):
            self._own.difference_update(values)  # its parts may lie in any of them
            return
        place = value.untyped_storage().data_ptr()
        sharing = {
            source
            for source, read in values.items()
            if isinstance(read, Tensor) and read.untyped_storage().data_ptr() == place
        }
        self._own -= sharing
        if step.makes_new and all(values[source] is value and source in spent for source in sharing):
            self._own.add(step.node)


class GrowingRows:
    """The values of pairs on their way through the network, for the first so many of which each is known.

    `rows` (P,) are the pairs' images, in the order in which the pairs join; `kept` the values of the intact run over
    `num_images`, of which those in `varies` depend on the images.
    """

    def __init__(
        self,
        rows: Tensor,
        kept: Mapping[fx.Node, Any],
        num_images: int,
        varies: Collection[fx.Node],
        constants: Mapping[fx.Node, Any],
    ):
        self._rows, self._kept, self._num_images = rows, kept, num_images
        self._varies, self._constants = varies, constants
        self._changed: dict[fx.Node, tuple[Any, int]] = {}
        self._memory = Memory()
        self.num_joined = 0

    def forget(self, node: fx.Node) -> None:
        """Let go of a value that nobody reads again."""
        self._changed.pop(node, None)

    def compute(self, step: Step, last_read: Collection[fx.Node]) -> None:
        """Compute a step for all pairs that changed what it reads; `last_read` are values that it is the last to read.

        Raises Untraceable where an operation upstream of a layer has measured the batch.
        """
        sources = step.node.all_input_nodes
        count = max((self._num_known(node) for node in sources), default=0)
        if not count:
            return
        # A sum of all rows with what is known of some, as behind a shortcut, needs no tensor that holds both.
        few = [node for node in sources if node in self._varies and self._num_known(node) < count]
        full = [node for node in sources if self._num_known(node) == count]
        if len(few) == len(full) == 1 and step.is_sum and full[0] in self._memory.spent(last_read):
            value = self._changed[full[0]][0]
            if self._add_rows(value, few[0], count):
                values, spent = {full[0]: value}, set(full)
                self._note(step, value, count, values, spent)
                return
        values = {node: self.first(node, count) for node in sources}
        # Rows that were just put together are read by this step alone.
        spent = self._memory.spent(last_read) | set(few)
        self._note(step, step.run_over(values, spent), count, values, spent)

    def join(self, node: fx.Node, new: Tensor) -> None:
        """Let the next len(new) pairs join, which have these values there."""
        value, count = self._changed.get(node, (None, 0))
        parts = [value] if count else []
        # Also where none of those before changed anything here, as in a branch beside theirs.
        if count < self.num_joined:
            parts.append(self._intact(node, count, self.num_joined))
        self.num_joined += len(new)
        self._changed[node] = torch.cat([*parts, new]) if parts else new, self.num_joined

    def first(self, node: fx.Node, count: int) -> Any:
        """The value of the first `count` pairs: as far as it is known changed, for the others intact."""
        if node in self._constants:
            return self._constants[node]
        value, known = self._changed.get(node, (None, 0))
        if known >= count:
            return value
        if known == 0:
            return self._intact(node, 0, count)
        if not isinstance(value, Tensor):
            raise Untraceable("it computes with the number of images")
        kept, rows = self._kept_rows(node), self._rows[known:count]
        if kept.dtype != value.dtype or kept.shape[1:] != value.shape[1:]:
            return torch.cat([value, kept[rows]])
        whole = torch.empty(
            (count, *value.shape[1:]), dtype=value.dtype, device=value.device, memory_format=_memory_format(value)
        )
        whole[:known] = value
        torch.index_select(_rows_in_one_piece(kept), 0, rows, out=_rows_in_one_piece(whole[known:]))
        return whole

    def _num_known(self, node: fx.Node) -> int:
        return self._changed.get(node, (None, 0))[1]

    def _note(self, step: Step, value: Any, count: int, values: Mapping[fx.Node, Any], spent: set[fx.Node]) -> None:
        self._memory.add(step, value, values, spent)
        self._changed[step.node] = value, count

    def _add_rows(self, value: Tensor, node: fx.Node, count: int) -> bool:
        """Add the rows of another value in place; say whether that could be."""
        other, known = self._changed.get(node, (None, 0))
        kept = self._kept_rows(node)
        alike = [one for one in (kept, other) if one is not None]
        if not all(isinstance(one, Tensor) and one.shape[1:] == value.shape[1:] for one in (*alike, value)):
            return False
        if any(one.dtype != value.dtype for one in alike):
            return False
        if known:
            value[:known].add_(other)
        value[known:].add_(select_rows(kept, self._rows[known:count]))
        return True

    def _kept_rows(self, node: fx.Node) -> Tensor:
        value = self._kept[node]
        if not has_row_an_image(value, self._num_images):
            raise Untraceable("it has an activation without one row an image")
        return value

    def _intact(self, node: fx.Node, low: int, high: int) -> Any:
        """What the intact run had, for some of the pairs."""
        value = self._kept[node]
        if node not in self._varies:
            return value
        if isinstance(value, Tensor):
            return select_rows(self._kept_rows(node), self._rows[low:high])
        if isinstance(value, bool) or (isinstance(value, int) and value != self._num_images):
            return value  # another side of a tensor than the batch
        raise Untraceable("it computes with the number of images")


def select_rows(value: Tensor, rows: Tensor) -> Tensor:
    """Some rows (P,) of a value, in its own memory format, each copied in one piece.

    >>> select_rows(torch.arange(6).reshape(3, 2), torch.tensor([2, 0])).tolist()
    [[4, 5], [0, 1]]
    """
    selected = _rows_in_one_piece(value).index_select(0, rows)
    return selected if _memory_format(value) is torch.contiguous_format else selected.movedim(-1, 1)


def _memory_format(value: Tensor) -> torch.memory_format:
    for one, ndim in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if value.ndim == ndim and not value.is_contiguous() and value.is_contiguous(memory_format=one):
            return one
    return torch.contiguous_format


def _rows_in_one_piece(value: Tensor) -> Tensor:
    """A view of a value whose rows each lie in one piece where they can: with the channels last if they are so."""
    return value if _memory_format(value) is torch.contiguous_format else value.movedim(1, -1)
