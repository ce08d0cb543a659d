"""A few answers of a study measured once more, by the process that runs it: do they hang on who measures, and how?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from weanalysis.ablation.evaluate import Measured
from weanalysis.ablation.schedule import Task
from weanalysis.ablation.setup import Setup
from weanalysis.errors import DataError, one_line

# This share of a study's time may be spent on it, but for the first sample, which every study has.
MOST_TIME = 0.01


class Repetition:
    """Measures the samples that tasks bring along again, the naive way and in batches of another size.

    `about` sums up what came of it, with that of `before`; `say` gets a line for a person where an answer is another
    one, or outputs differ by more than rounding.
    """

    def __init__(self, setup: Setup, before: Mapping[str, Any], say: Callable[[str], None]):
        self._setup, self._say = setup, say
        self.about: dict[str, Any] = dict(before)
        self._began, self._spent, self._last = time.monotonic(), 0.0, 0.0
        self._is_over = self._has_said = False

    def add(self, task: Task, measured: Measured) -> bool:
        """Measure a task's sample again where there is time for it; return whether it was."""
        now = time.monotonic()
        if self._is_over or measured.sample is None or self._spent + self._last > MOST_TIME * (now - self._began):
            return False
        sample, ablation = measured.sample, task.ablations[measured.sample.place]
        try:
            repeat = self._setup.evaluator.repeat(sample, ablation, self._setup.images)
        except DataError:
            raise
        except Exception as error:  # whatever a network does in a batch of another size is no reason to end its study
            self._is_over = True
            self._say(f"no answer is measured twice: that fails ({one_line(error, 200)})")
            return False
        self._last = time.monotonic() - now
        self._spent += self._last
        before = self.about or dict.fromkeys(("num_answers", "num_ties", "num_differed", "largest_difference"), 0)
        self.about = {
            "num_answers": before["num_answers"] + repeat.num_answers,
            "num_ties": before["num_ties"] + repeat.num_ties,
            "num_differed": before["num_differed"] + repeat.num_differed,
            "largest_difference": max(before["largest_difference"], repeat.difference),
        }
        if not repeat.is_rounding and not self._has_said:
            self._has_said = True
            self._say(
                f"the outputs of {repeat.num_answers} images with {', '.join(ablation.layers[:3])} ablated are others "
                f"in a batch of {repeat.at_once} than in one of {sample.at_once}, by up to {repeat.difference:.2g} "
                f"({repeat.num_differed} answers too): D may hang on --batch-size, or on who measures"
            )
        return True
