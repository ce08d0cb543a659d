"""Networks of odd kinds: naive, exact and screened give what a plain loop gives, image by image, or refuse in one line.

The plain loop is written here, apart from the program: it makes the network anew, zeroes one set of weights, runs all
images at once and takes the largest logit. Whatever happens, the given network is afterwards what it was before.
"""

import collections
import io
from typing import Any

import numpy as np
import pytest
import torch
from odd_networks import ALIKE, CONVOLUTIONS, NUM_CLASSES, NUM_IMAGES, ODD, Odd, images, inside, run
from torch import nn

from weanalysis.ablation import Ablation, Part, Study, ablate, make_study
from weanalysis.cache import Cache
from weanalysis.errors import WeanalysisError
from weanalysis.results import Store

MODES = ("naive", "exact", "screened")

# A decision that hangs on less than this, of the largest logit, may fall either way.
TIE = 1e-5

LABELS = ("layer", "selection", "out_channel", "in_channel", "percentile")


class Images(torch.utils.data.Dataset):
    def __init__(self, targets: np.ndarray):
        self.images, self.targets = images(), targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], int(self.targets[index])


# What is asked --------------------------------------------------------------------------------------------------------


def convolutions(net: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in inside(net).named_modules() if isinstance(module, CONVOLUTIONS)}


def ablations_of(net: nn.Module, layers: list[str]) -> list[Ablation]:
    """Of each layer, those first that read the dead channel; and one of all layers at once."""
    ablations, highest = [], []
    for depth, layer in enumerate(layers):
        conv = inside(net).get_submodule(layer)
        outs, ins = conv.out_channels, conv.in_channels // conv.groups
        count = outs * ins * int(np.prod(conv.kernel_size))
        ranks = Part(layer, ranks=(count - count // 8 + 1, count))
        highest.append(ranks)
        ablations += [
            Ablation((Part(layer, None, (i,)),), "input channel", 1, layer, depth, in_channel=i)
            for i in dict.fromkeys((0, ins - 1))
        ]
        places = dict.fromkeys([(0, 0), (outs - 1, 0), *((o, i) for o in range(outs) for i in range(1, ins))])
        ablations += [
            Ablation((Part(layer, (o,), (i,)),), "kernel", 1, layer, depth, o, i) for o, i in list(places)[:4]
        ]
        ablations += [Ablation((Part(layer, (o,)),), "filter", 1, layer, depth, o) for o in (0, outs - 1)]
        ablations += [Ablation((ranks,), "highest", 1, layer, depth, percentile=12.5)]
        ablations += [Ablation((Part(layer),), "layer", 1, layer, depth)]
    return [*ablations, Ablation(tuple(highest), "highest", 1, percentile=12.5)]


def question(net: nn.Module) -> Study:
    """A study of every layer that the program would take."""
    taken = make_study("layer", net)
    return Study(
        "location", {"odd": True}, tuple(ablations_of(net, list(taken.layers))), taken.skipped, (), taken.layers
    )


def label(ablation: Ablation) -> tuple:
    return tuple(getattr(ablation, name) for name in LABELS)


# The plain loop -------------------------------------------------------------------------------------------------------


def plainly(odd: Odd) -> nn.Module:
    net = odd.make().eval()
    if odd.plain:
        odd.plain(net)
    return net


def zero(odd: Odd, net: nn.Module, ablation: Ablation) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Zero an ablation's weights, ranked as they are in the intact network; return what was there."""
    masks = []
    for part in ablation.parts:
        weight = odd.weight(net, part.layer)
        mask = torch.zeros(weight.shape, dtype=torch.bool)
        if part.ranks is not None:
            order = weight.float().abs().flatten().argsort(stable=True)
            mask.view(-1)[order[part.ranks[0] - 1 : part.ranks[1]]] = True
        else:
            outs = list(part.out_channels or range(len(weight)))
            ins = list(part.in_channels or range(weight.shape[1]))
            mask[np.ix_(outs, ins)] = True
        masks.append((weight, mask))
    before = [(weight, weight.clone()) for weight, _ in masks]
    for weight, mask in masks:
        weight[mask] = 0
    return before


def predict(logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Each image's class, -1 for NaN, and whether it is clear."""
    largest = logits.float().topk(2, dim=1).values
    clear = (largest[:, 0] - largest[:, 1] > TIE * logits.abs().nan_to_num().max()) | logits.isnan().any(1)
    return torch.where(logits.isnan().any(1), -1, logits.argmax(1)).numpy(), clear.numpy()


def loss_of(logits: torch.Tensor, targets: np.ndarray) -> np.ndarray:
    """Each image's cross-entropy, written out: of probabilities where the network gives these."""
    scores = logits.double()
    rows = torch.arange(len(scores)), torch.tensor(targets)
    if bool(((scores >= 0) & (scores <= 1)).all() and ((scores.sum(1) - 1).abs() < 1e-3).all()):
        return -scores[rows].log().numpy()
    largest = scores.max(1, keepdim=True).values
    return ((scores - largest).exp().sum(1).log() + largest[:, 0] - scores[rows]).numpy()


def by_a_plain_loop(
    odd: Odd, ablations: list[Ablation], targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
    """The intact classes (N,); classes under each ablation, which of these are clear, and losses' changes (A, N).

    And by how much these may differ for rounding.
    """
    net = plainly(odd)
    intact_logits = run(net)
    intact, _ = predict(intact_logits)
    assert np.array_equal(intact, predict(run(odd.make()))[0]), "the plain network is another one"
    classes, clear, changes, before_loss = [], [], [], loss_of(intact_logits, targets)
    largest = intact_logits.abs().nan_to_num().max().item()
    for ablation in ablations:
        wounded = net if odd.again else plainly(odd)
        before = zero(odd, wounded, ablation)
        logits = run(wounded)
        predicted = predict(logits)
        largest = max(largest, logits.abs().nan_to_num().max().item())
        with np.errstate(invalid="ignore"):
            changes.append(loss_of(logits, targets) - before_loss)
        classes.append(predicted[0]), clear.append(predicted[1])
        for weight, values in before if odd.again else ():
            weight.copy_(values)
    rounding = largest * 2**6 * torch.finfo(intact_logits.dtype).eps
    return intact, np.array(classes), np.array(clear), np.array(changes), rounding


def is_lively(odd: Odd, ablations: list[Ablation], intact: np.ndarray, classes: np.ndarray) -> None:
    changed = classes != intact
    assert len(set(intact)) >= 3 and changed.mean() > 0.05, "next to nothing changes"
    of_layer = collections.defaultdict(list)
    for ablation, row in zip(ablations, changed, strict=True):
        # All layers at once are few where some are left out.
        if ablation.layer not in odd.left_out and (ablation.layer or not odd.left_out):
            of_layer[ablation.layer].append(row.sum())
    dull = [layer for layer, counts in of_layer.items() if max(counts) < 4]
    assert not dull, f"zeroing them changes next to nothing: {dull}"


# What is answered -----------------------------------------------------------------------------------------------------


def answer(net: nn.Module, study: Study, targets: np.ndarray, mode: str, cache: Cache) -> tuple[Any, dict]:
    """The table, and the classes after each ablation (N,), by the ablation's label."""
    table = ablate(
        net,
        Images(targets),
        study,
        evaluate=mode,
        cache=cache,
        jobs=1,
        batch_size=NUM_IMAGES,
        shard_size=NUM_IMAGES,
        device="cpu",
    )
    answers = {}
    with Store.open(cache.results) as store:
        intact = store.intact(table.attrs["study_id"])["prediction"].to_numpy()
        changes = store.all_changes(table.attrs["study_id"])
        losses = None
        if mode != "screened":
            by_loss = store.table(table.attrs["study_id"], "loss")
            losses = [
                (drop, store.value_changes(table.attrs["study_id"], position, "loss"))
                for position, drop in enumerate(by_loss["drop"])
            ]
    positions, ids, after = (changes[name].to_numpy() for name in ("position", "image_id", "after"))
    for position, row in enumerate(table.to_dict("records")):
        mine = positions == position
        classes = intact.copy()
        classes[ids[mine]] = after[mine]
        key = tuple(None if value != value else value for value in (row[name] for name in LABELS))
        answers[key] = classes, row, losses and losses[position]
    return intact, answers


def wrong_loss(drop: float, reported: dict[str, np.ndarray], change: np.ndarray, rounding: float) -> str:
    """What is kept of an ablation's losses that the plain loop's changes (N,) do not have, in words."""
    kept = np.empty(NUM_IMAGES)
    kept[reported["image_id"].astype(int)] = reported["after"] - reported["before"]
    finite = np.isfinite(change)
    far = np.abs(kept - change)[finite] > rounding + 2**-10 * np.abs(change[finite])
    if far.any() or not np.array_equal(finite, np.isfinite(kept)):
        return f"{far.sum()} images are wrong, by up to {np.abs(kept - change)[finite].max():.2g} nats"
    if finite.all() and not abs(drop - change.mean()) <= rounding:
        return f"D is {drop:.6g}, not {change.mean():.6g}"
    return "D is given where a loss is none" if not finite.all() and drop == drop else ""


def wrong(
    odd: Odd, study: Study, targets: np.ndarray, mode: str, intact: np.ndarray, answers: dict, known: dict
) -> list[str]:
    """What an answer has that a plain loop has not, in words; `known` keeps the plain loop's answers."""
    net = odd.make()
    every = list(convolutions(net))
    missing = [layer for layer in every if layer not in study.layers and layer not in odd.left_out]
    faults = [f"{layer} is not measured" for layer in missing]
    faults += [
        f"{layer} is left out without a word"
        for layer in set(odd.left_out) & set(every)
        if layer not in study.layers and layer not in dict(study.skipped)
    ]
    gone = {a.layer for a in study.ablations if label(a) not in answers} - set(odd.left_out)
    faults += [f"no row for {layer}" for layer in sorted(map(str, gone))]
    if study.layers not in known:
        known[study.layers] = by_a_plain_loop(odd, list(study.ablations), targets)
    true_intact, every_class, every_clear, every_loss, rounding = known[study.layers]
    chosen = [place for place, ablation in enumerate(study.ablations) if label(ablation) in answers]
    ablations, classes, clear = [study.ablations[place] for place in chosen], every_class[chosen], every_clear[chosen]
    losses = every_loss[chosen]
    if not np.array_equal(intact, true_intact):
        return [*faults, f"the intact network's classes differ on {(intact != true_intact).sum()} images"]
    if odd.name in ODD:  # one of two that look alike need not be
        is_lively(odd, ablations, true_intact, classes)
    outside, num_wrong, largest = 0, collections.Counter(), 0.0
    for ablation, expected, sure, loss in zip(ablations, classes, clear, losses, strict=True):
        got, row, by_loss = answers[label(ablation)]
        if by_loss is not None and (fault := wrong_loss(*by_loss, loss, rounding)):
            faults.append(f"the loss without {label(ablation)}: {fault}")
        true = 100 * ((true_intact == targets).mean() - (expected == targets).mean())
        least, most = true - 100 * (~sure).mean() - 1e-6, true + 100 * (~sure).mean() + 1e-6
        shown = (got != expected) & sure
        if mode == "screened" and row["num_evaluated"] < NUM_IMAGES:
            shown &= got != intact
            outside += not row["screen_low"] - 1e-6 <= true <= row["screen_high"] + 1e-6
        elif not least <= row["drop"] <= most:
            num_wrong[ablation.layer] += not shown.any()
        num_wrong[ablation.layer] += bool(shown.any())
        largest = max(largest, abs(row["drop"] - true))
    if +num_wrong:
        counts = ", ".join(f"{layer}: {count}" for layer, count in num_wrong.items() if count)
        faults.append(
            f"{sum(num_wrong.values())} of {len(ablations)} ablations are wrong ({counts}), D by up to "
            f"{largest:.0f} points"
        )
    if outside > 0.05 * len(ablations):
        faults.append(f"{outside} of {len(ablations)} ablations are outside of their bounds")
    return faults


# What is left of the given network ------------------------------------------------------------------------------------


def frozen(value: Any, depth: int = 0) -> Any:
    """A value as something that can be compared: tensors by identity and bits, containers by their contents."""
    if isinstance(value, nn.parameter.UninitializedTensorMixin):
        return "uninitialized", id(value)
    if isinstance(value, torch.fx.Proxy):
        return "a proxy of torch.fx"
    if isinstance(value, torch.Tensor):
        bits = value.detach().as_subclass(torch.Tensor).resolve_conj().clone().contiguous().flatten().view(torch.uint8)
        gradient = frozen(value.grad) if value.is_leaf and value.grad is not None else None
        about = type(value), value.dtype, value.shape, value.stride(), value.requires_grad
        return id(value), about, bits.numpy().tobytes(), gradient
    if isinstance(value, dict):
        return type(value), tuple((key, frozen(one, depth + 1)) for key, one in value.items())
    if isinstance(value, (list, tuple, set, frozenset, collections.deque)):
        return type(value), tuple(frozen(one, depth + 1) for one in value)
    if isinstance(value, (bool, int, float, str, bytes, type(None))):
        return value
    return id(value)


def state_of(net: nn.Module) -> dict[str, Any]:
    """Everything that hangs on a network: types, modes, parameters, buffers, hooks and other attributes."""
    return {
        f"{name}.{key}": frozen(value)
        for name, module in net.named_modules(remove_duplicate=False)
        for key, value in {**vars(module), "__class__": type(module)}.items()
    }


def saved(net: nn.Module, whole: bool) -> bool:
    try:
        torch.save(net if whole else net.state_dict(), io.BytesIO())
    except Exception:
        return False
    return True


def assert_untouched(odd: Odd, net: nn.Module, before: dict[str, Any]) -> list[str]:
    """What of a network is not as it was, in words."""
    after = state_of(net)
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key, ...) != after.get(key, ...))
    faults = [f"the given network was changed: {', '.join(changed[:4])}"] if changed else []
    other = odd.make()
    for whole in (False, True):
        if saved(net, whole) != saved(other, whole):
            faults.append(f"torch.save of the {'network' if whole else 'state dict'} fails")
    try:
        expected = run(other).nan_to_num()
    except Exception:  # it could not be run before either
        return faults
    try:
        if not torch.equal(run(net).nan_to_num(), expected):
            faults.append("the given network gives other outputs")
    except Exception as error:
        faults.append(f"the given network cannot be run any more: {type(error).__name__}: {error}")
    return faults


# The tests ------------------------------------------------------------------------------------------------------------


def targets_of(odd: Odd) -> np.ndarray:
    """Classes of which two thirds are right."""
    try:
        targets = predict(run(odd.make()))[0].clip(0)
    except Exception:
        targets = np.arange(NUM_IMAGES) % NUM_CLASSES
    targets[::3] = (targets[::3] + 1) % NUM_CLASSES
    return targets


@pytest.mark.parametrize("name", ODD)
def test_an_odd_network_is_measured_right_or_refused_and_left_as_it_was(name, tmp_path):
    odd, faults, known = ODD[name], [], {}
    targets = targets_of(odd)
    for mode in MODES:
        net = odd.make()
        before = state_of(net)
        try:
            study = question(net)
            intact, answers = answer(net, study, targets, mode, Cache(tmp_path))
        except WeanalysisError as error:
            if odd.expect == "right":
                faults.append(f"{mode}: refused: {error}")
            if "\n" in str(error) or not 20 < len(str(error)) < 500:
                faults.append(f"{mode}: the refusal is not one line: {error}")
        except Exception as error:
            faults.append(f"{mode}: crashed with {type(error).__name__}: {error}")
        else:
            if odd.expect == "refused":
                faults.append(f"{mode}: was measured, and should be refused")
            else:
                faults += [f"{mode}: {fault}" for fault in wrong(odd, study, targets, mode, intact, answers, known)]
        faults += [f"{mode}: {fault}" for fault in assert_untouched(odd, net, before)]
    assert not faults, "\n".join(["", *faults])


@pytest.mark.parametrize("name", ALIKE)
def test_networks_that_look_alike_do_not_share_results(name, tmp_path):
    first, second = ALIKE[name]
    second = second.scaled_as(first)
    states = [odd.make().state_dict().values() for odd in (first, second)]
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))
    targets = targets_of(first)
    assert not np.array_equal(targets, targets_of(second)), "they must differ"
    for odd in (first, second):
        net = odd.make()
        study = question(net)
        intact, answers = answer(net, study, targets, "exact", Cache(tmp_path))
        assert wrong(odd, study, targets, "exact", intact, answers, {}) == []


@pytest.mark.parametrize("mode", MODES)
def test_what_a_hook_keeps_for_its_owner_stays_usable(mode, tmp_path):
    """A copy's hook is the same function, and writes into the same dict: what it is given must be a tensor."""
    odd, kept = ODD["nothing odd"], {}
    net = odd.make()
    net.b.register_forward_hook(lambda module, args, output: kept.update(b=output))
    before = state_of(net)
    answer(net, question(net), targets_of(odd), mode, Cache(tmp_path))
    assert all(type(value) is torch.Tensor for value in kept.values())
    assert state_of(net) == before
