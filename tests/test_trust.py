"""What keeps a D from being wrong in silence: vetting, checks by lot, conduct, keys, stops, others' errors."""

import dataclasses
import os
import signal
import sqlite3

import numpy as np
import pytest
import torch
from command_line import run as run_command
from small_networks import NUM_ANSWERED, SIDE, Answered, Net, centred, measured
from torch import nn
from torch.nn import functional as F

from weanalysis.ablation import Ablation, Interrupted, Part, make_study
from weanalysis.ablation.behaviour import NUM_PROBES, Conduct, State, describe_behaviour
from weanalysis.ablation.copies import copied
from weanalysis.ablation.evaluate import Evaluator
from weanalysis.ablation.evaluate.twin import Twin
from weanalysis.ablation.inputs import as_model
from weanalysis.errors import StudyError, WeanalysisError
from weanalysis.loading import load_model
from weanalysis.results import Store


def plain_drops(net, data, ablations, batch_size=None, seed=None):
    """D of each ablation by a plain loop over whole passes, in batches where answers hang on them."""

    def right():
        classes = []
        for low in range(0, len(data), batch_size or len(data)):
            if seed is not None:
                torch.manual_seed(seed + low)
            classes.append(net(data.images[low : low + (batch_size or len(data))]).argmax(1))
        return (torch.cat(classes) == data.targets).double().mean().item()

    net = copied(net).requires_grad_(False)
    intact, drops = right(), []
    for ablation in ablations:
        (part,) = ablation.parts
        weight = net.get_submodule(part.layer).weight
        before = weight.clone()
        outs = slice(None) if part.out_channels is None else list(part.out_channels)
        ins = slice(None) if part.in_channels is None else list(part.in_channels)
        weight[outs, ins] = 0
        drops.append(100 * (intact - right()))
        weight.copy_(before)
    return np.array(drops)


# Held to the naive way ------------------------------------------------------------------------------------------------


def test_a_fast_way_that_goes_wrong_later_is_found_out_and_all_it_gave_is_measured_again(tmp_path, monkeypatch):
    net = Net()
    data = Answered(net)
    study = make_study("channel", net)
    true = plain_drops(net, data, study.ablations)
    rerun, calls = Twin.rerun, {"b": 0}

    def wrong_later(self, kept, ablation, weights):
        logits = rerun(self, kept, ablation, weights)
        calls["b"] += ablation.layers == ("b",)
        # Vetted twice, then right for a shard of eight ablations, and wrong from then on.
        return logits.roll(1, 1) if ablation.layers == ("b",) and calls["b"] > 12 else logits

    monkeypatch.setattr(Twin, "rerun", wrong_later)
    table, said = measured(net, data, tmp_path, study=study)
    assert np.abs(true).max() > 5
    assert np.allclose(table["drop"], true)
    assert "b" in table.attrs["distrusted"] and any("measured the naive way: b" in line for line in said)
    assert any("is measured again (1 shard" in line for line in said)
    with Store.open(tmp_path / "cache" / "results.sqlite") as store:
        assert store.agreement(table.attrs["study_id"])["distrusted"].keys() == {"b"}


def test_answers_are_checked_by_lot_and_their_number_is_kept_and_said(tmp_path):
    net = Net()
    table, _ = measured(net, Answered(net), tmp_path, study="location", grid="all")
    about = table.attrs
    assert about["num_answers"] == len(table) * NUM_ANSWERED
    # One ablation a layer and shard, on a batch of 16.
    assert about["num_checked"] == 2 * 3 * 16 and about["num_differed"] == 0 and about["distrusted"] == {}
    naive, _ = measured(net, Answered(net), tmp_path, study="location", grid="all", evaluate="naive")
    assert naive.attrs["num_checked"] == 0 and np.array_equal(naive["drop"], table["drop"])


def test_a_layer_whose_weight_is_made_anew_in_every_pass_is_refused(tmp_path):
    class Anew(Net):
        def between(self, x):
            self.b.weight.data = self.a.weight.data.sum(1, keepdim=True).expand(4, 4, 3, 3).clone()
            return x

    net = Anew()
    for evaluate in ("naive", "exact", "screened"):
        with pytest.raises(StudyError, match="b does not compute with the weight that is zeroed"):
            measured(net, Answered(net), tmp_path, evaluate=evaluate)
    table, _ = measured(net, Answered(net), tmp_path, layers="a")
    assert set(table["layer"]) == {"a"}


def test_a_hook_that_counts_on_all_channels_ends_the_fast_way_for_its_layer_alone(tmp_path):
    net = Net()
    gate = torch.linspace(0.5, 2, 4)[:, None, None]
    net.b.register_forward_hook(lambda module, args, output: output * gate)
    data = Answered(net)
    study = make_study("channel", net)
    table, _ = measured(net, data, tmp_path, study=study)
    assert np.allclose(table["drop"], plain_drops(net, data, study.ablations)) and np.ptp(table["drop"]) > 5


def test_shared_weights_are_ranked_before_any_of_them_is_zeroed(tmp_path):
    net = Net()
    net.c = nn.Conv2d(4, 4, 3, padding=1)
    net.c.weight = net.b.weight
    net.between = lambda x: torch.relu(net.c(x))
    # As a class would do it: a closure over the network is refused, since a copy would still compute with the first.
    with pytest.raises(WeanalysisError, match="still computes with weights of the given one"):
        measured(net, Answered(net), tmp_path)

    class Tied(Net):
        def __init__(self):
            super().__init__()
            self.c = nn.Conv2d(4, 4, 3, padding=1)
            self.c.weight = self.b.weight

        def between(self, x):
            return torch.relu(self.c(x))

    net = centred(Tied())
    data = Answered(net)
    study = make_study("magnitude", net, percentiles=[100], percentile_width=30)
    (ablation,) = study.ablations
    plain = copied(net).requires_grad_(False)
    for name in ("a", "b"):
        weight = plain.get_submodule(name).weight
        count = weight.numel()
        part = next(part for part in ablation.parts if part.layer == name)
        weight.view(-1)[weight.abs().flatten().argsort(stable=True)[part.ranks[0] - 1 : count]] = 0
    expected = 100 * (1 - (plain(data.images).argmax(1) == data.targets).double().mean().item())
    for evaluate in ("naive", "exact"):
        table, _ = measured(net, data, tmp_path, study=study, evaluate=evaluate)
        assert table["drop"].iloc[0] == pytest.approx(expected) and expected > 5


# How a network behaves ------------------------------------------------------------------------------------------------


class Drops(Net):
    def between(self, x):
        return F.dropout(x, 0.4)


class Mixes(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def between(self, x):
        return self.norm(x)


class TrainsOn(Net):
    """Keeps its batch norm in training mode whatever it is told."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def between(self, x):
        return self.norm(x)

    def train(self, mode=True):
        super().train(mode)
        self.norm.train(True)
        return self


def test_a_network_that_draws_random_numbers_is_refused_or_seeded_alike(tmp_path):
    net = Drops()
    data = Answered(Net())
    for evaluate in ("naive", "exact", "screened"):
        with pytest.raises(StudyError, match=r"its forward \(Drops\) draws random numbers.*--forward-seed"):
            measured(net, data, tmp_path, evaluate=evaluate)
    study = make_study("channel", net)
    true = plain_drops(net, data, study.ablations, 16, 7)
    for evaluate in ("naive", "exact"):
        table, said = measured(net, data, tmp_path, study=study, evaluate=evaluate, forward_seed=7, batch_size=16)
        assert np.allclose(table["drop"], true) and any("seed 7" in line for line in said)
    other, _ = measured(net, data, tmp_path, study=study, forward_seed=8, batch_size=16)
    assert other.attrs["reused"] == 0 and not np.allclose(other["drop"], true)


@pytest.mark.parametrize("make", [Mixes, TrainsOn])
def test_a_network_that_mixes_a_batch_is_refused_or_measured_in_batches_of_the_given_size(tmp_path, make):
    net = make()
    data = Answered(net)
    for evaluate in ("naive", "exact", "screened"):
        with pytest.raises(StudyError, match=r"norm \(BatchNorm2d\) mixes.*--batch-size"):
            measured(net, data, tmp_path, evaluate=evaluate)
    study = make_study("channel", net)
    for evaluate in ("exact", "screened"):
        table, said = measured(net, data, tmp_path, study=study, evaluate=evaluate, batch_size=8)
        assert np.allclose(table["drop"], plain_drops(net, data, study.ablations, 8)), evaluate
        assert any("mixes the images of a batch" in line for line in said)
    other, _ = measured(net, data, tmp_path, study=study, batch_size=16)
    assert other.attrs["reused"] == 0


def test_what_a_forward_pass_changes_is_put_back_before_each(tmp_path):
    class Moves(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(1))
            self.calls, self.seen = 0, []

        def between(self, x):
            self.calls += 1
            self.seen.append(len(x))
            self.mean += 1
            return x * (1 if self.calls % 2 else -1) + self.mean

    net = Moves()
    data = Answered(net)
    study = make_study("channel", net)
    true = []
    for ablation in study.ablations:
        part = ablation.parts[0]
        fresh, wounded = Moves().requires_grad_(False), Moves().requires_grad_(False)
        outs = slice(None) if part.out_channels is None else list(part.out_channels)
        ins = slice(None) if part.in_channels is None else list(part.in_channels)
        wounded.get_submodule(part.layer).weight[outs, ins] = 0
        answers = [(one(data.images).argmax(1) == data.targets).double().mean().item() for one in (fresh, wounded)]
        true.append(100 * (answers[0] - answers[1]))
    for evaluate in ("naive", "exact"):
        table, said = measured(net, data, tmp_path, study=study, evaluate=evaluate)
        assert np.allclose(table["drop"], true) and np.ptp(true) > 5
        assert any("put back before each pass" in line and "calls" in line for line in said)
    assert (net.calls, net.seen, net.mean.item()) == (0, [], 0)


def test_state_is_put_back_by_value():
    net = nn.Sequential(nn.BatchNorm1d(2))
    net.note, net.rows = "x", [torch.zeros(2), {"k": 1}]
    state = State(net)
    net.note, net.more = "y", 1
    net.rows[1]["k"] = 2
    net[0].running_mean += 1
    assert set(state.changed()) == {"note", "more", "rows", "running_mean"}
    state.put_back()
    assert net.note == "x" and net.rows[1] == {"k": 1} and not hasattr(net, "more") and net[0].running_mean.sum() == 0
    assert state.changed() == []


def test_images_that_a_network_writes_into_stay_what_they_are(tmp_path):
    class Writes(Net):
        def forward(self, x):
            x.mul_(2)
            return super().forward(x)

    net = Writes()
    data = Answered(Net())
    study = make_study("channel", net)
    for evaluate in ("naive", "exact"):
        table, _ = measured(net, data, tmp_path, study=study, evaluate=evaluate, batch_size=7)
        data.images = torch.randn(NUM_ANSWERED, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
        plain = Net()
        assert np.allclose(table["drop"], plain_drops(_doubled(plain), data, study.ablations))


def _doubled(net):
    class Doubled(Net):
        def forward(self, x):
            return super().forward(x * 2)

    return Doubled()


# Keys ----------------------------------------------------------------------------------------------------------------


def test_a_study_is_told_by_all_that_it_zeroes(tmp_path):
    net = Net()
    data = Answered(net)
    study = make_study("location", net, grid="all")
    first = dataclasses.replace(study, ablations=study.ablations[:12])
    second = dataclasses.replace(study, ablations=study.ablations[12:])
    assert len({study.key, first.key, second.key}) == 3
    tables = [measured(net, data, tmp_path, study=one)[0] for one in (first, second, study)]
    assert len({table.attrs["study_id"] for table in tables}) == 3
    assert tables[2].attrs["reused"] == 3 * len(study.ablations)
    assert np.allclose(tables[2]["drop"], plain_drops(net, data, study.ablations))
    assert np.allclose([*tables[0]["drop"], *tables[1]["drop"]], tables[2]["drop"])


def test_layers_of_any_name_have_keys_of_their_own():
    one = Ablation((Part("a", (0,)), Part("b", (1,))), "kernel", 1)
    other = Ablation((Part("a[0;*] b", (1,)),), "kernel", 1)
    assert one.key == "a[0;*] b[1;*]" and one.key != other.key


@pytest.mark.parametrize("change", ["attribute", "buffer", "code", "hook", "function"])
def test_networks_that_print_alike_are_told_apart(tmp_path, change):
    class Sloped(Net):
        def __init__(self, slope):
            super().__init__()
            self.slope = slope
            self.register_buffer("offset", torch.zeros(1), persistent=False)

        def between(self, x):
            return F.leaky_relu(x - 0.5, self.slope) + self.offset

    one, other = centred(Sloped(0.01)), Sloped(0.9 if change == "attribute" else 0.01)
    other.head.load_state_dict(one.head.state_dict())
    if change == "buffer":
        other.offset += 1
    if change == "code":
        other.__class__ = type("Sloped", (Sloped,), {"between": lambda self, x: -x})
        other.__class__.__qualname__ = Sloped.__qualname__
    if change == "hook":
        other.a.register_forward_hook(lambda module, args, output: -output)
    if change == "function":
        other.a.forward = lambda x: -x.sum(1, keepdim=True).expand(-1, 4, -1, -1)
    assert repr(one) == repr(other)
    data = Answered(one)
    first, _ = measured(one, data, tmp_path, layers="b")
    second, _ = measured(other, data, tmp_path, layers="b")
    assert first.attrs["intact"] == 100 and second.attrs["intact"] < 100
    assert second.attrs["reused"] == 0
    again, _ = measured(one, data, tmp_path, layers="b")
    assert again.attrs["reused"] == 3 * len(again)


def test_a_network_changed_after_it_was_loaded_is_not_taken_for_the_one_of_its_name(tmp_path):
    model = load_model("resnet20", "none", 10)
    data = Answered(model.net, 16)
    plain, _ = measured(model, data, tmp_path, study="layer", layers="conv1")
    model.net.layer1.register_forward_hook(lambda module, args, output: output * 3 + 1)
    changed, said = measured(model, data, tmp_path, study="layer", layers="conv1")
    assert any("was changed after it was loaded" in line for line in said)
    assert changed.attrs["reused"] == 0 and changed.attrs["study_id"] != plain.attrs["study_id"]


def test_a_counter_of_training_steps_is_no_part_of_the_weights():
    model = load_model("resnet20", "none", 10)
    before = model.weights_hash
    model.net.bn1.num_batches_tracked += 5
    assert model.weights_hash == before
    model.net.bn1.running_mean += 1
    assert model.weights_hash != before


def test_a_network_of_a_user_s_is_described_the_same_twice_and_not_run():
    class Shouts(Net):
        def forward(self, x):
            raise AssertionError

    assert describe_behaviour(Net()) == describe_behaviour(Net()) != describe_behaviour(Net(1))
    assert describe_behaviour(Shouts()) == describe_behaviour(Shouts())


def test_what_an_older_version_measured_is_named_and_measured_again(tmp_path, capsys):
    net = Net()
    data = Answered(net)
    first, _ = measured(net, data, tmp_path, study="layer")
    with sqlite3.connect(tmp_path / "cache" / "results.sqlite") as db:
        db.execute(
            "UPDATE contexts SET settings = replace(settings, '\"engine_version\": ', '\"engine_version\": -'), "
            "key = 'older'"
        )
    again, said = measured(net, data, tmp_path, study="layer")
    assert again.attrs["reused"] == 0 and again.attrs["study_id"] != first.attrs["study_id"]
    assert any(f"(number {first.attrs['study_id']}) was measured by an older version" in line for line in said)
    assert run_command("list", "studies", "--cache", str(tmp_path / "cache")) == 0
    assert capsys.readouterr().out.count("by an older version") == 1


def test_intact_answers_that_have_changed_are_refused_and_what_was_kept_stays(tmp_path):
    net = Net()
    data = Answered(net)
    first, _ = measured(net, data, tmp_path, study="layer")
    path = tmp_path / "cache" / "results.sqlite"
    with sqlite3.connect(path) as db:
        kept = np.frombuffer(db.execute("SELECT predictions FROM shards WHERE start = 16").fetchone()[0], np.int32)
        db.execute("UPDATE shards SET predictions = ? WHERE start = 16", (((kept + 1) % 5).astype(np.int32).tobytes(),))
    with pytest.raises(WeanalysisError, match="images 16 to 31 the intact network answers 16 otherwise"):
        measured(net, data, tmp_path, study="channel")
    with Store.open(path) as store:
        assert len(store.table(first.attrs["study_id"])) == 2


# Stops, and errors of somebody else's ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_in_the_last_task_is_raised_though_the_study_is_complete(tmp_path, number):
    net = Net()
    data = Answered(net)

    def stop_at_the_end(status):
        if status.done == status.total:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as stop:
        measured(net, data, tmp_path, study="layer", report=stop_at_the_end)
    assert stop.value.done == stop.value.total == 6
    with Store.open(tmp_path / "cache" / "results.sqlite") as store:
        assert store.describe(stop.value.study_id)["state"] == "complete"


class Fails(Net):
    """Raises for images that come late: an error of somebody else's, in the middle of a study."""

    def forward(self, x):
        if bool((x[:, 0, 0, 0] == 7).any()):
            raise RuntimeError("no such image")
        return super().forward(x)


@pytest.mark.parametrize("evaluate", ["naive", "exact"])
def test_an_error_of_the_network_s_is_one_line_that_says_where(tmp_path, evaluate):
    net = Fails()
    data = Answered(net)
    data.images[40, 0, 0, 0] = 7
    with pytest.raises(StudyError, match=r"intact network fails on images 32 to 47 \(RuntimeError: no such image\)"):
        measured(net, data, tmp_path, evaluate=evaluate)


def test_images_that_a_network_does_not_take_are_one_line(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 5))
    data = Answered(Net())
    with pytest.raises(StudyError, match=r"Sequential fails on images of shape \(3, 8, 8\).*RuntimeError"):
        measured(net, data, tmp_path)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((Part("c"),), "unknown layer 'c'"),
        ((Part("b", (4,)),), "b has no output channel 4: its weight's are 0 to 3"),
        ((Part("b", (-1,)),), "b has no output channel -1"),
        ((Part("a", None, (3,)),), "a has no input channel 3"),
        ((Part("a", ranks=(1, 109)),), "a has no weights of ranks 1 to 109: it has 108"),
    ],
)
def test_an_ablation_that_the_network_does_not_have_is_one_line(tmp_path, parts, words):
    study = dataclasses.replace(make_study("layer", Net()), ablations=(Ablation(parts, "kernel", 1),))
    with pytest.raises(StudyError, match=words):
        measured(Net(), Answered(Net()), tmp_path, study=study)


def test_convolutions_that_no_study_covers_are_named_with_their_share(tmp_path):
    class Others(Net):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(4, 4, 1)
            self.own = nn.Parameter(torch.randn(4, 4, 1, 1))
            self.never = nn.Conv2d(4, 4, 1)

        def between(self, x):
            return F.conv2d(self.up(x), self.own)

    net = Others()
    _, said = measured(net, Answered(net), tmp_path, study="layer")
    (left_out,) = [line for line in said if line.startswith("left out")]
    total = sum(value.numel() for value in net.parameters() if value.ndim > 1)
    assert "up.weight" in left_out and "own" in left_out and f"({32 / total:.1%} of" in left_out
    assert any("do not reach never" in line for line in said)


def test_a_conduct_is_kept_by_an_evaluator():
    net = Drops()
    images = torch.randn(8, 3, SIDE, SIDE)
    evaluator = Evaluator(net, "naive", conduct=Conduct(seed=3, fixed_batches=True))
    assert torch.equal(evaluator.logits(images), evaluator.logits(images))
    before = torch.get_rng_state()
    evaluator.logits(images)
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_is_taken_as_a_copy():
    net = Net().train()
    model = as_model(net)
    assert model.net is not net and net.training and not model.net.training
    assert all(
        one.data_ptr() != other.data_ptr() for one, other in zip(net.parameters(), model.net.parameters(), strict=True)
    )


# Measured twice -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("evaluate", ["exact", "naive", "screened"])
def test_some_answers_are_measured_twice_in_batches_of_another_size(evaluate, tmp_path, monkeypatch):
    net, sizes = Net(), []
    monkeypatch.setattr("weanalysis.ablation.repetition.MOST_TIME", 100.0)
    repeat = Evaluator.repeat

    def watched(self, sample, ablation, data):
        again = repeat(self, sample, ablation, data)
        sizes.append((sample.at_once, again.at_once))
        return again

    monkeypatch.setattr(Evaluator, "repeat", watched)
    options = {"study": "location", "grid": "all", "evaluate": evaluate}
    table, said = measured(net, Answered(net), tmp_path, **options)
    again = table.attrs["repeated"]
    assert again["num_answers"] >= len(sizes) >= 1 and all(one != other for one, other in sizes)
    assert again["num_differed"] == 0 and 0 <= again["largest_difference"] < 1e-4
    assert not [line for line in said if "--batch-size" in line]
    reused, _ = measured(net, Answered(net), tmp_path, **options)
    assert reused.attrs["repeated"] == again, "it is kept with the study"
    with sqlite3.connect(tmp_path / "cache" / "results.sqlite") as db:
        db.execute("UPDATE studies SET about = json_remove(about, '$.repeated')")
    old, _ = measured(net, Answered(net), tmp_path, **options)
    assert all(np.isnan(number) for number in old.attrs["repeated"].values()), "not recorded, which is no 0"


@pytest.mark.parametrize("batch_size", [1, 16])
def test_a_network_that_answers_large_batches_otherwise_is_found_out(batch_size, tmp_path):
    class Mixing(Net):
        """Mixes a batch once it is of more images than any that a study begins with."""

        def between(self, x):
            return x * (1 + 0.5 * x.mean()) if len(x) > NUM_PROBES or len(x) == 2 else x

    net = Mixing()
    table, said = measured(net, Answered(net), tmp_path, evaluate="naive", batch_size=batch_size)
    assert table.attrs["repeated"]["largest_difference"] > 1e-3
    assert [line for line in said if "D may hang on --batch-size" in line], said


def test_a_failure_when_measuring_twice_ends_no_study(tmp_path, monkeypatch):
    def fails(self, *given):
        raise RuntimeError("not in a batch of this size")

    monkeypatch.setattr(Evaluator, "repeat", fails)
    net = Net()
    table, said = measured(net, Answered(net), tmp_path)
    assert [line for line in said if line.startswith("no answer is measured twice")]
    assert np.isnan(table.attrs["repeated"]["num_answers"])
