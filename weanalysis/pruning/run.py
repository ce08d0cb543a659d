"""From a network, a ranking of its units and a sparsity to a pruned network, and what that costs in accuracy."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from weanalysis.ablation.inputs import UNNAMED_SOURCE, as_model, checkpoint_of, excitation_kind
from weanalysis.ablation.preparation import prepare_on
from weanalysis.ablation.studies import Layer, find_layers
from weanalysis.ablation.studies.layers import select_layers
from weanalysis.cache import Cache, find_cache
from weanalysis.data import as_images
from weanalysis.devices import find_devices
from weanalysis.errors import ModelError, StoreError, StudyError, unknown_name
from weanalysis.models import Model, build
from weanalysis.models.pruned import sizes_of
from weanalysis.provenance import called_as
from weanalysis.pruning.channels import find_groups, group_scores, remove_channels
from weanalysis.pruning.curve import curve_table
from weanalysis.pruning.units import Scope, Scores, Unit, choose_lowest, scores_of_criterion, scores_of_study
from weanalysis.results import Store
from weanalysis.results.pruning import save_curve
from weanalysis.saliency import CRITERIA, saliency_maps
from weanalysis.tasks import default_metric, find_metric

# What `by` is for the measured D of a study.
DROP = "drop"

CURVE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Pruned:
    """A pruned network, and the curve of accuracy over sparsity.

    `table` has a row a sparsity: sparsity (asked), num_units, num_pruned, num_params, num_nonzero and gflops (of one
    image; masks alone save none) of the pruned network, intact, ablated, drop, drop_low, drop_high (Tango's paired
    interval), p_value (McNemar), q_value, num_images, num_flipped; of masks they are of the mean IoU, with its
    linearized interval; and of the mean loss in nats loss_intact, loss, loss_drop (its increase), loss_low and
    loss_high (Student's t). `about` says how it was pruned (JSON); `path` is the file that keeps both in the cache,
    None where that could not be written.

    >>> from torch import rand
    >>> from weanalysis.data.images import load_data
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    >>> pruned = prune(net, load_data("digits", num_images=20), by="l1", sparsity=0.25, curve=())
    >>> pruned.table.loc[0, ["num_units", "num_pruned"]].tolist(), int((pruned.model.net[0].weight == 0).sum())
    ([24, 6], 54)
    """

    model: Model
    table: pd.DataFrame
    about: dict[str, Any]
    path: Path | None = None


def prune(
    model: Model | nn.Module,
    data: Any,
    by: str = "taylor",
    sparsity: float = 0.5,
    unit: Unit = "kernel",
    scope: Scope = "network",
    *,
    layers: str | None = None,
    study: str | int | None = None,
    metric: str | None = None,
    curve: Sequence[float] = CURVE,
    cache: Cache | str | None = None,
    device: str = "auto",
    batch_size: int = 50,
    report: Callable[[int, int, float], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Pruned:
    """Prune the units with the lowest scores, and measure the accuracy at several sparsities on the same images.

    `by`: a criterion of `saliency.CRITERIA`, or "drop", the D that `study` (its number or name) measured for every
    unit, in `metric` (by default the study's own). `unit` "kernel" sets whole kernels to 0 (masks,
    torch.nn.utils.prune); "channel" removes filters with all that reads them, so that shapes become smaller
    (Torch-Pruning). `sparsity` and `curve` are shares of the units, ranked
    over the whole network or, with `scope` "layer", in each layer. An excited network is pruned in its folded weights;
    the network given is not changed. Nothing is trained afterwards. The curve is kept in the cache. Raises
    WeanalysisError for unusable input.

    >>> import weanalysis as wa
    >>> model = wa.load_model("resnet20", weights="none", num_classes=10)
    >>> data = wa.load_data("digits", image_size=16, num_images=20)
    >>> pruned = prune(model, data, by="l1", sparsity=0.5, curve=())
    >>> pruned.table[["num_units", "num_pruned"]].values.tolist()
    [[29744, 14872]]
    """
    command = called_as(prune, locals())
    say = say or (lambda line: None)
    _check(by, sparsity, unit, scope, study, metric, curve, batch_size)
    device = find_devices(device)[0]
    cache = (cache if isinstance(cache, Cache) else find_cache(cache)).ready()
    given, images = as_model(model), as_images(data)
    prepared = prepare_on(given, images, batch_size)
    plain = prepared.model
    for note in prepared.notes:
        say(note)
    selected = select_layers(find_layers(plain.net), layers, [])
    if by == DROP:
        scores, source = _scores_of_study(cache, str(study), metric, selected, plain.weights_hash, unit)
    else:
        maps = saliency_maps(given, images, by, layers, cache=cache, device=device, batch_size=None, say=say).maps
        scores, source = scores_of_criterion(maps, by, unit), by
    if left_out := [layer.name for layer in selected if layer.name not in scores]:
        say(f"not pruned, since {source} says nothing of them: {', '.join(left_out)}")
    first, _ = images.batch(0, 2)
    scores = scores if unit == "kernel" else _scores_of_groups(plain, first, scores, source, say)

    asked = sorted({*curve, sparsity})
    choices = [choose_lowest(scores, share, scope) for share in asked]
    make = _masked if unit == "kernel" else _smaller(first)
    nets = [make(plain.net, chosen).to(device).eval() for chosen in choices]
    table = curve_table([plain.net, *nets], prepared.conduct, images, device, batch_size, report, say)
    counted = _counted(choices, nets, first[:1])
    table = table.assign(sparsity=asked, **counted)[["sparsity", *counted, *table.columns]]
    about = {
        **{"by": by, "source": source, "unit": unit, "scope": scope, "sparsity": sparsity, "layers": list(scores)},
        **{
            "metric": default_metric(images.task),
            "data": images.spec,
            "num_images": len(images),
            "intact_params": _sizes(plain.net, first[:1]),
        },
        **{"of": plain.weights, "of_weights_hash": plain.weights_hash, "command": command},
    }
    path = _kept(cache, given, plain, images, about | {"study": study, "ranked_in": metric}, table, say)
    return Pruned(_pruned_model(plain, nets[asked.index(sparsity)], table, about), table, about, path)


def _kept(
    cache: Cache,
    given: Model,
    plain: Model,
    images: Any,
    about: Mapping[str, Any],
    table: pd.DataFrame,
    say: Callable[[str], None],
) -> Path | None:
    """Keep the curve in the cache, with all that it hangs on; say so where that fails, and nothing else is lost."""
    record = {
        **about,
        "model": given.name,
        "weights": plain.weights,
        "weights_hash": plain.weights_hash,
        "architecture": plain.architecture,
        "checkpoint": checkpoint_of(given),
        "excitation": excitation_kind(given),
        "fingerprint": images.fingerprint,
        "seed": images.seed,
        "created": time.time(),
    }
    try:
        return save_curve(cache, record, table)
    except StoreError as error:
        say(f"not kept: {error}")
        return None


def _scores_of_study(
    cache: Cache, study: str, metric: str | None, layers: list[Layer], weights_hash: str, unit: Unit
) -> tuple[Scores, str]:
    """The D that a study of this network measured for every unit, and how that is called."""
    with Store.open(cache.results) as store:
        number = store.find(study)
        scores = scores_of_study(store, number, layers, weights_hash, unit, metric)
        of = "" if metric is None else f" of {metric}"
        return scores, f"D{of} of study {store.describe(number)['name']}"


def _scores_of_groups(plain: Model, images: Tensor, scores: Scores, source: str, say: Callable[[str], None]) -> Scores:
    """The scores of channels that must go at once, those of several layers as one; raise StudyError where none can."""
    groups, skipped = find_groups(plain.net.cpu(), images)
    scores = group_scores(groups, scores)
    if skipped:
        few = "; ".join(f"{name}: {why}" for name, why in skipped[:3])
        say(f"no channel is removed from {len(skipped)} group{'s' * (len(skipped) > 1)} of layers: {few}")
    if not scores:
        raise StudyError(f"{source} ranks no channels that can be removed; choose other --layers, or prune kernels")
    return scores


def _pruned_model(plain: Model, net: nn.Module, table: pd.DataFrame, about: Mapping[str, Any]) -> Model:
    """The network that was asked for, with a note of what pruning it cost."""
    unit, row = about["unit"], table[table["sparsity"] == about["sparsity"]].iloc[0]
    share = f"{row['num_pruned']:,.0f} of {row['num_units']:,.0f}"
    score = find_metric(about["metric"]).label
    accuracy = f"{score} {row['ablated']:.2f} % instead of {row['intact']:.2f} %"
    words = f"{share} {unit}s pruned by {about['source']}: {accuracy}"
    return replace(
        plain,
        net=net,
        checkpoint=None,
        architecture=_architecture(plain, net, unit),
        weights=f"{plain.weights}, pruned",
        notes=[*plain.notes, f"{words} on {about['num_images']:,} images of {about['data']}"],
    )


def _check(
    by: str,
    sparsity: float,
    unit: str,
    scope: str,
    study: object,
    metric: str | None,
    curve: Sequence[float],
    batch_size: int,
) -> None:
    if metric is not None:
        find_metric(metric)
        if by != DROP:
            raise StudyError(f"a metric is for --by {DROP}; leave it out, or prune by {DROP} instead of {by}")
    if by != DROP and by not in CRITERIA:
        raise StudyError(unknown_name("ranking", by, [DROP, *CRITERIA]))
    if by == DROP and study is None:
        raise StudyError(
            "to prune by the measured D say which study measured it: --study NAME, a number or a name "
            "that `weanalysis list` shows"
        )
    if by != DROP and study is not None:
        raise StudyError(f"a study is for --by {DROP}; leave it out, or prune by {DROP} instead of {by}")
    if unit not in get_args(Unit):
        raise StudyError(unknown_name("unit", unit, get_args(Unit)))
    if scope not in get_args(Scope):
        raise StudyError(unknown_name("scope", scope, get_args(Scope)))
    for share in (sparsity, *curve):
        if not 0 < share < 1:
            raise StudyError(f"a sparsity of {share:g} is not allowed: give a share between 0 and 1, such as 0.5")
    if batch_size < 1:
        raise StudyError(f"a batch size of {batch_size} is not allowed: give 1 or more")


def _masked(net: nn.Module, chosen: Mapping[str, NDArray[np.bool_]]) -> nn.Module:
    """Return a copy of `net` whose chosen kernels are 0."""
    masked = copy.deepcopy(net)
    for name, marks in chosen.items():
        conv: Any = masked.get_submodule(name)
        mask = torch.from_numpy(~marks).reshape(*marks.shape, *[1] * (conv.weight.dim() - 2)).expand_as(conv.weight)
        torch_prune.custom_from_mask(conv, "weight", mask.to(conv.weight))
        torch_prune.remove(conv, "weight")
    return masked


def _smaller(images: Tensor) -> Callable[[nn.Module, Mapping[str, NDArray[np.bool_]]], nn.Module]:
    def remove(net: nn.Module, chosen: Mapping[str, NDArray[np.bool_]]) -> nn.Module:
        return remove_channels(net, images, {name: np.flatnonzero(marks).tolist() for name, marks in chosen.items()})

    return remove


def _counted(
    choices: Sequence[Mapping[str, NDArray[np.bool_]]], nets: Sequence[nn.Module], image: Tensor
) -> dict[str, list[float]]:
    """Of each choice of units, how many there are and how many go, and the size of what is left."""
    sizes = [_sizes(net.cpu(), image) for net in nets]
    return {
        "num_units": [sum(marks.size for marks in chosen.values()) for chosen in choices],
        "num_pruned": [sum(int(marks.sum()) for marks in chosen.values()) for chosen in choices],
        **{name: [one[name] for one in sizes] for name in ("num_params", "num_nonzero", "gflops")},
    }


def _sizes(net: nn.Module, image: Tensor) -> dict[str, float]:
    """Count parameters, those that are not 0, and one image's multiply-accumulates (10^9); NaN where that fails."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(image)
    parameters = list(net.parameters())
    return {
        "num_params": sum(p.numel() for p in parameters),
        "num_nonzero": sum(int(p.count_nonzero()) for p in parameters),
        "gflops": counter.get_total_flops() / 2e9 or math.nan,
    }


def _architecture(plain: Model, net: nn.Module, unit: Unit) -> dict[str, Any]:
    """Describe the pruned network so that it can be built again; a caller's own module cannot be."""
    if unit == "kernel" or plain.architecture.get("source") == UNNAMED_SOURCE:
        return plain.architecture
    original = build({key: value for key, value in plain.architecture.items() if key != "pruned"})
    try:
        return {**plain.architecture, "pruned": sizes_of(net, original)}
    except ModelError as error:
        raise StudyError(f"{plain.name} cannot be rebuilt after this ({error}); prune kernels instead") from error
