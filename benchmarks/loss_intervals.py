"""Whether the intervals of D of the loss hold 95 %: images of a kept study are drawn again and again.

    python benchmarks/loss_intervals.py --cache cache --study 1

The changes of each image's loss under each ablation, as a study has kept them, are taken for all images that there are.
From these, `--images` are drawn with replacement, `--draws` times for each ablation, and Student's interval of the mean
is held to the mean of all. Losses are skewed: most images change next to nothing, and a few a lot.
"""

from __future__ import annotations

import argparse

import numpy as np

from weanalysis.cache import find_cache
from weanalysis.results import Store
from weanalysis.results.statistics import mean_change


def coverage(changes: np.ndarray, num_images: int, num_draws: int, rng: np.random.Generator) -> tuple[float, float]:
    """How often an interval from `num_images` drawn lies below the mean of all `changes` (N,), and how often above."""
    true = changes.mean()
    drawn = changes[rng.integers(len(changes), size=(num_draws, num_images))]
    _, low, high, _ = mean_change(num_images, drawn.sum(1), (drawn**2).sum(1))
    return float((high < true).mean()), float((low > true).mean())


def main() -> None:
    """Print how often the interval holds, over all ablations of a study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache")
    parser.add_argument("--study", type=int, required=True)
    parser.add_argument("--images", default="250,2000", help="sizes of the samples")
    parser.add_argument("--draws", type=int, default=400)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    with Store.open(find_cache(given.cache).results) as store:
        table = store.table(given.study, "loss")
        kept = [store.value_changes(given.study, position, "loss") for position in range(len(table))]
    changes = [one["after"] - one["before"] for one in kept]
    skewness = [((one - one.mean()) ** 3).mean() / max(one.std() ** 3, 1e-30) for one in changes]
    print(f"{len(changes)} ablations, {len(changes[0])} images; skewness {np.median(np.abs(skewness)):.1f} (median)")
    for num_images in map(int, given.images.split(",")):
        below, above = np.transpose([coverage(one, num_images, given.draws, rng) for one in changes])
        held = 1 - below - above
        print(
            f"{num_images} images: {held.mean():.1%} hold ({np.quantile(held, 0.05):.1%} of the ablation at the 5 % "
            f"quantile, {held.min():.1%} of the worst); {below.mean():.1%} lie below, {above.mean():.1%} above"
        )


if __name__ == "__main__":
    main()
