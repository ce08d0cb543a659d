"""Write docs/saliency.md: a location study with all its intervals, and how well each criterion predicts its D.

    python benchmarks/agreement.py --weights net.th --data imagefolder:DIR --mean R,G,B --std R,G,B --images 2000

Without arguments: a ResNet-20 trained here on digits. What is in the cache already (--cache) is not measured again.
"""

from __future__ import annotations

import argparse
import platform
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from weanalysis.ablation import ablate
from weanalysis.ablation.preparation import prepare_on
from weanalysis.cache import find_cache, write_atomically
from weanalysis.cli.options import parse_triple
from weanalysis.loading import load_data, load_model
from weanalysis.results import Store
from weanalysis.results.findings import FALSE_DISCOVERY_RATE
from weanalysis.results.statistics import agreement_table, change_matrix, rank_agreement
from weanalysis.saliency import CRITERIA, saliency_maps, scored_study

TOP = 0.1

PAGE = """# How well saliency criteria predict the measured D

Made by one command, which measures what the cache does not hold yet:

<!-- not run: needs data -->
```sh
{command}
```

{network}, {num_images:,} images of {data}, a {grid} grid of kernels in each 3x3 layer:
{num_places:,} locations. Intact top-1: {intact:.2f} %. {today}, {machine}, torch {torch}.

## D of the locations

| | locations |
| --- | --- |
| measured, each with a paired 95 % interval (Tango) | {num_places:,} |
| D above 0 after correction (exact McNemar test, false discovery rate {rate:.0%}) | {worse:,} |
| D below 0 after correction: removing them helps | {better:,} |
| interval without 0, uncorrected | {uncorrected:,} |
| no image flipped | {silent:,} |

All {num_places:,} intervals are at the end of this page.

## Each criterion against D

Rank correlations over all {num_places:,} locations with 95 % intervals, for which the layers are the sample: places of
one layer resemble each other, so that one layer is left out at a time; the share of the {top_k:.0f} locations of
largest D that is among the {top_k:.0f} of largest score, where random scores reach {chance:.0%}; and Spearman's
correlation within layers: the median over layers, and how many of them are above 0
at a false discovery rate of {rate:.0%}.

| criterion | Spearman | Kendall | top {top:.0%} shared | in layers: median | above 0 | Spearman with images flipped |
| --- | --- | --- | --- | --- | --- | --- |
{agreement}

Scores have no sign, but D has: the last column compares them with how many images turned right or wrong. Whether D goes
with the scores or against them hangs on the images: those near a decision are shared by all kernels.
D itself is noisy: between D on one half of the images and D on the other, Spearman's correlation is {halves}. The
scores were computed on the same images as D, so that they are a little flattered; on other images they may agree less.
{lacking}

## Each criterion against D of the loss

The same study, by the loss (`weanalysis saliency --against loss`): D is the increase of the mean cross-entropy, which
changes with nearly every kernel. It differs from 0 after correction (Student's t over images, false discovery rate
{rate:.0%}) at {loss_found} of {num_places:,} locations. `taylor-mean` is what the loss changes by to first order, but
for its sign: so the last column holds scores against the size of D, whichever way the loss goes.

| criterion | Spearman | Kendall | top {top:.0%} shared | in layers: median | above 0 | Spearman with the size of D |
| --- | --- | --- | --- | --- | --- | --- |
{agreement_of_loss}

| criterion | score of a kernel | source |
| --- | --- | --- |
{formulas}

## All locations

| location | D (points) | 95 % interval | q |
| --- | --- | --- | --- |
{places}
"""


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--mean")
    parser.add_argument("--std")
    parser.add_argument("--images", type=int)
    parser.add_argument("--grid", default="5x5")
    parser.add_argument("--cache")
    parser.add_argument("-o", "--output", default="docs/saliency.md")
    given = parser.parse_args()
    cache = find_cache(given.cache).ready()
    model = load_model(given.model, given.weights, data=given.data, cache=cache)
    data = load_data(
        given.data,
        parse_triple("mean", given.mean),
        parse_triple("std", given.std),
        None,
        given.images,
        0,
        model,
        cache=cache,
    )
    table = ablate(model, data, "location", grid=given.grid, cache=cache, say=print)
    study_id = table.attrs["study_id"]
    measured = saliency_maps(model, data, cache=cache, say=print)
    criteria = [name for name in measured.maps.criteria if name not in measured.lacking]
    with Store.open(cache.results) as store:
        net = prepare_on(model, data).model.net
        scored, by_loss = (scored_study(measured, net, store, study_id, metric) for metric in ("top1", "loss"))
        halves = _halves(store, study_id, len(table))
    agreement, of_loss = (agreement_table(one, criteria, TOP) for one in (scored, by_loss))
    flips = agreement_table(scored, criteria, TOP, measured="num_flipped")
    sizes = agreement_table(by_loss.assign(drop=by_loss["drop"].abs()), criteria, TOP)
    flips, sizes = (one[one["layer"].isna()].set_index("criterion") for one in (flips, sizes))
    whole, whole_of_loss = (
        one[one["layer"].isna()].sort_values("spearman", ascending=False) for one in (agreement, of_loss)
    )
    certain = table["q_value"] <= FALSE_DISCOVERY_RATE
    text = PAGE.format(
        command=_command(given),
        network=f"{model.name} ({Path(model.weights).name})",
        num_images=len(data),
        data=_named(given.data),
        grid=given.grid,
        num_places=len(table),
        intact=table.attrs["intact"],
        today=date.today(),
        machine=platform.machine(),
        torch=torch.__version__,
        rate=FALSE_DISCOVERY_RATE,
        top=TOP,
        worse=(certain & (table["drop"] > 0)).sum(),
        better=(certain & (table["drop"] < 0)).sum(),
        uncorrected=((table["drop_low"] > 0) | (table["drop_high"] < 0)).sum(),
        silent=(table["num_flipped"] == 0).sum(),
        top_k=whole["top_k"].max(),
        chance=whole["top_chance"].max(),
        agreement="\n".join(_row(row, agreement, flips.loc[row["criterion"]]) for row in whole.to_dict("records")),
        loss_found=(by_loss["q_value"] <= FALSE_DISCOVERY_RATE).sum(),
        agreement_of_loss="\n".join(
            _row(row, of_loss, sizes.loc[row["criterion"]]) for row in whole_of_loss.to_dict("records")
        ),
        halves=f"{halves.value:+.2f} ({halves.low:+.2f} to {halves.high:+.2f})",
        lacking="".join(
            f"Not in the table, since the network lacks what it needs: {line}.\n" for line in measured.lacking.values()
        ),
        formulas="\n".join(
            f"| `{name}` | {CRITERIA[name].formula.replace('|', chr(92) + '|')} | {CRITERIA[name].source} |"
            for name in criteria
        ),
        places="\n".join(_place(row) for row in table.itertuples()),
    )
    write_atomically(Path(given.output).resolve(), text.encode())
    print(f"{len(table):,} locations and {len(criteria)} criteria are in {given.output}")


def _halves(store: Store, study_id: int, num_places: int) -> object:
    """Correlate D on the even images of the study's order with D on the odd ones."""
    images = store.intact(study_id)["image_id"].to_numpy()
    changes = pd.concat([store.changes(study_id, place).assign(position=place) for place in range(num_places)])
    matrix = change_matrix(changes, images, range(num_places))
    one, other = (np.asarray(matrix[start::2].sum(axis=0)).ravel() for start in (0, 1))
    return rank_agreement(one, other)


def _row(row: dict, agreement: pd.DataFrame, unsigned: pd.Series) -> str:
    own = agreement[agreement["criterion"] == row["criterion"]].dropna(subset=["layer", "spearman"])
    above = ((own["q_value"] <= FALSE_DISCOVERY_RATE) & (own["spearman"] > 0)).sum()
    correlations = [
        f"{row[name]:+.2f} ({row[name + '_low']:+.2f} to {row[name + '_high']:+.2f})"
        for name in ("spearman", "kendall")
    ]
    cells = [
        f"`{row['criterion']}`",
        *correlations,
        f"{row['top_overlap']:.0%}",
        f"{own['spearman'].median():+.2f}",
        f"{above} of {len(own)}",
        f"{unsigned['spearman']:+.2f} ({unsigned['spearman_low']:+.2f} to {unsigned['spearman_high']:+.2f})",
    ]
    return f"| {' | '.join(cells)} |"


def _place(row: object) -> str:
    where = f"{row.layer}[{row.out_channel:.0f}, {row.in_channel:.0f}]"  # type: ignore[attr-defined]
    return (
        f"| {where} | {row.drop:+.2f} | {row.drop_low:+.2f} to {row.drop_high:+.2f} | "  # type: ignore[attr-defined]
        f"{row.q_value:.2g} |"
    )  # type: ignore[attr-defined]


def _named(data: str) -> str:
    """A data source without the folders above: they are nobody else's."""
    source, colon, place = data.partition(":")
    return source + colon + "/".join(Path(place).parts[-2:])


def _command(given: argparse.Namespace) -> str:
    words = ["python benchmarks/agreement.py", f"--model {given.model}"]
    if given.weights != "auto":
        words.append(f"--weights {Path(given.weights).name}")
    words.append(f"--data {_named(given.data)}")
    words += [f"--{name} {value}" for name in ("mean", "std", "images") if (value := getattr(given, name))]
    return " ".join([*words, f"--grid {given.grid}"])


if __name__ == "__main__":
    main()
