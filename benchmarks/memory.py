"""Peak memory of a study against the number of images and of ablations: it should be flat.

    python benchmarks/memory.py            # minutes
    python benchmarks/memory.py --quick
    python benchmarks/memory.py --evaluate screened -o docs/speed.md

Each measurement is a process of its own (its largest resident set). The ablations are kernels of the deepest layer
of a ResNet-20, whose cost is small, so that many of them can be had; images are random.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

CHILD = """
import json, resource, sys, tempfile
import numpy as np, torch
from dataclasses import dataclass
from weanalysis.ablation import Study, ablate, studies
from weanalysis.cache import Cache
from weanalysis.data import GivenImages
from weanalysis.models import build

num_images, num_ablations = map(int, sys.argv[1:3])
torch.set_num_threads(1)

class Random(torch.utils.data.Dataset):
    def __len__(self):
        return num_images
    def __getitem__(self, index):
        return torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index)), index % 10

net = build({"source": "builtin", "name": "resnet20", "num_classes": 10, "options": {}})
whole = studies.location(net, "all", layers="layer3.*")
kept = tuple(sorted(whole.ablations, key=lambda a: -a.depth)[:num_ablations])
study = Study("location", {"of": num_ablations}, kept, layers=whole.layers)
with tempfile.TemporaryDirectory() as folder:
    ablate(net, Random(), study, cache=Cache(__import__("pathlib").Path(folder)), jobs=1, evaluate=sys.argv[3])
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
"""


def peak_mib(num_images: int, num_ablations: int, evaluate: str) -> float:
    """Run a study in a process of its own and return its largest resident set in MiB."""
    words = [sys.executable, "-c", CHILD, str(num_images), str(num_ablations), evaluate]
    return float(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))


def main() -> None:
    """Print a row for each size, and the growth over the smallest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images and ablations")
    parser.add_argument("--evaluate", default="exact")
    parser.add_argument("-o", type=Path, metavar="PAGE", help="add the table to a page")
    given = parser.parse_args()
    quick = given.quick
    most = 1_000 if quick else 10_000
    sizes = [(most // 10, 100), (most, 100), (250, most // 100), (250, most)]
    lines = [
        f"Peak memory of a study, `--evaluate {given.evaluate}`, one process. {date.today()}, "
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}.",
        "",
        "| images | ablations | peak MiB | against |",
        "| --- | --- | --- | --- |",
    ]
    print("\n".join(lines))
    first = None
    for place, (num_images, num_ablations) in enumerate(sizes):
        peak = peak_mib(num_images, num_ablations, given.evaluate)
        first = peak if place % 2 == 0 else first
        assert first is not None
        lines.append(f"| {num_images:,} | {num_ablations:,} | {peak:.0f} | {peak / first:.2f} |")
        print(lines[-1], flush=True)
    if given.o is not None:
        given.o.write_text((given.o.read_text() + "\n" if given.o.exists() else "") + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
