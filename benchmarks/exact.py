"""How many times faster `exact` is than `naive` on the same work, in one run, and whether they agree.

    python benchmarks/exact.py                     # a ResNet-20 with random weights on digits; needs nothing
    python benchmarks/exact.py --weights net.th --data imagefolder:DIR --mean R,G,B --std R,G,B

Naive: zero the weight, run the whole network over images already in memory, restore; one process, one thread, both
ways. The rounds alternate, so that a change of the machine's speed meets both.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from datetime import date

import numpy as np
import torch

from weanalysis.ablation import Evaluator, studies
from weanalysis.cli.options import parse_triple
from weanalysis.loading import load_data
from weanalysis.models import load_network


def main() -> None:
    """Print the seconds of each round, the ratios, and the predictions that differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--weights", default="none")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--mean")
    parser.add_argument("--std")
    parser.add_argument("--images", type=int, default=250)
    parser.add_argument("--grid", default="5x5")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load_network(given.model, given.weights, num_classes=10 if given.weights == "none" else None)
    data = load_data(given.data, parse_triple("mean", given.mean), parse_triple("std", given.std), None,
                     given.images, 0, model)  # fmt: skip
    images, targets = data.batch(0, len(data))
    ablations = studies.location(model.net, given.grid).ablations
    evaluators = {mode: Evaluator(model.net, mode) for mode in ("naive", "exact")}
    evaluators["naive"].batch_size = 250
    seconds: dict[str, list[float]] = {mode: [] for mode in evaluators}
    results = {}
    for _ in range(given.rounds):
        for mode, evaluator in evaluators.items():
            # Processor time of this one-threaded process: what else runs on the machine counts less.
            began = time.process_time()
            results[mode] = evaluator.measure(images, targets, ablations)
            seconds[mode].append(time.process_time() - began)
    ratios = [slow / fast for slow, fast in zip(seconds["naive"], seconds["exact"], strict=True)]
    naive, exact = results["naive"], results["exact"]
    differing = 0 if all(
        np.array_equal(getattr(naive, name), getattr(exact, name)) for name in ("counts", "positions", "classes")
    ) else int(np.abs(naive.counts - exact.counts).sum()) or 1  # fmt: skip
    print(f"{date.today()}, {platform.processor() or platform.machine()}, torch {torch.__version__}")
    print(f"{model.name} ({model.weights}), {given.data}, {len(images)} images, {len(ablations)} ablations, one thread")
    for mode, values in seconds.items():
        print(f"{mode:>6}: median {statistics.median(values):.1f} s of processor time "
              f"({', '.join(f'{value:.1f}' for value in values)})")
    print(f" ratio: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"different predictions: {differing} of {len(images) * len(ablations):,}; decided naively for a near tie: "
          f"{exact.num_rechecked:,}; largest difference of logits seen: {exact.largest_difference:.1e}")


if __name__ == "__main__":
    main()
