"""A cache as much work leaves it: 100 studies with 1,000,000 ablations, and the maps, curves and runs beside them.

Nothing is measured for it: all is made up, and written as studies, `saliency`, `prune` and training write it.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from weanalysis.ablation.evaluate import Measured
from weanalysis.cache import Cache
from weanalysis.data import load_data
from weanalysis.results import Store
from weanalysis.results.pruning import save_curve
from weanalysis.results.saliency import MappedLayer, SaliencyMaps, save_maps
from weanalysis.results.statistics import drop_table
from weanalysis.results.store import Writer

NUM_STUDIES, NUM_ROWS = 100, 1_000_000
SHARD, NUM_IMAGES, CLASSES = 175, 700, 10  # of the 719 digits that there are, so that pages have pictures to show
WEIGHTS = "benchmark"
CRITERIA = ("magnitude", "l1", "l2", "taylor", "fisher", "obd")
NUM_SEEDS, NUM_EPOCHS = 5, 200
# Of ten studies, which kind each is of; studies are numbered from 0.
KINDS = ("location",) * 5 + ("channel",) + ("magnitude",) * 3 + ("multiplier",)


def layers() -> list[tuple[str, int, int]]:
    """Return (name, output channels, input channels) of ResNet-110's 3x3 layers."""
    convolutions = [("conv1", 16, 3)]
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range(18):
            first = width // 2 if stage > 1 and block == 0 else width
            convolutions += [
                (f"layer{stage}.{block}.conv1", width, first),
                (f"layer{stage}.{block}.conv2", width, width),
            ]
    return convolutions


def location_plan(num_rows: int) -> pd.DataFrame:
    """Return kernels on equidistant channels of every layer, as many as asked for."""
    side = int(np.ceil(np.sqrt(num_rows / (len(layers()) - 1))))
    rows = [
        (layer, depth, "kernel", out, into)
        for depth, (layer, num_out, num_in) in enumerate(layers())
        for out in np.unique(np.linspace(0, num_out - 1, side).round().astype(int)).tolist()
        for into in np.unique(np.linspace(0, num_in - 1, side).round().astype(int)).tolist()
    ]
    return pd.DataFrame(rows[:num_rows], columns=["layer", "depth", "selection", "out_channel", "in_channel"])


def channel_plan() -> pd.DataFrame:
    """Return every filter and every input channel of every layer."""
    rows = [
        (layer, depth, selection, *((channel, None) if selection == "filter" else (None, channel)))
        for depth, (layer, num_out, num_in) in enumerate(layers())
        for selection, count in (("filter", num_out), ("input channel", num_in))
        for channel in range(count)
    ]
    return pd.DataFrame(rows, columns=["layer", "depth", "selection", "out_channel", "in_channel"])


def magnitude_plan(num_rows: int) -> pd.DataFrame:
    """Return 100 percentiles of layer after layer."""
    rows = [
        (layer, depth, "single", float(percentile), 0)
        for depth, (layer, _, _) in enumerate(layers())
        for percentile in range(1, 101)
    ]
    return pd.DataFrame(rows[:num_rows], columns=["layer", "depth", "selection", "percentile", "draw"])


def multiplier_plan(num_rows: int) -> pd.DataFrame:
    """Return the lowest and the highest channel everywhere and by layer, and curves over ranks with random draws."""
    rows: list[tuple[Any, ...]] = [(None, None, end, None, None) for end in ("lowest", "highest")]
    rows += [
        (layer, depth, end, None, None) for depth, (layer, _, _) in enumerate(layers()) for end in ("lowest", "highest")
    ]
    rows += [
        (None, None, selection, fraction / 100, draw)
        for draw in range(100)
        for fraction in range(1, 101)
        for selection in (("lowest", "highest", "random") if draw == 0 else ("random",))
    ]
    return pd.DataFrame(rows[:num_rows], columns=["layer", "depth", "selection", "fraction", "draw"])


def plans() -> dict[str, pd.DataFrame]:
    """Return the rows of a study of each kind, so many that all studies have `NUM_ROWS` of them."""
    each = NUM_ROWS // NUM_STUDIES
    made = {"channel": channel_plan(), "magnitude": magnitude_plan(each), "multiplier": multiplier_plan(each)}
    # A network has no more channels than it has; studies of its kernels make up for it.
    others = sum(KINDS.count(kind) * len(plan) for kind, plan in made.items())
    return made | {"location": location_plan((len(KINDS) * each - others) // KINDS.count("location"))}


def make_cache(cache: Cache) -> int:
    """Fill a cache, and return how many ablations it holds."""
    generator = np.random.default_rng(0)
    num_rows = make_studies(cache, generator)
    make_weights(cache, generator)
    make_saliency(cache, generator)
    make_pruning(cache)
    make_runs(cache, generator)
    return num_rows


def make_studies(cache: Cache, generator: np.random.Generator) -> int:
    """Write the studies, all of other networks on the same images, and return how many ablations these are."""
    data = load_data("digits", cache=cache)
    served = np.argsort(data.ids)[:NUM_IMAGES]
    ids_of_images, targets = np.asarray(data.ids)[served], np.asarray(data.targets)[served]
    keyed, num_rows = {}, 0
    for kind, table in plans().items():
        rows = table.astype(object).where(table.notna(), None).assign(num_weights=9).to_dict("records")
        keyed[kind] = [(f"{kind}{list(row.values())}", row) for row in rows]
    with Writer.open(cache.results) as writer, Store.open(cache.results) as store:
        for number in range(NUM_STUDIES):
            kind = KINDS[number % len(KINDS)]
            about = {
                "model": "resnet110",
                "weights": "made.safetensors",
                "data": "digits",
                "command": "weanalysis ablate",
                "layers": [name for name, _, _ in layers()],
            }
            settings = {
                "weights_hash": WEIGHTS,
                "evaluate": "exact",
                "shard_size": SHARD,
                "seed": 0,
                "fingerprint": "made",
                "number": number,
            }
            context = writer.context({**about, **settings})
            name = f"made-{kind}-{number}"
            study = writer.begin_study(context, name, kind, name, "top1", NUM_IMAGES, keyed[kind], about)
            ids = store.ablation_ids(study)
            steps = NUM_IMAGES // SHARD
            for done in range(steps):
                own = slice(done * SHARD, (done + 1) * SHARD)
                shard = made_shard(generator, done * SHARD, targets[own], len(ids))
                writer.write(context, ids, ids_of_images[own], shard, study, (done + 1) * len(ids), steps * len(ids))
            writer.set_state(study, "complete", steps * len(ids), steps * len(ids))
            num_rows += len(ids)
    return num_rows


def made_shard(generator: np.random.Generator, start: int, targets: np.ndarray, num_ablations: int) -> Measured:
    """Return a shard in which an ablation changes about one image of the shard, few of them many."""
    predictions = np.where(generator.random(SHARD) < 0.9, targets, (targets + 1) % CLASSES)
    counts = np.minimum(generator.geometric(0.5, num_ablations) - 1, 20)
    ends = np.cumsum(counts)
    # Distinct places for one ablation: consecutive ones from a random first.
    firsts = generator.integers(0, SHARD, num_ablations)
    positions = (np.repeat(firsts, counts) + np.arange(ends[-1]) - np.repeat(ends - counts, counts)) % SHARD
    right = predictions[positions] == targets[positions]
    classes = np.where(right, (targets[positions] + 2) % CLASSES, targets[positions])
    return Measured(
        start,
        start + SHARD,
        targets,
        predictions,
        (2 + (predictions == targets)).astype(np.uint8),
        counts,
        positions,
        classes,
        np.where(right, 2, 3),
        largest_difference=1e-6,
        seconds=1.0,
    )


def make_weights(cache: Cache, generator: np.random.Generator) -> None:
    """Write the weights and the multipliers of LWE that the studies left of their network."""
    cache.weights.mkdir(exist_ok=True)
    weights = {
        f"{name}.weight": generator.normal(size=(out, into, 3, 3)).astype(np.float32) for name, out, into in layers()
    }
    save_file(weights, cache.weights_file(WEIGHTS))
    multipliers = {name: generator.beta(3, 5, size=(out, into)).astype(np.float32) for name, out, into in layers()}
    save_file(multipliers, cache.multipliers_file(WEIGHTS))


def make_saliency(cache: Cache, generator: np.random.Generator) -> None:
    """Write the scores of every kernel, channel and layer by some criteria."""
    mapped = tuple(
        MappedLayer(name, depth, "plain", 1, (out, into), (3, 3)) for depth, (name, out, into) in enumerate(layers())
    )
    shape_of = {
        "kernel": lambda layer: layer.shape,
        "filter": lambda layer: layer.shape[:1],
        "input channel": lambda layer: layer.shape[1:],
        "layer": lambda layer: (),
    }
    scores = {
        (criterion, unit): {
            layer.name: np.asarray(generator.lognormal(size=shape(layer)), np.float32) for layer in mapped
        }
        for criterion in CRITERIA
        for unit, shape in shape_of.items()
    }
    about = {
        "model": "resnet110",
        "data": "digits",
        "num_images": NUM_IMAGES,
        "weights_hash": WEIGHTS,
        "created": 1.0,
        "lacking": {},
        "formulas": dict.fromkeys(CRITERIA, "made up"),
        "sources": dict.fromkeys(CRITERIA, "nowhere"),
    }
    save_maps(SaliencyMaps(mapped, CRITERIA, about, scores), cache.saliency_file(WEIGHTS))


def make_pruning(cache: Cache) -> None:
    """Write a curve of nineteen sparsities by each criterion."""
    shares = np.arange(1, 20) / 20
    num_kernels = sum(out * into for _, out, into in layers())
    for place, criterion in enumerate(CRITERIA):
        lost = (0.8 * NUM_IMAGES * shares ** (2 + place)).astype(int)
        counted = pd.DataFrame({"num_images": NUM_IMAGES, "num_correct": 630, "lost": lost, "gained": 2})
        table = drop_table(counted).drop(columns=["num_correct", "lost", "gained"])
        table = table.assign(
            sparsity=shares,
            num_units=num_kernels,
            num_pruned=(num_kernels * shares).astype(int),
            num_params=9 * num_kernels,
            num_nonzero=9 * (num_kernels - (num_kernels * shares).astype(int)),
            gflops=0.25,
            num_flipped=lost + 2,
            loss_intact=0.5,
            loss=0.5 + shares,
            loss_drop=shares,
            loss_low=0.9 * shares,
            loss_high=1.1 * shares,
        )
        about = {
            **{"by": criterion, "source": criterion, "unit": "kernel", "scope": "network", "metric": "top1"},
            **{"model": "resnet110", "weights": "made.safetensors", "weights_hash": WEIGHTS, "fingerprint": "made"},
            **{"data": "digits", "num_images": NUM_IMAGES, "seed": 0, "created": float(place)},
            "layers": [name for name, _, _ in layers()],
            "command": f"weanalysis prune --by {criterion}",
            "intact_params": {"num_params": 9 * num_kernels, "num_nonzero": 9 * num_kernels, "gflops": 0.25},
        }
        save_curve(cache, about, table)


def make_runs(cache: Cache, generator: np.random.Generator) -> None:
    """Write the logs of trainings of two networks, each with and without LWE, some seeds of either."""
    for model in ("resnet20", "resnet110"):
        for excitation in ("none", "lwe"):
            for seed in range(NUM_SEEDS):
                folder = cache.runs / f"{model}-{excitation}-{seed}"
                folder.mkdir(parents=True)
                recipe = {"model": model, "data": "digits", "excitation": excitation, "epochs": float(NUM_EPOCHS)}
                created = datetime(2026, 1, 1 + seed, tzinfo=UTC).isoformat()
                described = {"created": created, "recipe": {**recipe, "seed": seed}, "image_size": 32}
                (folder / "recipe.json").write_text(json.dumps(described))
                metrics = made_metrics(generator)
                metrics.to_csv(folder / "metrics.csv", index=False)
                best = {"top1": metrics["val_top1"].iloc[-1], "best_top1": metrics["val_top1"].max()}
                ended = {**best, "best_epoch": NUM_EPOCHS, "epochs": float(NUM_EPOCHS), "seconds": 10.0}
                (folder / "result.json").write_text(json.dumps(ended))


def made_metrics(generator: np.random.Generator) -> pd.DataFrame:
    """Return what a training that learns writes, a row an epoch."""
    epoch = np.arange(1, NUM_EPOCHS + 1)
    top1 = 95 - 70 * np.exp(-epoch / 20) + generator.normal(0, 0.4, NUM_EPOCHS)
    return pd.DataFrame(
        {
            "epoch": epoch,
            "step": 33 * epoch,
            "seconds": 20.0 * epoch,
            "learning_rate": 0.025 * (1 + np.cos(np.pi * epoch / NUM_EPOCHS)) / 2,
            "train_loss": 2.3 * np.exp(-epoch / 25) + 0.5,
            "train_top1": top1 - 3,
            "train_top5": np.minimum(top1 + 2, 100),
            "val_loss": 2.3 * np.exp(-epoch / 20) + 0.4,
            "val_top1": top1,
            "val_top5": np.minimum(top1 + 4, 100),
            "peak_memory_gib": 0.5,
        }
    )
