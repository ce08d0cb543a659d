"""How many forward passes the whole saliency map of a network costs, over the same images.

    python benchmarks/saliency.py                  # a ResNet-20 with random weights on digits; needs nothing
    python benchmarks/saliency.py --weights net.th --data imagefolder:DIR --mean R,G,B --std R,G,B --images 2000

All criteria, for every weight, kernel, channel and layer of the layers whose name matches, written to a cache as
`weanalysis saliency` does; against the plain forward pass of the untouched network, NCHW, without gradients. One
process, one thread, both ways; the images are read from memory. The rounds alternate.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import tempfile
import time
from datetime import date

import torch

from weanalysis.cli.options import parse_triple
from weanalysis.loading import load_data
from weanalysis.models import load_network
from weanalysis.saliency import saliency_maps


class _InMemory:
    """The images of a data set, read once, as what `saliency_maps` takes."""

    def __init__(self, data: object):
        images, targets = data.batch(0, len(data))  # type: ignore[attr-defined]
        self.items = list(zip(images, targets.tolist(), strict=True))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.items[index]


def main() -> None:
    """Print the seconds of each round, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--weights", default="none")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--mean")
    parser.add_argument("--std")
    parser.add_argument("--images", type=int, default=250)
    parser.add_argument("--layers", default="layer*")
    parser.add_argument("--batch-size", type=int, default=50, help="of the forward pass")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load_network(given.model, given.weights, num_classes=10 if given.weights == "none" else None)
    data = load_data(
        given.data, parse_triple("mean", given.mean), parse_triple("std", given.std), None, given.images, 0, model
    )
    images, _ = data.batch(0, len(data))
    in_memory = _InMemory(data)
    seconds: dict[str, list[float]] = {"forward": [], "saliency": []}
    # Processor time of this one-threaded process: what else runs on the machine counts less.
    for _ in range(given.rounds):
        began = time.process_time()
        with torch.no_grad():
            for batch in images.split(given.batch_size):
                model.net(batch)
        seconds["forward"].append(time.process_time() - began)
        with tempfile.TemporaryDirectory() as cache:
            began = time.process_time()
            maps = saliency_maps(model, in_memory, layers=given.layers, cache=cache).maps
            seconds["saliency"].append(time.process_time() - began)
    ratios = [slow / fast for slow, fast in zip(seconds["saliency"], seconds["forward"], strict=True)]
    num_kernels = sum(math.prod(layer.shape) for layer in maps.layers)
    print(f"{date.today()}, {platform.processor() or platform.machine()}, torch {torch.__version__}")
    print(
        f"{model.name} ({model.weights}), {given.data}, {len(images):,} images, one thread; {len(maps.criteria)} "
        f"criteria, {num_kernels:,} kernels of {len(maps.layers)} layers"
    )
    for name, values in seconds.items():
        print(
            f"{name:>8}: median {statistics.median(values):.2f} s of processor time "
            f"({', '.join(f'{value:.2f}' for value in values)})"
        )
    print(f"   ratio: median {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) forward passes")


if __name__ == "__main__":
    main()
