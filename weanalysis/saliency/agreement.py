"""Scores beside measured D: a study's table with a column a criterion, like compared with like."""

from __future__ import annotations

import numpy as np
import pandas as pd
from torch import nn

from weanalysis.ablation.studies import make_study
from weanalysis.errors import StudyError
from weanalysis.kinds import kind_of, kinds_where
from weanalysis.results import Store
from weanalysis.results.saliency import WEIGHT, SaliencyMaps
from weanalysis.saliency.measure import MeasuredMaps


def scored_kinds() -> list[str]:
    """Return the kinds of studies whose rows a criterion can score."""
    return kinds_where(lambda kind: kind.scored)


def studies_of(store: Store, weights_hash: str, study: str | None = None) -> list[int]:
    """Find the studies to compare with: the one named, or all that measured these very weights, the newest first.

    Raises StudyError for a study of other weights, or of a kind that scores do not speak of.

    >>> from weanalysis.ablation import ablate
    >>> from torch import rand
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> table = ablate(net, [(rand(3, 4, 4), k % 4) for k in range(8)], "channel", cache="cache", name="filters")
    >>> with Store.open("cache/results.sqlite") as store:
    ...     number = store.find("filters")
    ...     weights_hash = store.describe(number)["weights_hash"]
    ...     studies_of(store, weights_hash) == studies_of(store, weights_hash, "filters") == [number]
    True
    """
    if study is None:
        listed = store.studies()
        same = listed[(listed["weights_hash"] == weights_hash) & listed["kind"].isin(scored_kinds())]
        return [int(number) for number in same["id"]]
    number = store.find(study)
    about = store.describe(number)
    if about["kind"] not in scored_kinds():
        raise StudyError(
            f"{about['name']} is a {about['kind']} study, of whose rows no criterion speaks; "
            f"compare with a study of the kind {', '.join(scored_kinds())}"
        )
    if about["weights_hash"] != weights_hash:
        raise StudyError(
            f"{about['name']} measured other weights ({about['model']}, {about['weights']}) than these; "
            "give the model and the weights that the study was run with"
        )
    return [number]


def scored_study(
    measured: MeasuredMaps, net: nn.Module, store: Store, study_id: int, metric: str | None = None
) -> pd.DataFrame:
    """Return a study's table, in a metric, with a column a criterion; NaN where that says nothing of what is zeroed.

    A kernel is looked up among kernels, a filter among filters, an input channel and a layer likewise. Where ranked
    weights are zeroed, a row has the sum of its single weights' scores. `net` is the network that was scored, in plain
    weights. Raises StudyError where the plan of a study of ranked weights cannot be made again from it.

    >>> from weanalysis.ablation import ablate
    >>> from weanalysis.saliency import saliency_maps
    >>> from torch import rand
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> images = [(rand(3, 4, 4), k % 4) for k in range(8)]
    >>> table = ablate(net, images, "channel", side="out", cache="cache", name="scored")
    >>> measured = saliency_maps(net, images, "l1,taylor", cache="cache")
    >>> with Store.open("cache/results.sqlite") as store:
    ...     scored = scored_study(measured, net, store, store.find("scored"))
    >>> sums = net[0].weight.detach().abs().sum((1, 2, 3)).numpy()
    >>> np.allclose(scored["l1"], sums), scored["taylor"].notna().all().item()
    (True, True)
    """
    table = store.table(study_id, metric)
    about = store.describe(study_id)
    if kind_of(about["kind"]).scored != "weights":
        for criterion in measured.maps.criteria:
            table[criterion] = measured.maps.scores(criterion, table)
        return table
    study = make_study(about["kind"], net, **about["options"], layers=",".join(about["layers"]))
    if [ablation.num_weights for ablation in study.ablations] != table["num_weights"].tolist():
        raise StudyError(f"the plan of {about['name']} cannot be made again from this network; run the study anew")
    orders: dict[str, np.ndarray] = {}
    for criterion in measured.maps.criteria:
        sums = np.full(len(table), np.nan)
        for place, ablation in enumerate(study.ablations):
            for part in ablation.parts:
                if part.layer not in orders:
                    weight = net.get_submodule(part.layer).weight.detach()  # type: ignore[operator]
                    orders[part.layer] = weight.float().abs().cpu().numpy().ravel().argsort(kind="stable")
            sums[place] = sum(
                _sum_of_ranks(measured.weights, criterion, part.layer, orders[part.layer], part.ranks)
                for part in ablation.parts
            )
        table[criterion] = sums
    return table


def _sum_of_ranks(
    weights: SaliencyMaps, criterion: str, layer: str, order: np.ndarray, ranks: tuple[int, int] | None
) -> float:
    assert ranks is not None
    if layer not in {mapped.name for mapped in weights.layers}:
        return float("nan")
    return float(weights.of(criterion, WEIGHT, layer).ravel()[order[ranks[0] - 1 : ranks[1]]].sum(dtype=np.float64))
