"""`train`, `fold`, `costs`, `compare` and `demo` from the command line: what they do, print, and refuse in one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from command_line import run
from PIL import Image

import weanalysis
import weanalysis._torchvision

# isort: split
import timm
import torchvision

from weanalysis.cache import Cache
from weanalysis.cli import demo
from weanalysis.cli.train import FLAGS, parse_seeds
from weanalysis.errors import TrainingError
from weanalysis.excitation import costs, excite
from weanalysis.models import build, load_network, save_checkpoint
from weanalysis.results import Store
from weanalysis.training import PRESETS, Recipe, Run, find_runs

HALVES = {"down": np.s_[4:, :], "left": np.s_[:, :4], "right": np.s_[:, 4:], "up": np.s_[:4, :]}

# Two steps an epoch.
SMALL = [
    "--model",
    "resnet20",
    "--recipe",
    "digits",
    "--image-size",
    "8",
    "--epochs",
    "2",
    "--warmup-epochs",
    "0",
    "--batch-size",
    "8",
    "--workers",
    "0",
    "--device",
    "cpu",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pictures of 8x8 pixels whose bright half tells the class: 16 to train on, 8 to validate on."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for name, half in HALVES.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 80, (8, 8, 3))
                pixels[half] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory) -> Path:
    """A cache with two seeds of a baseline and of LWE, trained by the command itself."""
    root = tmp_path_factory.mktemp("trained")
    for excitation in ("none", "lwe"):
        words = ["train", *SMALL, "--data", f"imagefolder:{folder}", "--excitation", excitation, "--seeds", "0-1"]
        assert run(*words, "--quiet", "--cache", str(root)) == 0
    return root


def refused(capsys, *words: str) -> str:
    """Run a command that ends in a user's error, and return its one line."""
    assert run(*words) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.strip()
    assert line.startswith("error: ") and "\n" not in line
    return line


def names_of_runs(root: Path) -> dict[tuple[str, int], str]:
    return {(run.recipe["excitation"], run.recipe["seed"]): run.name for run in find_runs(Cache(root))}


def num_parameters(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


# train ---------------------------------------------------------------------------------------------------------------

GIVEN = {
    "model": ("--model resnet32", "resnet32"),
    "options": ("--model-option shortcut=B --model-option depth=3", {"shortcut": "B", "depth": 3}),
    "data": ("--data cifar100", "cifar100"),
    "image_size": ("--image-size 40", 40),
    "mean": ("--mean 0.1,0.2,0.3", (0.1, 0.2, 0.3)),
    "std": ("--std 1,2,3", (1.0, 2.0, 3.0)),
    "attention": ("--attention se", "se"),
    "norm": ("--norm gn", "gn"),
    "excitation": ("--excitation lwe+mwe", "lwe+mwe"),
    "normalize": ("--no-normalize", False),
    "reduction": ("--reduction 8", 8),
    "eps": ("--eps 0.2", 0.2),
    "hidden_of": ("--hidden-of layer", "layer"),
    "unbiased": ("--unbiased", True),
    "constant_maximum": ("--no-constant-maximum", False),
    "layers": ("--layers layer1.*,conv1", ("layer1.*", "conv1")),
    "epochs": ("--epochs 2.5", 2.5),
    "batch_size": ("--batch-size 12", 12),
    "optimizer": ("--optimizer adamw", "adamw"),
    "learning_rate": ("--lr 0.3", 0.3),
    "momentum": ("--momentum 0.8", 0.8),
    "nesterov": ("--no-nesterov", False),
    "weight_decay": ("--weight-decay 0.01", 0.01),
    "schedule": ("--schedule multistep", "multistep"),
    "milestones": ("--milestones 1,1.5", (1.0, 1.5)),
    "gamma": ("--gamma 0.5", 0.5),
    "warmup_epochs": ("--warmup-epochs 0.5", 0.5),
    "cycle_epochs": ("--cycle-epochs 1", 1.0),
    "cycle_factor": ("--cycle-factor 1.5", 1.5),
    "augmentation": ("--augmentation none", "none"),
    "label_smoothing": ("--label-smoothing 0", 0.0),
    "mixed_precision": ("--mixed-precision bf16", "bf16"),
    "accumulation_steps": ("--accumulation-steps 2", 2),
    "channels_last": ("--no-channels-last", False),
    "frames": ("--frames 4", 4),
    "sampling": ("--sampling strided", "strided"),
    "seed": ("--seed 7", 7),
}


@pytest.fixture
def asked(monkeypatch, tmp_path) -> list[Recipe]:
    """What training was asked for; nothing is trained."""
    recipes: list[Recipe] = []

    def fake(recipe: Recipe, cache: Cache, **others) -> Run:
        recipes.append(recipe)
        run = Run(tmp_path / f"run{len(recipes)}")
        run.folder.mkdir()
        run.recipe_file.write_text(json.dumps({"recipe": recipe.to_json()}))
        result = {"top1": 50.0, "best_top1": 60.0, "best_epoch": 1, "epochs": 2.0, "seconds": 3.5}
        run.result_file.write_text(json.dumps(result))
        return run

    monkeypatch.setattr("weanalysis.training.train", fake, raising=False)
    return recipes


def test_every_value_of_a_recipe_is_a_flag(asked) -> None:
    assert set(GIVEN) == set(FLAGS) == {field.name for field in fields(Recipe)}
    words = [word for flags, _ in GIVEN.values() for word in flags.split()]
    assert run("train", "--recipe", "digits", *words, "--quiet") == 0
    (recipe,) = asked
    assert {name: getattr(recipe, name) for name in GIVEN} == {name: value for name, (_, value) in GIVEN.items()}
    plain = Recipe.from_preset("digits", model="resnet20")
    assert all(getattr(plain, name) != value for name, (_, value) in GIVEN.items()), "a flag would change nothing"


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_not_given_is_the_preset_s(asked, preset) -> None:
    assert run("train", "--model", "resnet152", "--recipe", preset, "--momentum", "0.5", "--quiet") == 0
    assert asked == [Recipe.from_preset(preset, model="resnet152", momentum=0.5)]


@pytest.mark.parametrize(
    ("data", "preset"),
    [("digits", "digits"), ("cifar10", "cifar"), ("cifar100:somewhere", "cifar"), ("imagenet:x", "imagenet")],
)
def test_without_a_recipe_the_data_choose(asked, data, preset) -> None:
    assert run("train", "-m", "resnet50", "-d", data, "--quiet") == 0
    assert asked == [Recipe.from_preset(preset, model="resnet50", data=data)]


def test_train_json_has_the_contract_s_keys(trained, folder, capsys) -> None:
    words = ["train", *SMALL, "--data", f"imagefolder:{folder}", "--cache", str(trained)]
    before = {path: path.stat().st_mtime_ns for path in trained.glob("runs/*/*")}
    assert run(*words, "--json") == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert list(printed) == ["run", "checkpoint", "top1", "epochs", "seconds"]
    done = Run(trained / "runs" / names_of_runs(trained)["none", 0])
    assert printed["run"] == done.name and Path(printed["checkpoint"]) == done.checkpoint
    assert printed["top1"] == done.metrics()["val_top1"].iloc[-1] and printed["epochs"] == 2
    assert printed["seconds"] == done.metrics()["seconds"].iloc[-1]
    # It was finished before, and stays as it is.
    assert "finished before; --no-resume" in captured.err
    assert before == {path: path.stat().st_mtime_ns for path in trained.glob("runs/*/*")}

    assert run(*words, "--seeds", "0-1", "--json", "--quiet") == 0
    captured = capsys.readouterr()
    assert [row["run"] for row in json.loads(captured.out)] == [names_of_runs(trained)["none", seed] for seed in (0, 1)]
    assert captured.err == ""


def test_a_run_is_shown_while_it_trains_and_when_it_is_done(folder, tmp_path, capsys) -> None:
    words = ["train", *SMALL, "--data", f"imagefolder:{folder}", "--cache", str(tmp_path)]
    assert run(*words, "--name", "mine", "--seeds", "3") == 0
    captured = capsys.readouterr()
    done = Run(tmp_path / "runs" / "mine-seed3")
    assert f"mine-seed3: top-1 {done.result['top1']:.2f} % after 2 epochs of the recipe digits" in captured.out
    assert str(done.checkpoint) in captured.out and "weanalysis compare mine-seed3 OTHER" in captured.out
    assert re.search(r"training mine-seed3: epoch \d of 2.* left", captured.err)

    line = refused(capsys, *words, "--name", "mine-seed3", "--lr", "0.01", "--seed", "3")
    assert "has another recipe (learning_rate: 0.01, not 0.02)" in line
    assert run(*words, "--name", "mine-seed3", "--lr", "0.01", "--seed", "3", "--no-resume", "--quiet") == 0
    assert done.recipe["learning_rate"] == 0.01


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(folder, tmp_path, capsys) -> None:
    words = [
        "train",
        *SMALL,
        "--data",
        f"imagefolder:{folder}",
        "--epochs",
        "24",
        "--name",
        "long",
        "--cache",
        str(tmp_path),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "weanalysis", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    started = Run(tmp_path / "runs" / "long")
    until = time.monotonic() + 300
    while not started.metrics_file.is_file() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert out == "" and "Traceback" not in err
    stopped = re.search(r"stopped the run long after step (\d+) of 48; the same command continues it", err)
    assert stopped and err.rstrip().splitlines()[-1].startswith("stopped the run")
    assert not started.finished
    assert run(*words) == 0
    assert f"continues the run long after step {stopped[1]} of 48" in capsys.readouterr().err
    assert len(started.metrics()) == 24


def test_the_other_processes_of_a_launch_are_silent(asked, monkeypatch, capsys) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run("train", "-m", "resnet20", "--json") == 0
    captured = capsys.readouterr()
    assert len(asked) == 1 and captured.out == "" and captured.err == ""


def test_seeds_are_ranges_and_lists() -> None:
    assert parse_seeds("0-4") == [0, 1, 2, 3, 4]
    assert parse_seeds("3, 0,7-8,3") == [3, 0, 7, 8]
    for text in ("", "a", "1-", "-1", "4-2", "1.5"):
        with pytest.raises(TrainingError, match="give whole numbers, such as 0-4"):
            parse_seeds(text)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--recipe", "cifra"], "unknown recipe 'cifra': did you mean cifar?"),
        (["--excitation", "lwee"], "unknown excitation 'lwee': did you mean"),
        (["--attention", "es"], "unknown attention 'es'"),
        (["--norm", "ln"], "unknown norm 'ln'"),
        (["--eps", "0", "--excitation", "mwe"], "the eps of MWE must be a number"),
        (["--reduction", "0", "--excitation", "lwe"], "the reduction of LWE must be a whole number of at least 1"),
        (["--layers", "nix", "--excitation", "lwe"], "unknown layer 'nix'"),
        (["--batch-size", "100"], "batch size 100 is larger than the 16 training images"),
        (["--milestones", "a,b"], "--milestones 'a,b' is malformed"),
        (["--mean", "1,2"], "--mean '1,2' is malformed"),
        (["--seeds", "x"], "--seeds 'x' is malformed"),
        (["--seeds", "0-1", "--seed", "3"], "--seed and --seeds"),
        (["--workers", "-1"], "--workers -1 is not allowed"),
        (["--name", "../x"], "cannot name a run"),
        (["--optimizer", "adma"], "unknown optimizer 'adma'"),
        (["--epochs", "0"], "epochs 0.0 is not possible; give a number above 0"),
        (["--model", "resnet21"], "unknown model 'resnet21'"),
        (["--device", "tpu"], "the device 'tpu' cannot train"),
        (["--model-option", "shortcut"], "--model-option 'shortcut' is malformed"),
    ],
)
def test_train_refuses_in_one_line(folder, tmp_path, capsys, words, line) -> None:
    given = ["train", *SMALL, "--data", f"imagefolder:{folder}", "--cache", str(tmp_path), *words]
    assert line in refused(capsys, *given)
    assert not list(tmp_path.glob("runs/*/*.safetensors"))


def test_wrong_usage_exits_2(capsys) -> None:
    assert run("train") == 2
    assert "--model" in capsys.readouterr().err
    assert run("train", "-m", "resnet20", "--epochs", "many") == 2
    assert run("fold", "x.safetensors") == 2
    assert run("compare", "one") == 2


# fold ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "make"),
    [
        ({"source": "torchvision", "name": "resnet18"}, lambda: torchvision.models.resnet18(num_classes=3)),
        ({"source": "timm", "name": "resnet10t"}, lambda: timm.create_model("resnet10t", num_classes=3)),
    ],
    ids=["torchvision", "timm"],
)
def test_a_folded_network_loads_elsewhere(tmp_path, capsys, architecture, make) -> None:
    torch.manual_seed(0)
    net = build({**architecture, "num_classes": 3, "options": {}, "excitation": {"kind": "lwe"}})
    excited, plain = tmp_path / "excited.safetensors", tmp_path / "plain.safetensors"
    architecture = {**architecture, "num_classes": 3, "options": {}, "excitation": {"kind": "lwe"}}
    about = {"classes": ["x", "y", "z"], "data": "digits", "run": "r", "notes": ["hello"]}
    save_checkpoint(excited, net, architecture, about)
    assert run("fold", str(excited), "-o", str(plain), "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed) == [
        "checkpoint",
        "output",
        "model",
        "excitation",
        "layers",
        "train_params",
        "inference_params",
    ]
    assert printed["excitation"] == "lwe"

    stock = make()
    stock.load_state_dict(safetensors.torch.load_file(plain), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(stock.eval()(images), net(images), rtol=1e-4, atol=1e-4)
    assert [printed["train_params"], printed["inference_params"]] == [num_parameters(net), num_parameters(stock)]
    assert len(printed["layers"]) == sum(isinstance(module, torch.nn.Conv2d) for module in stock.modules())
    again = load_network(str(plain))
    assert again.classes == ("x", "y", "z") and again.notes == ["hello"] and "excitation" not in again.architecture

    assert run("fold", str(excited), "-o", str(plain)) == 0
    assert "Folded lwe into" in (out := capsys.readouterr().out) and "strict=True" in out


def test_a_run_can_be_folded_by_name(trained, tmp_path, capsys) -> None:
    name = names_of_runs(trained)["lwe", 0]
    assert run("fold", name, "-o", str(tmp_path / "plain.safetensors"), "--cache", str(trained)) == 0
    assert "Folded lwe into the weights of 19 layers of resnet20" in capsys.readouterr().out


def test_fold_refuses_in_one_line(trained, tmp_path, capsys) -> None:
    names, plain = names_of_runs(trained), tmp_path / "plain.safetensors"
    own = trained / "runs" / names["lwe", 0] / "last.safetensors"
    content = own.read_bytes()
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file(torchvision.models.resnet18(num_classes=2).state_dict(), foreign)
    for source, target, line in (
        (names["none", 0], plain, "there is nothing to fold: the network has plain weights already"),
        (names["lwe", 0], own, "is the checkpoint itself"),
        (names["lwe", 0], tmp_path / "plain.pt", "name it plain.safetensors"),
        (foreign, plain, "does not say which network it is for"),
        (tmp_path / "missing.safetensors", plain, "cannot be read"),
        ("nix", plain, "unknown run or study 'nix'"),
    ):
        assert line in refused(capsys, "fold", str(source), "-o", str(target), "--cache", str(trained))
    assert own.read_bytes() == content and not plain.exists()


# costs ---------------------------------------------------------------------------------------------------------------

COSTS = [
    "model",
    "excitation",
    "attention",
    "train_params",
    "inference_params",
    "gflops",
    "batch_size",
    "train_memory_gib",
    "inference_memory_gib",
    "train_step_s",
    "inference_step_s",
]


def test_costs_json_has_the_contract_s_keys(capsys) -> None:
    words = ["costs", "-m", "resnet20", "--batch-size", "4", "--image-size", "16", "--repeats", "1", "--device", "cpu"]
    assert run(*words, "--excitation", "lwe", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed) == COSTS
    assert (printed["model"], printed["excitation"], printed["attention"]) == ("resnet20", "lwe", "none")
    net = load_network("resnet20", "none").net
    assert printed["inference_params"] == num_parameters(net)
    assert printed["train_params"] == num_parameters(excite(net, "lwe"))
    assert printed["batch_size"] == 4
    assert all(printed[name] > 0 for name in COSTS[5:])

    assert run(*words, "--excitation", "none,lwe,none", "--quiet", "--json") == 0
    captured = capsys.readouterr()
    several = json.loads(captured.out)
    assert [row["excitation"] for row in several] == ["none", "lwe"] and captured.err == ""
    assert several[0]["train_params"] == several[1]["inference_params"] < several[1]["train_params"]
    assert several[0]["gflops"] == several[1]["gflops"]


def test_costs_are_shown_side_by_side(capsys) -> None:
    words = ["costs", "-m", "resnet18", "-b", "2", "--image-size", "64", "--repeats", "1", "--attention", "se"]
    assert run(*words, "-e", "none,lwe", "--device", "cpu", "--quiet") == 0
    out = capsys.readouterr().out
    assert "resnet18 with se, batch 2, 64 x 64, on cpu" in out
    assert re.search(r"train param. \(M\) +11.78 +11.94 *\n", out)  # Table 1: 11.8 and 11.9
    assert re.search(r"inference param. \(M\) +11.78 +11.78 *\n", out)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("resnet20", (3, 32, 32)),
        ("timm:resnet10t", timm.get_pretrained_cfg("resnet10t").input_size),
        ("resnet18", (3, 224, 224)),
        ("r3d_18", (3, 16, 112, 112)),
        ("tsm_resnet18", (3, 8, 48, 48)),
        ("cnn1d", (1, 64)),
    ],
)
def test_costs_choose_the_network_s_own_inputs(monkeypatch, capsys, model, shape) -> None:
    seen = []

    def fake(net, batch_size, input_shape, **others):
        seen.append((others["name"], input_shape, batch_size))
        return dict.fromkeys(COSTS, float("nan")) | {"excitation": "none", "attention": "none"}

    monkeypatch.setattr("weanalysis.excitation.costs", fake)
    assert run("costs", "-m", model, "--json") == 0
    assert seen == [(model, shape, 32)]
    assert json.loads(capsys.readouterr().out)["gflops"] is None


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["-e", "lwee"], "unknown excitation 'lwee'"),
        (["-e", "none,"], "unknown excitation ''"),
        (["-e", "lwe", "--reduction", "0"], "the reduction of LWE"),
        (["-m", "nix"], "unknown model 'nix'"),
        (["-b", "0"], "sizes of at least 1, not batch size 0"),
        (["--attention", "nix"], "unknown attention 'nix'"),
        (["--device", "cuda:7"], "cuda:7"),
        (["--image-size", "-1"], "at least 1"),
    ],
)
def test_costs_refuses_in_one_line(capsys, words, line) -> None:
    assert line in refused(capsys, "costs", "-m", "resnet20", *words, "--quiet")


# compare -------------------------------------------------------------------------------------------------------------


def test_compare_json_has_the_contract_s_keys(trained, capsys) -> None:
    names = names_of_runs(trained)
    assert run("compare", names["none", 0], names["lwe", 0], "--json", "--cache", str(trained)) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert list(printed) == [
        "first",
        "second",
        "metric",
        "difference",
        "difference_low",
        "difference_high",
        "p_value",
        "num_images",
    ]
    assert (printed["first"], printed["second"]) == (names["none", 0], names["lwe", 0])
    results = [Run(trained / "runs" / names[kind, 0]).result["top1"] for kind in ("none", "lwe")]
    assert printed["difference"] == pytest.approx(results[1] - results[0])  # second minus first
    assert printed["difference_low"] <= printed["difference"] <= printed["difference_high"]
    assert printed["num_images"] == 8 and printed["metric"] == "top1"
    assert captured.err == ""


def test_compare_says_what_its_interval_speaks_of(trained, capsys) -> None:
    names = names_of_runs(trained)
    pair = [names["none", 0], names["lwe", 0]]
    assert run("compare", *pair, "--reach", "1,100", "--cache", str(trained), "--quiet") == 0
    out = capsys.readouterr().out
    assert "B minus A: " in out and "McNemar's exact p" in out and "on 8 images of imagefolder:" in out
    assert "This speaks of these two networks only." in out
    assert re.search(r"epochs to 1.00 % \(validation\) +[12].0", out)
    for word in ("training step (s)", "peak memory of training (GiB)", "GFLOPs of an image", "Validation accuracy"):
        assert word in out
    assert "Their recipes differ in excitation: 'none' in A, 'lwe' in B." in out

    assert run("compare", *pair, "--every-seed", "--cache", str(trained), "--quiet") == 0
    out = capsys.readouterr().out
    assert f"A: {names['none', 0]},{names['none', 1]}" in out
    assert "two networks only" not in out and "means over runs" in out


def test_compare_shows_two_studies(trained, folder, capsys) -> None:
    names = names_of_runs(trained)
    for kind in ("none", "lwe"):
        checkpoint = trained / "runs" / names[kind, 0] / "last.safetensors"
        assert (
            run(
                "ablate",
                "-m",
                str(checkpoint),
                "-d",
                f"imagefolder:{folder}",
                "--grid",
                "1x1",
                "--layers",
                "layer1.*",
                "--name",
                f"map-{kind}",
                "--cache",
                str(trained),
                "--quiet",
            )
            == 0
        )
    capsys.readouterr()
    assert run("compare", "map-none", "map-lwe", "--cache", str(trained), "--quiet") == 0
    out = capsys.readouterr().out
    assert "Mean D of 6 places on 8 images" in out and "positive: B needs these weights more" in out
    assert "layer1.0.conv1[0, 0]" in out and "Images that are lost where some place is zeroed" in out
    assert run("compare", "map-none", "map-lwe", "--json", "--cache", str(trained)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["metric"] == "drop of top1" and printed["num_images"] == 8


def test_compare_refuses_in_one_line(trained, capsys) -> None:
    name = names_of_runs(trained)["none", 0]
    for words, line in (
        (["nix", name], "unknown run or study 'nix'"),
        ([name, name, "--reach", "a"], "--reach 'a' is malformed"),
        ([name, name, "--reach", "101"], "101 % cannot be reached"),
        ([name, name, "--batch-size", "0"], "--batch-size 0 is not allowed"),
        ([name, name, "--metric", "top9"], "unknown metric 'top9'"),
        ([name, name, "--data", "imagefolder:nowhere"], "nowhere does not exist"),
        ([name, name, "--images", "0"], "0 images were asked for"),
    ):
        assert line in refused(capsys, "compare", *words, "--cache", str(trained))


@pytest.mark.parametrize(("words", "said"), [((), "interrupted"), (("to go on, say so",), "to go on, say so")])
def test_ctrl_c_at_any_moment_is_a_line_and_130(monkeypatch, capsys, words, said) -> None:
    def interrupted(*_, **__):
        raise KeyboardInterrupt(*words)

    monkeypatch.setattr("weanalysis.comparison.compare", interrupted)
    assert run("compare", "a", "b") == 130
    assert capsys.readouterr().err.strip() == said


def test_what_the_commands_do_is_public() -> None:
    assert weanalysis.costs is costs
    assert {"train", "compare", "costs"} <= set(weanalysis.__all__)


def test_demo_goes_from_nothing_to_the_comparison_and_does_nothing_twice(tmp_path, capsys, monkeypatch) -> None:
    """The whole demo, shortened: all that it runs is real."""
    monkeypatch.setitem(PRESETS, "digits", {**PRESETS["digits"], "epochs": 0.2, "warmup_epochs": 0, "image_size": 8})
    monkeypatch.setattr(demo, "NUM_IMAGES", 10)
    monkeypatch.setattr(demo, "PERCENTILES", "50,100")
    words = ["demo", "--no-dashboard", "--cache", str(tmp_path)]
    assert run(*words) == 0
    said = capsys.readouterr()
    assert "D_H - D_L = " in said.out and "B minus A: " in said.out and "on 719 images of digits" in said.out
    assert said.err.count("trains resnet20 on digits") == 2
    with Store.open(Cache(tmp_path).results) as store:
        studies = store.studies().sort_values("id")
    assert studies["kind"].tolist() == ["magnitude", "location", "location", "multiplier"]
    assert set(studies["state"]) == {"complete"} and set(studies["num_images"]) == {10}
    assert run(*words) == 0
    said = capsys.readouterr()
    assert "trains resnet20" not in said.err
    assert len(re.findall(r"\(([\d,]+) measurements were in the cache\)", said.out)) == 4
