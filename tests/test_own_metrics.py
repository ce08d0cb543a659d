"""A caller's own metrics: a function of outputs and targets, on images with classes and on images without."""

import functools
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import run
from scipy import stats
from streamlit.testing.v1 import AppTest
from torch import nn

import weanalysis
from weanalysis.ablation import ablate
from weanalysis.dashboard import app_folder
from weanalysis.errors import DataError, StoreError, StudyError, WeanalysisError
from weanalysis.report import write_report
from weanalysis.results import Store

NUM_IMAGES = 40


class Rows(torch.utils.data.Dataset):
    """Noise with any targets."""

    def __init__(self, targets: torch.Tensor | list):
        self.images = torch.randn(NUM_IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        self.targets = targets

    def __len__(self) -> int:
        return NUM_IMAGES

    def __getitem__(self, index: int):
        return self.images[index], self.targets[index]


def network(num_outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(3, num_outputs)).eval()


def squared_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs[:, 0] - targets) ** 2


def missed_labels(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return ((outputs > 0) != (targets > 0)).float().mean(1)


def drops(net: nn.Module, data: Rows, function) -> np.ndarray:
    """The change of each image's number under the loss of each layer, (layers, N), computed by hand."""
    targets = torch.stack([torch.as_tensor(one) for one in data.targets])
    changes = []
    with torch.no_grad():
        before = function(net(data.images), targets)
        for layer in ("0", "2"):
            wounded = network(net[-1].out_features)
            wounded.get_submodule(layer).weight.data.zero_()
            changes.append(function(wounded(data.images), targets) - before)
    return torch.stack(changes).double().numpy()


@pytest.mark.parametrize(
    ("function", "targets", "num_outputs"),
    [
        (squared_error, [0.1 * index for index in range(NUM_IMAGES)], 1),
        (missed_labels, torch.arange(3 * NUM_IMAGES).reshape(-1, 3) % 2, 3),
        (lambda outputs, targets: outputs.softmax(1)[:, targets[0]] * 0 + targets, torch.arange(NUM_IMAGES) % 3, 3),
    ],
)
def test_rows_are_paired_t_tests_of_the_numbers_by_hand(tmp_path, function, targets, num_outputs):
    net, data = network(num_outputs), Rows(targets)
    own = weanalysis.metric("own", function, unit="mm")
    table = ablate(net, data, "layer", metric=own, cache=str(tmp_path), shard_size=15)
    changes = drops(net, data, function)
    assert table["drop"].to_numpy() == pytest.approx(changes.mean(1), abs=1e-6)
    assert (table["metric"] == own.name).all() and table["num_flipped"].isna().all()
    if changes.std() > 0:
        tests = [stats.ttest_1samp(one, 0) for one in changes]
        assert table["p_value"].to_numpy() == pytest.approx([one.pvalue for one in tests], rel=1e-3)


class Shaped(nn.Module):
    """Two convolutions whose 3 maps of 4 x 4 are returned in some shape."""

    def __init__(self, shape):
        super().__init__()
        torch.manual_seed(2)
        self.first, self.second, self.shape = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3), shape

    def forward(self, images: torch.Tensor):
        return self.shape(self.second(self.first(images).relu()))


def mean_square(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs.reshape(len(outputs), -1) - targets.reshape(len(targets), -1)[:, :1]).square().mean(1)


@pytest.mark.parametrize(
    ("shape", "output", "of"),
    [
        (lambda maps: maps.mean((1, 2, 3)), None, lambda returned: returned),
        (lambda maps: maps.mean((2, 3))[:, :1], None, lambda returned: returned),
        (lambda maps: maps.mean(1), None, lambda returned: returned),
        (lambda maps: maps.flatten(2).transpose(1, 2), None, lambda returned: returned),
        (lambda maps: {"logits": maps.mean((2, 3)), "masks": maps}, "masks", lambda returned: returned["masks"]),
        (lambda maps: (maps.mean((2, 3)), [maps.mean(1), maps.std(1)]), "1.1", lambda returned: returned[1][1]),
    ],
    ids=["N", "N1", "NHW", "NTC", "dict", "tuple"],
)
@pytest.mark.parametrize("are_classes", [True, False])
def test_outputs_of_any_shape_are_measured_image_by_image(tmp_path, shape, output, of, are_classes):
    net, classes = Shaped(shape), torch.arange(NUM_IMAGES) % 5
    data = Rows(classes if are_classes else torch.stack([classes, -classes], 1).float())

    def numbers(net: nn.Module) -> np.ndarray:
        with torch.no_grad():
            return mean_square(of(net(data.images)), data.targets).double().numpy()

    changes = {}
    for mode in ("exact", "naive"):
        own = weanalysis.metric("square", mean_square)
        table = ablate(
            net, data, "channel", mode, own, side="out", output=output, cache=str(tmp_path / mode), shard_size=15
        )
        with Store.open(tmp_path / mode / "results.sqlite") as store:
            changes[mode] = [store.value_changes(1, place, own.name)["after"] for place in range(len(table))]
    assert len(table) == 7
    for row, exact, naive in zip(table.itertuples(), changes["exact"], changes["naive"], strict=True):
        wounded = Shaped(shape)
        wounded.get_submodule(row.layer).weight.data[int(row.out_channel)] = 0
        assert naive == pytest.approx(numbers(wounded), abs=2e-3) and exact == pytest.approx(naive, abs=1e-5)
        assert row.drop == pytest.approx((numbers(wounded) - numbers(net)).mean(), abs=1e-5)


def test_higher_may_be_better(tmp_path):
    net, data = network(1), Rows([0.1 * index for index in range(NUM_IMAGES)])
    tables = [
        ablate(net, data, "layer", metric=weanalysis.metric("e", function, worse=worse), cache=str(tmp_path))
        for function, worse in ((squared_error, "higher"), (lambda o, t: -squared_error(o, t), "lower"))
    ]
    assert tables[0]["drop"].tolist() == tables[1]["drop"].tolist()


def scaled(factor: float):
    return lambda outputs, targets: factor * outputs[:, 0]


def helper(outputs: torch.Tensor) -> torch.Tensor:
    return outputs[:, 0]


def through_helper(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return helper(outputs)


class Callable:
    def __init__(self, weights: torch.Tensor):
        self.weights = weights

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs @ self.weights


def test_the_name_changes_with_whatever_decides_the_numbers(monkeypatch):
    def name(function, **more):
        return weanalysis.metric("m", function, **more).name

    assert name(scaled(2.0)) == name(scaled(2.0)) != name(scaled(3.0))
    assert name(scaled(2.0)) != name(scaled(2.0), unit="mm") != name(scaled(2.0), worse="lower")
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])
    assert name(Callable(first)) == name(Callable(first.clone())) != name(Callable(second))
    assert name(functools.partial(squared_error)) != name(functools.partial(missed_labels))
    assert name(nn.MSELoss(reduction="none")) != name(nn.L1Loss(reduction="none"))
    before = name(through_helper)
    monkeypatch.setitem(globals(), "helper", lambda outputs: outputs[:, 1])
    assert name(through_helper) != before, "what it calls is part of it"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a study without classes, and one with classes and two metrics of its caller's."""
    cache, numbers = tmp_path_factory.mktemp("cache"), Rows([0.1 * index for index in range(NUM_IMAGES)])
    ablate(
        network(1),
        numbers,
        metric=weanalysis.metric("squared error", squared_error, "mm²"),
        cache=str(cache),
        name="numbers",
    )
    labelled = Rows(torch.arange(NUM_IMAGES) % 3)
    for factor in (1.0, 2.0):
        ablate(
            network(), labelled, metric=weanalysis.metric("scaled", scaled(factor)), cache=str(cache), name="labelled"
        )
    return cache


def test_another_function_of_the_same_name_reads_none_of_its_numbers(measured):
    with Store.open(measured / "results.sqlite") as store:
        names = store.metrics(2)
        assert [name.partition("-")[0] for name in names[:1] + names[-1:]] == ["scaled", "scaled"]
        assert {"top1", "loss", "macro-f1", "ece"} < set(names) and len(set(names)) == 6
        tables = [store.table(2, weanalysis.metric("scaled", scaled(factor)).name) for factor in (1.0, 2.0)]
        assert tables[1]["drop"].to_numpy() == pytest.approx(2 * tables[0]["drop"].to_numpy(), rel=1e-5)
        with pytest.raises(StoreError, match="metric 'scaled' is unknown: choose from top1"):
            store.table(2, "scaled")


def test_a_study_without_classes_is_read_by_its_numbers_alone(measured, tmp_path):
    with Store.open(measured / "results.sqlite") as store:
        table = store.table(1, "squared error")
        assert store.metrics(1) == [table["metric"].iloc[0]] and store.table(1).equals(table)
        intact = store.intact(1)
        assert len(intact) == NUM_IMAGES and intact.drop(columns="image_id").isna().all(axis=None)
        with pytest.raises(StoreError, match="metric 'top1', since the images of study 1 have no class: choose from"):
            store.table(1, "top1")
        with pytest.raises(StoreError, match="no image of study 1 has a class"):
            store.changes(1, 0)
    page = write_report(["1", "2"], tmp_path / "report.html", cache=str(measured)).path
    assert "squared error" in page.read_text() and "mm²" in page.read_text()
    with Store.open(measured / "results.sqlite") as store:
        name = store.describe(1)["metric"]
    assert run("export", "1", "-o", str(tmp_path / "table.csv"), "--metric", name, "--cache", str(measured)) == 0
    assert len(pd.read_csv(tmp_path / "table.csv")) == len(table)
    assert run("report", "1", "-o", str(tmp_path / "one.html"), "--metric", name, "--cache", str(measured)) == 0
    assert run("compare", "1", "2", "--cache", str(measured)) == 1


def test_several_processes_take_the_function_along(tmp_path):
    own = weanalysis.metric("scaled", scaled(1.0))
    net = weanalysis.load_model("resnet20", weights="none")
    data = Rows(torch.arange(NUM_IMAGES) % 10)
    tables = [
        ablate(
            net, data, "layer", metric=own, cache=str(tmp_path / str(jobs)), jobs=jobs, shard_size=20, layers="conv1"
        )
        for jobs in (1, 2)
    ]
    assert tables[0]["drop"].to_numpy() == pytest.approx(tables[1]["drop"].to_numpy(), abs=1e-6)


def failing(outputs, targets):
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (lambda outputs, targets: outputs.mean(), r"gives a Tensor \(\) for 8 images: return one number an image"),
        (lambda outputs, targets: outputs, r"gives a Tensor \(8, 1\) for 8 images"),
        (lambda outputs, targets: 0.5, "gives a float for 8 images"),
        (failing, r"the metric own fails on outputs \(8, 1\) and targets \(8,\) \(KeyError: 'no such thing'\)"),
        (lambda outputs, targets: outputs[:, 0] - outputs.mean(), "another number for the same image beside other"),
        (lambda outputs, targets: torch.rand(len(outputs)), "another number for the same image in another call"),
        (
            lambda outputs, targets: outputs[:, 0] / 0,
            "of image 0 is no finite number for the intact network, so that own",
        ),
        (lambda outputs, targets: outputs[:, 0] * torch.nan, "of image 0 is no finite number for the intact network"),
    ],
)
def test_a_function_that_gives_no_number_an_image_is_one_line(tmp_path, function, line):
    net, data = network(1), Rows([0.1 * index for index in range(NUM_IMAGES)])
    with pytest.raises(StudyError, match=line) as error:
        ablate(net, data, "layer", metric=weanalysis.metric("own", function), cache=str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: weanalysis.metric("top1", squared_error), "cannot be called 'top1'"),
        (lambda: weanalysis.metric("<b>", squared_error), "cannot be called '<b>'"),
        (lambda: weanalysis.metric("e", squared_error, unit="\n"), "unit cannot be"),
        (lambda: weanalysis.metric("e", squared_error, worse="up"), "worse 'up' is not allowed"),
        (lambda: weanalysis.metric("e", 3), r"needs a function of \(outputs, targets\), not a int"),
    ],
)
def test_what_is_no_metric_is_one_line(make, line):
    with pytest.raises(StudyError, match=line):
        make()


def test_what_does_not_go_together_is_one_line(tmp_path):
    net, own = network(1), weanalysis.metric("e", squared_error)
    numbers = Rows([0.1 * index for index in range(NUM_IMAGES)])
    cache = {"cache": str(tmp_path)}
    with pytest.raises(DataError, match=r"give a class index, .*\(other targets need a metric of your own"):
        ablate(net, numbers, "layer", **cache)
    with pytest.raises(DataError, match="targets of several kinds"):
        ablate(net, Rows([torch.zeros(1 + index % 2) for index in range(NUM_IMAGES)]), metric=own, **cache)
    with pytest.raises(DataError, match="has str 'a' for a target; give a number or a tensor of numbers"):
        ablate(net, Rows(["a"] * NUM_IMAGES), metric=own, **cache)
    with pytest.raises(StudyError, match=r"--evaluate screened leaves out images .* e-.* needs all"):
        ablate(net, numbers, metric=own, evaluate="screened", **cache)
    with pytest.raises(StudyError, match="--until-ci 1 needs a metric in which images are right or wrong"):
        ablate(net, numbers, metric=own, until_ci=1.0, **cache)
    maps = Shaped(lambda maps: (maps, maps.mean(1)))
    with pytest.raises(
        StudyError, match=r"several outputs that could be the numbers .*: 0 \(8, 3, 4, 4\), 1 \(8, 4, 4\)"
    ):
        ablate(maps, numbers, metric=own, **cache)
    with pytest.raises(StudyError, match="no output 'x' of numbers with a row an image; it returns 0"):
        ablate(maps, numbers, metric=own, output="x", **cache)
    with pytest.raises(StudyError, match=r"returns tensor \(\), not numbers with a row an image; a metric of your own"):
        ablate(Shaped(torch.mean), numbers, metric=own, **cache)
    with pytest.raises(StudyError, match="a int is no metric"):
        ablate(net, numbers, metric=3, **cache)
    with pytest.raises(StudyError, match="loss says nothing of a network with 1 class; give a metric of your own"):
        ablate(net, Rows([0] * NUM_IMAGES), metric="loss", **cache)


def test_a_damaged_description_is_one_line(measured, tmp_path):
    copy = tmp_path / "results.sqlite"
    for damaged, line in (
        ("'$.own_metrics', 3", "own metrics is no value"),
        ("'$.own_metrics[0].worse', 5", "own metrics"),
    ):
        copy.write_bytes((measured / "results.sqlite").read_bytes())
        with sqlite3.connect(copy) as db:
            db.execute(f"UPDATE studies SET about = json_set(about, {damaged}) WHERE id = 1")
        with Store.open(copy) as store, pytest.raises(WeanalysisError, match=line):
            store.table(1)


def test_tables_of_both_are_readable(measured):
    with Store.open(measured / "results.sqlite") as store:
        both = pd.concat([store.table(1), store.table(2)])
    assert both["metric"].nunique() == 2


@pytest.mark.parametrize("page", ["overview", "location", "saliency", "compare"])
def test_pages_show_a_study_without_classes_by_its_numbers(measured, monkeypatch, page):
    monkeypatch.setenv("WEANALYSIS_CACHE", str(measured))
    app = AppTest.from_file(str(app_folder() / "main.py"), default_timeout=60)
    app.run()
    if page != "overview":
        app.switch_page(f"views/{page}.py")
    app.query_params["kernel"] = "0:1:1"
    app.run()
    assert not app.exception and not app.error
    if page != "location":
        return
    options = app.selectbox(key="study").options
    app.selectbox(key="study").select(next(one for one in options if "numbers" in one)).run()
    assert not app.exception and not app.error
    shown = " ".join(str(one.value) for element in (app.markdown, app.caption) for one in element)
    assert "Images whose squared error changed most" in shown and "intact squared error" in shown and "mm²" in shown


@pytest.mark.parametrize(
    "page, call, name",
    [("docs/metrics.md", "weanalysis.metric(", "missed labels"), ("README.md", "wa.metric(", "brier")],
)
def test_the_example_of_the_documentation_runs(page, call, name, tmp_path, monkeypatch):
    text = (Path(__file__).parent.parent / page).read_text()
    blocks = [block.partition("```")[0] for block in text.split("```python\n")[1:]]
    example = next(block for block in blocks if call in block)
    monkeypatch.setenv("WEANALYSIS_CACHE", str(tmp_path))
    net, count = network(), torch.arange(NUM_IMAGES)
    labels = (torch.arange(3 * NUM_IMAGES).reshape(-1, 3) % 2).float()
    data = Rows(labels if name == "missed labels" else (count % 3).tolist())
    names = {"weanalysis": weanalysis, "wa": weanalysis, "torch": torch, "net": net, "model": net, "data": data}
    exec(example, names)
    table = names["table"]
    assert len(table) > 10 and table["drop"].notna().all() and table["metric"][0].startswith(f"{name}-")
    assert len([line for line in example.strip().splitlines() if line.strip()]) == 3
