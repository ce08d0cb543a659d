"""The main job from end to end: kept, resumed, extended, interrupted, in processes, and refused in one line."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from command_line import run
from made_studies import only
from small_networks import NUM_IMAGES, Images, Small, count_blocks
from torch import nn

from weanalysis.ablation import Evaluator, Interrupted, ablate, schedule, studies
from weanalysis.cache import Cache
from weanalysis.devices import find_devices
from weanalysis.errors import DeviceError, StoreError, StudyError, WeanalysisError
from weanalysis.results import COLUMNS, Store
from weanalysis.results.statistics import selected_intervals
from weanalysis.results.store import Writer


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "results")


def plain_drop(net: nn.Module, ablation: studies.Ablation, data: Images) -> float:
    images, targets = torch.stack([x for x, _ in data]), torch.tensor([y for _, y in data])
    with torch.no_grad():
        intact = (net(images).argmax(1) == targets).float().mean()
        wounded = Small()
        wounded.load_state_dict(net.state_dict())
        wounded.get_submodule(ablation.layer).weight[ablation.out_channel, ablation.in_channel] = 0
        return 100 * float(intact - (wounded(images).argmax(1) == targets).float().mean())


def test_every_drop_is_that_of_a_plain_loop(cache):
    net, data = Small(), Images()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    study = studies.location(net, "all")
    table = ablate(net, data, study, cache=cache, shard_size=7)
    assert tuple(table.columns) == COLUMNS and len(table) == len(study.ablations) == 6 * 3 + 6 * 6
    expected = [plain_drop(net, ablation, data) for ablation in study.ablations]
    assert np.allclose(table["drop"], expected, atol=1e-9)
    assert np.count_nonzero(expected) > 5
    assert (table["drop_low"] < table["drop"]).all() and (table["drop"] < table["drop_high"]).all()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert table.attrs["intact"] == table["intact"].iloc[0] and table.attrs["num_images"] == NUM_IMAGES


def test_the_same_question_is_answered_from_the_cache(cache):
    net, data = Small(), Images()
    first = ablate(net, data, "location", cache=cache, shard_size=7, grid="3x3")
    blocks = count_blocks(cache)
    second = ablate(net, data, "location", cache=cache, shard_size=7, grid="3x3")
    assert count_blocks(cache) == blocks and second.attrs["reused"] == len(second) * 4
    pd.testing.assert_frame_equal(first, second)


def test_more_images_and_every_kernel_extend_what_is_there(cache, monkeypatch):
    done: list[tuple[str, int]] = []
    measure = Evaluator.measure

    def watched(self, images, targets, ablations, start=0):
        done.extend((ablation.key, start) for ablation in ablations)
        return measure(self, images, targets, ablations, start)

    monkeypatch.setattr(Evaluator, "measure", watched)
    net = Small()
    whole = Images()
    # The same data, of which fewer images are served: what load_data(num_images=) makes.
    few = Images(12)
    from weanalysis.data import GivenImages

    served = GivenImages(whole)
    part = GivenImages(few)
    part.fingerprint = served.fingerprint
    ablate(net, part, "location", cache=cache, shard_size=6, grid="2x2")
    assert len(done) == len(set(done)) == 8 * 2
    ablate(net, served, "location", cache=cache, shard_size=6, grid="2x2")
    assert len(done) == len(set(done)) == 8 * 4
    table = ablate(net, served, "location", cache=cache, shard_size=6, grid="all")
    assert len(done) == len(set(done)) == 54 * 4
    fresh = ablate(net, whole, "location", cache=Cache(cache.root / "fresh"), shard_size=6, grid="all")
    pd.testing.assert_frame_equal(table, fresh)


@pytest.mark.parametrize("kind", ["magnitude", "channel", "layer"])
def test_every_study_is_the_same_exactly_and_naively(cache, kind):
    net, data = Small(), Images()
    tables = [
        ablate(net, data, kind, evaluate=mode, cache=cache).drop(columns="evaluate") for mode in ("exact", "naive")
    ]
    pd.testing.assert_frame_equal(*tables)
    assert tables[0]["num_flipped"].sum() > 0


def test_processes_give_the_same_table(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(schedule.tasks, "TASK_SECONDS", 0.0)
    tables = []
    for jobs in ("1", "2"):
        run("ablate", "--jobs", jobs, *of(pictures), "--cache", str(tmp_path / jobs), "--grid", "2x2")
        with Store.open(tmp_path / jobs / "results.sqlite") as store:
            tables.append(store.table(only(store)))
            assert set(store.studies()["state"]) == {"complete"}
    pd.testing.assert_frame_equal(*tables)
    assert tables[0]["num_flipped"].sum() > 0


def of(pictures) -> list[str]:
    return [
        "--model",
        str(pictures / "net.safetensors"),
        "--data",
        f"imagefolder:{pictures / 'images'}",
        "--shard-size",
        "10",
    ]


def test_a_killed_study_goes_on_where_it_was(pictures, tmp_path):
    """SIGKILL in the middle; the second start repeats nothing that was kept and ends with the same table."""
    words = ["ablate", "--jobs", "1", *of(pictures), "--grid", "2x2", "--cache"]
    assert run(*words, str(tmp_path / "whole")) == 0
    cache = Cache(tmp_path / "killed")
    process = subprocess.Popen(
        [sys.executable, "-m", "weanalysis", *words, str(cache.root)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    kept = 0
    while kept == 0 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
        if cache.results.is_file():
            try:
                kept = count_blocks(cache)
            except Exception:
                kept = 0
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = count_blocks(cache)
    assert kept >= 1
    if kept < 4:
        with Store.open(cache.results) as store:
            assert store.studies()["state"].tolist() == ["running"]
    assert run(*words, str(cache.root)) == 0
    assert count_blocks(cache) == count_blocks(Cache(tmp_path / "whole"))
    with Store.open(cache.results) as one, Store.open(tmp_path / "whole/results.sqlite") as two:
        pd.testing.assert_frame_equal(one.table(only(one)), two.table(only(two)))
        assert one.studies()["state"].tolist() == ["complete"]


def test_ctrl_c_finishes_the_task_in_hand_and_says_how_to_go_on(pictures, cache, capsys, monkeypatch):
    write = Writer.write

    def interrupting(self, *arguments):
        write(self, *arguments)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Writer, "write", interrupting)
    words = ["ablate", "--jobs", "1", *of(pictures), "--grid", "1x1", "--cache", str(cache.root)]
    assert run(*words) == 130
    assert "run the same command again" in capsys.readouterr().err
    with Store.open(cache.results) as store:
        assert store.studies()["state"].tolist() == ["stopped"]
        assert store.table(only(store))["num_images"].tolist() == [10] * 19
    monkeypatch.setattr(Writer, "write", write)
    assert run(*words) == 0
    with Store.open(cache.results) as store:
        assert store.table(only(store))["num_images"].tolist() == [40] * 19


def test_a_stop_reaches_processes_that_are_still_starting(pictures, tmp_path):
    """A terminal's Ctrl-C, or a batch system's SIGTERM, goes to every process; those importing torch must not die.

    They are sent both here; what the process that runs the study does at the one it does at the other.
    """
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "weanalysis",
            "ablate",
            "--jobs",
            "2",
            *of(pictures),
            "--grid",
            "2x2",
            "--layers",
            "layer1*",
            "--cache",
            str(tmp_path),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "0 of " in line:  # the first report is made before the first process is started
            break
    deadline = time.monotonic() + 60
    while len(children := psutil.Process(process.pid).children(recursive=True)) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)  # two workers, and the two processes that keep track of what they share
    for child in children:
        child.send_signal(signal.SIGINT)
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 130, said
    assert "press Ctrl-C again to stop at once" in said and "run the same command again" in said
    assert "Traceback" not in said and "died" not in said


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_python(cache, sent):
    def stop(status):
        if status.done:
            os.kill(os.getpid(), sent)

    with pytest.raises(Interrupted, match="stopped with 8 of 32"):
        ablate(Small(), Images(), "location", grid="2x2", cache=cache, shard_size=6, report=stop)


def test_a_second_process_on_the_same_study_is_refused(cache):
    net, data = Small(), Images()
    caught = []

    def meanwhile(status):
        if not caught:
            with pytest.raises(StoreError, match="another process is working on the study") as error:
                ablate(net, data, "layer", cache=cache)
            caught.append(error)

    ablate(net, data, "layer", cache=cache, report=meanwhile)
    assert caught


def test_a_failing_image_keeps_what_was_measured(cache):
    class Breaking(Images):
        reads = 0

        def __getitem__(self, index):
            # Read once for the fingerprint and once for the first look; then the last shard fails.
            Breaking.reads += 1
            if Breaking.reads > NUM_IMAGES + 20 and index >= 18:
                raise WeanalysisError("image 20 cannot be read")
            return super().__getitem__(index)

    net, data = Small(), Breaking()
    with pytest.raises(WeanalysisError, match="image 20"):
        ablate(net, data, "layer", cache=cache, shard_size=6)
    with Store.open(cache.results) as store:
        assert store.studies()["state"].tolist() == ["failed"]
        assert store.table(only(store))["num_images"].tolist() == [18, 18]


def test_reports_count_up_to_what_the_table_says(cache):
    reports = []
    table = ablate(Small(), Images(), "location", grid="2x2", cache=cache, shard_size=6, report=reports.append)
    assert [status.done for status in reports] == [0, 8, 16, 24, 32] and reports[-1].total == 32
    last = reports[-1].counts
    assert np.array_equal(last["lost"] + last["gained"], table["num_flipped"])
    assert np.allclose(100 * last["num_correct"] / last["num_images"], table["intact"])
    assert reports[-1].seconds_left == pytest.approx(0, abs=1e-6) and np.isnan(reports[0].seconds_left)


def test_json_is_one_object_with_the_contracts_keys(pictures, cache, capsys):
    capsys.readouterr()
    words = ["--grid", "1x1", "--layers", "layer1.*", "--json", "--cache", str(cache.root)]
    assert run("ablate", *of(pictures), *words) == 0
    printed = json.loads(capsys.readouterr().out)
    contract = {"study", "model", "data", "metric", "intact", "num_images", "evaluate", "seconds", "rows"}
    assert set(printed) == contract | {"stopping", "num_settled", "images_needed", "checks", "doubt"}
    assert printed["checks"]["num_checked"] > 0 and printed["checks"]["distrusted"] == {}
    assert printed["stopping"] is None and printed["num_settled"] == 0
    assert len(printed["rows"]) == 6 and set(printed["rows"][0]) == set(COLUMNS)
    assert printed["rows"][0]["percentile"] is None and printed["num_images"] == 40


def test_summary_list_and_export(pictures, cache, capsys, tmp_path):
    words = ["--cache", str(cache.root)]
    assert run("ablate", *of(pictures), "--grid", "1x1", "--name", "mine", *words) == 0
    text = capsys.readouterr().out
    for phrase in (
        "mine: intact top-1",
        "most important: 5 of 19, with intervals adjusted for that choice",
        "least important: none has a D below 0" if "none has a D" in text else "least important: ",
        "of 19 kernels",
        "* differs from 0 after correction",
        "weanalysis export 1",
    ):
        assert phrase in text
    with Store.open(cache.results) as store:
        table = store.table(only(store))
    for row in selected_intervals(table.sort_values("drop", ascending=False, kind="stable")[:5], 19).itertuples():
        shown = f"{row.drop:+.2f} [{row.selected_low:+.2f}, {row.selected_high:+.2f}]"
        q = f"{row.q_value:.2g}" + ("*" if row.q_value <= 0.05 else "")
        line = next(line for line in text.splitlines() if line.startswith(f"{row.layer}["))
        assert shown in line and q in line.split(), (shown, q, line)
    assert run("list", *words) == 0
    assert "mine" in capsys.readouterr().out
    assert run("list", "--json", *words) == 0
    assert json.loads(capsys.readouterr().out)["studies"][0]["state"] == "complete"
    for suffix, read in ((".csv", pd.read_csv), (".parquet", pd.read_parquet)):
        assert run("export", "mine", "-o", str(tmp_path / f"table{suffix}"), *words) == 0
        assert len(read(tmp_path / f"table{suffix}")) == 19
    for what, name in (("models", "resnet110"), ("data", "imagefolder"), ("runs", "no runs")):
        assert run("list", what, *words) == 0
        assert name in capsys.readouterr().out


def test_names_and_folders_may_hold_what_a_terminal_or_a_shell_reads(pictures, tmp_path, capsys):
    odd = tmp_path / "my [bold]results"
    words = ["--grid", "1x1", "--layers", "conv1", "--name", "a [/x] study", "--cache", str(odd)]
    assert run("ablate", *of(pictures), *words) == 0
    said = capsys.readouterr().out
    assert "a [/x] study: intact top-1" in said and f"--cache {shlex.quote(str(odd))}" in said
    assert run("list", "--cache", str(odd)) == 0
    assert "a [/x] study" in capsys.readouterr().out


BAD = {
    "unknown model": (["--model", "resnet5O"], "did you mean .*resnet50"),
    "unknown data": (["--data", "digit"], "did you mean digits"),
    "unknown study": (["--study", "magnitud"], "did you mean magnitude"),
    "unknown metric": (["--metric", "top2"], "did you mean"),
    "unknown evaluation": (["--evaluate", "fast"], "choose from"),
    "unknown dtype": (["--dtype", "float8"], "did you mean float"),
    "no such pictures": (["--data", "imagefolder:/nowhere"], "/nowhere"),
    "no such checkpoint": (["--model", "/nowhere/net.safetensors"], "/nowhere/net.safetensors"),
    "grid": (["--grid", "5by5"], "malformed"),
    "percentile": (["--study", "magnitude", "--percentiles", "0-10"], "percentile 0 is not allowed"),
    "layers": (["--layers", "nothing*"], "unknown layer"),
    "device": (["--device", "cuda:3"], "does not exist"),
    "odd device": (["--device", "tpu!"], "unknown"),
    "jobs": (["--jobs", "0"], "jobs 0"),
    "images": (["--images", "0"], "num_images|images"),
    "mean": (["--mean", "0.5"], "three numbers"),
    "option of another study": (["--percentiles", "50"], "does not belong to --study location"),
    "model option": (["--model-option", "shortcut"], "KEY=VALUE"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_1(pictures, cache, case, capsys):
    words, line = BAD[case]
    base = [] if case in ("unknown model", "unknown data", "no such checkpoint", "no such pictures") else of(pictures)
    if case == "no such pictures":
        base = of(pictures)[:2]
    assert run("ablate", *base, *words, "--cache", str(cache.root)) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    errors = [text for text in printed.err.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in printed.err
    assert re.search(line, errors[0])
    if cache.results.is_file():
        with Store.open(cache.results) as store:
            assert store.studies().empty


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--study", "multiplier"], "the network has no LWE multipliers"),
        (["--study", "magnitude", "--percentiles", "101"], "percentile 101 is not allowed"),
        (["--layers", "nix"], "unknown layer 'nix'"),
        (["--std", "1"], "--std '1' is malformed"),
        (["--evaluate", "exat"], "unknown evaluation 'exat'"),
        (["--device", "cuda:99"], "device 'cuda:99' does not exist"),
        (["--jobs", "0"], "jobs 0 is not allowed"),
        (["--evaluate", "screened", "--max-error", "0"], "a largest error of 0 points is not allowed"),
        (["--evaluate", "screened", "--until-ci", "1"], "needs measured answers"),
    ],
)
def test_what_cannot_be_measured_is_not_trained_for(tmp_path, capsys, words, line):
    """On a fresh machine a network is trained first: minutes in vain, were the request looked at only afterwards."""
    assert run("ablate", "--model", "resnet20", *words, "--cache", str(tmp_path)) == 1
    assert line in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_cache_that_cannot_be_used_is_refused(pictures, tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("no pictures")
    assert run("ablate", *of(pictures), "--cache", str(blocked / "cache")) == 1
    assert "cannot be written" in capsys.readouterr().err
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "results.sqlite").write_bytes(b"not a database at all " * 100)
    assert run("ablate", *of(pictures), "--grid", "1x1", "--cache", str(broken)) == 1
    assert "cannot be opened as a results file" in capsys.readouterr().err
    assert (broken / "results.sqlite").read_bytes().startswith(b"not a database")


def test_wrong_usage_is_status_2():
    assert run("ablate", "--no-such-option") == 2
    assert run("no-such-command") == 2
    assert run("export", "1") == 2


def test_networks_that_cannot_be_measured(cache):
    data = Images()
    broken = Small()
    broken.head.weight.data[0] = float("nan")
    with pytest.raises(StudyError, match="NaN"):
        ablate(broken, data, "layer", cache=cache)
    with pytest.raises(StudyError, match="top5 says nothing"):
        five = Small()
        five.head = nn.Linear(6, 5)
        ablate(five, data, "layer", metric="top5", cache=cache)
    with pytest.raises(WeanalysisError, match="is no network"):
        ablate("resnet20", data, "layer", cache=cache)
    with pytest.raises(WeanalysisError, match="is no data set"):
        ablate(Small(), 3, "layer", cache=cache)
    assert not cache.results.is_file()


def test_devices():
    assert find_devices("cpu") == ("cpu",)
    assert find_devices("auto") == (("cuda:0",) if torch.cuda.is_available() else ("cpu",))
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="no CUDA device"):
            find_devices("cuda:0,cuda:1")
    with pytest.raises(DeviceError, match="not supported"):
        find_devices("meta")


def test_tasks_cover_a_shard_once_and_end_soon():
    net = Small()
    ablations = studies.location(net, "all").ablations
    costs = [0.5] * len(ablations)
    tasks = schedule.cut(range(len(ablations)), costs, 0, 10, 1.0, ablations, "exact")
    assert [place for task in tasks for place in task.places] == list(range(len(ablations)))
    assert len(tasks) == 4 and all(len(task.places) <= schedule.tasks.TASK_ABLATIONS for task in tasks)
    assert len(schedule.cut(range(len(ablations)), costs, 0, 10, 1e-6, ablations, "exact")) == 1
    assert schedule.cut([], costs, 0, 10, 1.0, ablations, "exact") == []
