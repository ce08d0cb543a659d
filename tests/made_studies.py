"""Studies that never ran: plausible lost and gained images, as tables and as they lie in a results file."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from weanalysis.ablation.evaluate import Measured
from weanalysis.ablation.evaluate.decisions import Values
from weanalysis.cache import Cache
from weanalysis.results import COLUMNS, Store
from weanalysis.results.pruning import save_curve
from weanalysis.results.saliency import MappedLayer, SaliencyMaps, save_maps
from weanalysis.results.statistics import drop_table
from weanalysis.results.store import Writer

CLASSES = 10
SHARD = 250


@cache
def digit_targets() -> np.ndarray:
    """Return the labels of the digits by their ids, and made-up ones for ids beyond them."""
    from weanalysis.data import load_data

    digits = load_data("digits")
    targets = np.random.default_rng(99).integers(0, CLASSES, 10_000)
    targets[digits.ids] = digits.targets
    return targets


def resnet20_layers() -> list[tuple[str, int, int]]:
    """Return (name, output channels, input channels) of ResNet-20's 3x3 layers."""
    layers = [("conv1", 16, 3)]
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range(3):
            first = width // 2 if stage > 1 and block == 0 else width
            layers += [(f"layer{stage}.{block}.conv1", width, first), (f"layer{stage}.{block}.conv2", width, width)]
    return layers


def location_plan(layers: list[tuple[str, int, int]] | None = None, grid: int = 5, seed: int = 0) -> pd.DataFrame:
    """Return the rows of a location study with the share of images that each kernel costs and brings."""
    generator = np.random.default_rng(seed)
    rows = []
    for depth, (layer, num_out, num_in) in enumerate(layers or resnet20_layers()):
        scale = 0.012 * np.exp(-depth / 5) + 0.0008
        for out_channel in np.unique(np.linspace(0, num_out - 1, min(grid, num_out)).round().astype(int)):
            for in_channel in np.unique(np.linspace(0, num_in - 1, min(grid, num_in)).round().astype(int)):
                rows.append(
                    {
                        "layer": layer,
                        "depth": depth,
                        "selection": "kernel",
                        "out_channel": int(out_channel),
                        "in_channel": int(in_channel),
                        "num_weights": 9,
                        "loses": generator.gamma(0.35, 3 * scale) + scale / 2,
                        "gains": scale / 2,
                    }
                )
    return pd.DataFrame(rows)


def magnitude_plan(layers: list[str] | None = None, repeats: int = 1) -> pd.DataFrame:
    """Return the rows of a magnitude study over percentiles 1 to 100: of the whole network, or of each layer."""
    return pd.DataFrame(
        [
            {
                "layer": layer,
                "depth": depth if layer else None,
                "selection": "single",
                "percentile": float(percentile),
                "draw": draw,
                "num_weights": 1 if layer else 19,
                "loses": 0.004 + 0.10 * (percentile / 100) ** 8,
                "gains": 0.005,
            }
            for depth, layer in enumerate(layers or [None])
            for percentile in range(1, 101)
            for draw in range(repeats)
        ]
    )


def multiplier_plan(layers: list[str]) -> pd.DataFrame:
    """Return the rows of a multiplier study: in all layers at once, by rank, and layer by layer."""
    costs = {"lowest": 0.01, "random": 0.1, "highest": 0.4}
    every = [("lowest", None), ("highest", None), *(("random", draw) for draw in range(3))]
    rows = [
        {"selection": selection, "draw": draw, "fraction": fraction, "loses": costs[selection] * (1 + (fraction or 0))}
        for fraction in (None, 0.1, 0.2, 0.3)
        for selection, draw in every
    ]
    rows += [
        {"layer": layer, "depth": depth, "selection": selection, "in_channel": 3, "loses": costs[selection] / 5}
        for depth, layer in enumerate(layers)
        for selection in ("lowest", "highest")
    ]
    return pd.DataFrame(rows).assign(gains=0.004, num_weights=9)


def channel_plan(layers: list[tuple[str, int, int]] | None = None, seed: int = 0) -> pd.DataFrame:
    """Return the rows of a channel study: every filter and input channel; the third of either in the first hurts."""
    generator = np.random.default_rng(seed)
    rows = []
    for depth, (layer, num_out, num_in) in enumerate(layers or resnet20_layers()):
        scale = 0.03 * np.exp(-depth / 6) + 0.002
        for selection, count, column in (("filter", num_out, "out_channel"), ("input channel", num_in, "in_channel")):
            for channel in range(count):
                hurts = depth == 0 and channel == 2
                costs = {"loses": 0.0005, "gains": 0.08} if hurts else {"gains": scale / 3}
                rows.append(
                    {
                        "layer": layer,
                        "depth": depth,
                        "selection": selection,
                        column: channel,
                        "num_weights": 9,
                        "loses": generator.gamma(0.5, 2 * scale) + scale / 4,
                        **costs,
                    }
                )
    return pd.DataFrame(rows)


def layer_plan(layers: list[str] | None = None) -> pd.DataFrame:
    """Return the rows of a layer study, of which the later layers cost less."""
    names = layers or [name for name, _, _ in resnet20_layers()]
    return pd.DataFrame(
        [
            {
                "layer": name,
                "depth": depth,
                "selection": "layer",
                "num_weights": 9,
                "loses": 0.6 / (1 + depth),
                "gains": 0.01,
            }
            for depth, name in enumerate(names)
        ]
    )


def finished(plan: pd.DataFrame, num_images: int = 2000, num_done: int | None = None, seed: int = 0) -> pd.DataFrame:
    """Return the table of a plan, of which only the first `num_done` rows were measured."""
    generator = np.random.default_rng(seed)
    measured = np.arange(len(plan)) < (len(plan) if num_done is None else num_done)
    table = plan.assign(num_images=np.where(measured, num_images, 0))
    table["num_correct"] = (0.81 * table["num_images"]).round()
    table["lost"] = generator.poisson(table["num_images"] * plan["loses"])
    table["gained"] = generator.poisson(table["num_images"] * plan["gains"])
    table = drop_table(table)
    table["study"], table["metric"], table["evaluate"] = "made", "top1", "exact"
    table["num_flipped"] = table["lost"] + table["gained"]
    table["num_evaluated"] = table["num_images"]
    table["screen_low"] = table["screen_high"] = table["drop"]
    return table.reindex(columns=list(COLUMNS))


def write_study(
    path: Path,
    kind: str,
    plan: pd.DataFrame,
    name: str,
    num_images: int = 500,
    num_shards: int | None = None,
    state: str = "complete",
    seed: int = 0,
    right: float = 0.81,
    **settings: Any,
) -> int:
    """Write a study into the results file at `path`, only `num_shards` of its shards, and return its number.

    `right` is the share of images that the intact network has right.
    """
    generator = np.random.default_rng(seed)
    labels = plan.drop(columns=["loses", "gains"])
    rows = labels.astype(object).where(labels.notna(), None).to_dict("records")
    starts = range(0, num_images, SHARD)
    about = {"model": "resnet20", "weights": "auto", "data": "digits", "command": f"weanalysis ablate --study {kind}"}
    about |= settings
    context = {"weights_hash": "", "evaluate": "exact", "shard_size": SHARD, "seed": 0, "fingerprint": "f0f0"}
    context |= settings
    with Writer.open(path) as writer, Store.open(path) as store:
        context_id = writer.context({**about, **context, "name": name})
        study_id = writer.begin_study(
            context_id,
            f"{kind}:{name}",
            kind,
            name,
            "top1",
            num_images,
            [(f"{row['layer']}|{position}", row) for position, row in enumerate(rows)],
            about,
        )
        ids = store.ablation_ids(study_id)
        done = list(starts)[:num_shards]
        for count, start in enumerate(done, start=1):
            shard = _made_shard(generator, plan, start, min(start + SHARD, num_images), right)
            image_ids = np.arange(shard.start, shard.stop)
            writer.write(context_id, ids, image_ids, shard, study_id, count, len(starts))
        writer.set_state(study_id, state, len(done), len(starts))
    return study_id


def _made_shard(generator: np.random.Generator, plan: pd.DataFrame, start: int, stop: int, share: float) -> Measured:
    count = stop - start
    targets = digit_targets()[start:stop]
    right = generator.random(count) < share
    predictions = np.where(right, targets, (targets + 1) % CLASSES)
    flips = [
        np.where(right, generator.random(count) < loses / 0.81, generator.random(count) < gains / 0.19)
        for loses, gains in zip(plan["loses"], plan["gains"], strict=True)
    ]
    after = np.where(flips, np.where(right, (targets + 2) % CLASSES, targets), predictions)
    among_five = np.ones(count, bool), np.ones(after.shape, bool)
    return made_measured(start, targets, (predictions, after), among_five, _made_losses(plan, right, start))


def made_measured(
    start: int,
    targets: np.ndarray,
    answers: tuple[np.ndarray, np.ndarray],
    among_five: tuple[np.ndarray, np.ndarray],
    losses: Values,
    **more: Any,
) -> Measured:
    """Return what the engine tells of a shard (N images) under some ablations (A).

    `answers` and whether the target is `among_five` are given of the intact network, (N,), and of each ablation,
    (A, N).
    """
    (before, after), (five_before, five_after) = answers, among_five
    changed = (after != before) | (five_after != five_before)
    correct = (after == targets) + 2 * five_after
    return Measured(
        start,
        start + len(targets),
        targets,
        before,
        ((before == targets) + 2 * five_before).astype(np.uint8),
        changed.sum(1),
        np.nonzero(changed)[1],
        after[changed],
        correct[changed],
        **{"largest_difference": 1e-6, "seconds": 0.5, "values": {"loss": losses}, **more},
    )


def _made_losses(plan: pd.DataFrame, right: np.ndarray, start: int) -> Values:
    """Losses that are small where the answer is right, and grow a little with what an ablation costs."""
    generator = np.random.default_rng([start, len(plan)])
    intact = generator.gamma(0.3, np.where(right, 0.2, 4.0))
    cost = (plan["loses"] - plan["gains"]).to_numpy()[:, None]
    changes = cost * generator.gamma(0.5, 4.0, (len(plan), len(right))) + generator.normal(0, 0.002, (1, len(right)))
    return Values(intact.astype(np.float32), changes.astype(np.float32))


def write_weights(root: Path, weights_hash: str, seed: int = 0) -> None:
    """Write the weights of ResNet-20's 3x3 layers where a study with that hash looks for them."""
    generator = np.random.default_rng(seed)
    folder = root / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        f"{name}.weight": generator.normal(scale=0.1, size=(num_out, num_in, 3, 3)).astype(np.float32)
        for name, num_out, num_in in resnet20_layers()
    }
    save_file(weights, folder / f"{weights_hash}.safetensors")


def write_multipliers(root: Path, weights_hash: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Write and return multipliers of ResNet-20's 3x3 layers where a study with that hash looks for them."""
    generator = np.random.default_rng(seed)
    multipliers = {
        name: generator.beta(3 + depth, 5, size=(num_out, num_in)).astype(np.float32)
        for depth, (name, num_out, num_in) in enumerate(resnet20_layers())
    }
    (root / "weights").mkdir(parents=True, exist_ok=True)
    save_file(multipliers, root / "weights" / f"{weights_hash}-multipliers.safetensors")
    return multipliers


def write_saliency(root: Path, weights_hash: str = "aaaa") -> SaliencyMaps:
    """Write and return saliency maps of ResNet-20's 3x3 layers, of a network without LWE, into a cache."""
    generator, criteria = np.random.default_rng(5), ("l1", "taylor")
    layers = tuple(
        MappedLayer(name, depth, "plain", 1, (num_out, num_in), (3, 3))
        for depth, (name, num_out, num_in) in enumerate(resnet20_layers())
    )
    shapes = {
        "kernel": lambda x: x.shape,
        "filter": lambda x: x.shape[:1],
        "input channel": lambda x: x.shape[1:],
        "layer": lambda x: (),
    }
    maps = {
        (name, unit): {x.name: generator.lognormal(size=shape(x)).astype(np.float32) for x in layers}
        for name in criteria
        for unit, shape in shapes.items()
    }
    lacking = {"lwe-multiplier": "no LWE"}
    about = {
        "model": "resnet20",
        "data": "digits",
        "num_images": 700,
        "weights_hash": weights_hash,
        "created": 1.0,
        "lacking": lacking,
        "formulas": dict.fromkeys(criteria, "a * formula *"),
        "sources": dict.fromkeys(criteria, "X"),
    }
    made = SaliencyMaps(layers, (*criteria, *lacking), about, maps)
    save_maps(made, root / "saliency" / f"{weights_hash}.safetensors")
    return made


def write_pruning(root: Path, **about: Any) -> list[str]:
    """Write curves of pruning into a cache, by two rankings of one network, and return the names of both."""
    names, shares = [], np.arange(1, 10) / 10
    for place, by in enumerate(("l1", "taylor")):
        lost = (600 * shares ** (2 + 2 * place)).astype(int)
        counted = pd.DataFrame({"num_images": 700, "num_correct": 630, "lost": lost, "gained": 2})
        sizes = {"num_units": 1000, "num_pruned": (1000 * shares).astype(int), "num_params": 9000, "gflops": 0.1}
        losses = {"loss_intact": 0.5, "loss": 0.5 + shares, "loss_drop": shares, "loss_low": 0.9 * shares}
        table = (
            drop_table(counted)
            .drop(columns=["num_correct", "lost", "gained"])
            .assign(sparsity=shares, **sizes, **losses)
        )
        table = table.assign(num_nonzero=9000 - 8 * table["num_pruned"], loss_high=1.1 * shares, num_flipped=lost + 2)
        settings = {"by": by, "source": by, "unit": "kernel", "scope": "network", "metric": "top1", "layers": ["conv1"]}
        network = {"model": "resnet20", "weights": "auto", "weights_hash": "aaaa", "fingerprint": "f0f0", "seed": 0}
        made = {"data": "digits", "num_images": 700, "created": float(place), "command": f"weanalysis prune --by {by}"}
        sizes = {"intact_params": {"num_params": 9000, "num_nonzero": 9000, "gflops": 0.1}}
        names.append(save_curve(Cache(root), settings | network | made | sizes | about, table).stem)
    return names


def made_metrics(epochs: int = 8, seed: int = 0, lift: float = 0.0) -> pd.DataFrame:
    """Return the metrics of a run that learns, as training writes them; `lift` adds to its final accuracy."""
    generator = np.random.default_rng(seed)
    epoch = np.arange(1, epochs + 1)
    top1 = 90 + lift - 70 * np.exp(-epoch / 2.0) + generator.normal(0, 0.6, epochs)
    return pd.DataFrame(
        {
            "epoch": epoch,
            "step": 33 * epoch,
            "seconds": 20.0 * epoch,
            "learning_rate": 0.025 * (1 + np.cos(np.pi * epoch / epochs)) / 2,
            "train_loss": 2.3 * np.exp(-epoch / 2.5) + 0.5,
            "train_top1": top1 - 3,
            "train_top5": np.minimum(top1 + 5, 100),
            "val_loss": 2.3 * np.exp(-epoch / 2.0) + 0.4,
            "val_top1": top1,
            "val_top5": np.minimum(top1 + 8, 100),
            "peak_memory_gib": 0.5,
        }
    )


def write_run(
    root: Path, name: str, epochs: int = 8, seed: int = 0, lift: float = 0.0, finished: bool = True, **recipe: Any
) -> Path:
    """Write a run folder into a cache as training leaves it."""
    folder = root / "runs" / name
    folder.mkdir(parents=True)
    recipe = {"model": "resnet20", "data": "digits", "excitation": "none", "epochs": 8.0, "seed": seed, **recipe}
    created = (datetime(2026, 1, 1, 12, tzinfo=UTC) + timedelta(days=seed)).isoformat()
    (folder / "recipe.json").write_text(json.dumps({"created": created, "recipe": recipe, "image_size": 32}))
    metrics = made_metrics(epochs, seed, lift)
    metrics.to_csv(folder / "metrics.csv", index=False)
    if finished:
        best = {
            "top1": metrics["val_top1"].iloc[-1],
            "best_top1": metrics["val_top1"].max(),
            "best_epoch": epochs,
            "epochs": 8.0,
            "seconds": 10.0,
        }
        (folder / "result.json").write_text(json.dumps(best))
    return folder


def write_runs(root: Path) -> None:
    """Write three seeds of a baseline and of LWE, one of them still in training."""
    for seed in range(3):
        write_run(root, f"baseline-{seed}", seed=seed)
        write_run(root, f"lwe-{seed}", seed=seed + 3, lift=2.0, excitation="lwe", finished=seed < 2, epochs=8 - seed)


def write_demo(root: Path) -> Path:
    """Fill a cache with a finished, a running and a layer-by-layer study, and return its results file."""
    path = root / "results.sqlite"
    names = [name for name, _, _ in resnet20_layers()]
    write_weights(root, "aaaa")
    write_saliency(root)
    known = {"weights_hash": "aaaa", "layers": names}
    write_study(path, "magnitude", magnitude_plan(names), "by layer", state="stopped", num_shards=1, **known)
    write_study(path, "magnitude", magnitude_plan(repeats=3), "baseline magnitude", num_images=2000, **known)
    write_study(
        path, "location", location_plan(seed=4), "begun location", num_images=1000, num_shards=1, state="running"
    )
    write_study(path, "location", location_plan(seed=1), "lwe location", num_images=700, seed=1, **known)
    write_study(path, "location", location_plan(), "baseline location", num_images=700, **known)
    return path


def write_channels(root: Path, **settings: Any) -> None:
    """Write a channel study and a layer study of the same network into a cache."""
    known = {"weights_hash": "aaaa", "num_images": 700, **settings}
    write_study(root / "results.sqlite", "channel", channel_plan(resnet20_layers()[:4]), "channels", **known)
    write_study(root / "results.sqlite", "layer", layer_plan(), "layers", **known)


def number(root: Path, name: str) -> int:
    """Return the number of the study of that name in a cache."""
    with Store.open(root / "results.sqlite") as store:
        return store.find(name)


def label(root: Path, name: str) -> str:
    """Return what addresses call the study of that name."""
    return str(number(root, name))


def table(root: Path, name: str) -> pd.DataFrame:
    """Return the table of the study of that name in a cache."""
    with Store.open(root / "results.sqlite") as store:
        return store.table(store.find(name))


def only(store: Store) -> int:
    """Return the number of the one study that a results file holds."""
    (number,) = store.studies()["id"]
    return int(number)
