"""Training: recipes and their addresses, batches, learning rates, the loop, and what survives a kill."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import FrozenInstanceError, make_dataclass, replace
from pathlib import Path

import filelock
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import weanalysis._torchvision  # noqa: F401

# isort: split
from torchvision.transforms import InterpolationMode

from weanalysis.cache import Cache
from weanalysis.data import load_data
from weanalysis.errors import DeviceError, ExcitationError, TrainingError
from weanalysis.models import load_network, read_state_dict
from weanalysis.training import (
    AUGMENTATIONS,
    METRICS,
    PRESETS,
    Recipe,
    Run,
    TrainingProgress,
    list_runs,
    loop,
    read_metrics,
    train,
    trained_checkpoint,
)
from weanalysis.training.images import Batches, TrainingImages
from weanalysis.training.network import make_network
from weanalysis.training.optimization import learning_rate

CLASSES = ("down", "left", "right", "up")
IMAGES_PER_CLASS = 12
EPOCHS, BATCH_SIZE = 2, 8
STEPS_PER_EPOCH = len(CLASSES) * IMAGES_PER_CLASS // BATCH_SIZE


def write_folder(root: Path, images_per_class: int = IMAGES_PER_CLASS) -> Path:
    """Pictures of 8x8 pixels whose bright half tells the class."""
    halves = {"down": np.s_[4:, :], "left": np.s_[:, :4], "right": np.s_[:, 4:], "up": np.s_[:4, :]}
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(images_per_class):
                pixels = random.integers(0, 80, (8, 8, 3))
                pixels[halves[name]] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("pictures"))


def small_recipe(folder: Path, **overrides) -> Recipe:
    values = {
        "data": f"imagefolder:{folder}",
        "image_size": 8,
        "epochs": EPOCHS,
        "batch_size": BATCH_SIZE,
        "augmentation": "pad-crop-flip",
        "learning_rate": 0.05,
    }
    return Recipe.from_preset("digits", model="resnet20", **(values | {"warmup_epochs": 0} | overrides))


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("imagenet", {"epochs": 100, "milestones": (30, 60, 90), "batch_size": 256, "weight_decay": 1e-4}),
        ("imagenet-90", {"epochs": 90, "milestones": (27, 54, 81), "batch_size": 256, "weight_decay": 1e-4}),
        ("cifar", {"epochs": 164, "milestones": (81, 122), "batch_size": 256, "weight_decay": 5e-4}),
    ],
)
def test_sgd_presets_have_the_papers_numbers(preset, expected):
    recipe = Recipe.from_preset(preset, model="resnet50")
    common = {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.1, "gamma": 0.1, "schedule": "multistep"}
    assert {name: getattr(recipe, name) for name in expected | common} == expected | common
    assert not recipe.nesterov and recipe.label_smoothing == 0 and recipe.warmup_epochs == 0


def test_adamw_preset_has_the_papers_numbers():
    recipe = Recipe.from_preset("adamw-cosine", model="resnet50")
    assert (recipe.optimizer, recipe.learning_rate, recipe.weight_decay) == ("adamw", 1e-3, 0.1)
    assert (recipe.schedule, recipe.cycle_epochs, recipe.cycle_factor) == ("cosine", 5, 1.2)
    assert recipe.epochs == pytest.approx(5 + 5 * 1.2 + 5 * 1.2**2 + 5 * 1.2**3)


def test_resnet152_has_half_the_batch_and_every_value_can_be_overridden():
    assert Recipe.from_preset("imagenet", model="resnet152").batch_size == 128
    assert Recipe.from_preset("imagenet", model="resnet152", batch_size=64).batch_size == 64
    for preset in PRESETS:
        assert Recipe.from_preset(preset, model="resnet20", learning_rate=0.7, epochs=4).learning_rate == 0.7


def test_recipe_survives_json_and_is_frozen():
    recipe = Recipe.from_preset("adamw-cosine", model="resnet20", options={"shortcut": "B"}, layers="layer1.*")
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert recipe.layers == ("layer1.*",)
    with pytest.raises(FrozenInstanceError):
        recipe.seed = 1


def test_address_covers_every_option_and_no_default():
    recipe = Recipe.from_preset("cifar", model="resnet20")
    assert recipe.address == replace(recipe, epochs=164.0).address
    assert recipe.address != replace(recipe, seed=1).address
    assert recipe.address != replace(recipe, options={"shortcut": "B"}).address
    extended = make_dataclass("Extended", [("new_option", int, 3)], bases=(Recipe,), frozen=True, kw_only=True)
    values = {"model": "resnet20", **PRESETS["cifar"]}
    assert extended(**values).address == recipe.address
    assert extended(**values, new_option=4).address != recipe.address


def test_defaults_never_change_or_runs_in_caches_are_lost():
    defaults = {
        "model": "",
        "options": {},
        "data": "digits",
        "image_size": None,
        "mean": None,
        "std": None,
        "attention": "none",
        "norm": "bn",
        "excitation": "none",
        "normalize": True,
        "reduction": 16,
        "eps": 0.1,
        "layers": None,
        "hidden_of": "group",
        "unbiased": False,
        "constant_maximum": True,
        "epochs": 100.0,
        "batch_size": 256,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.0001,
        "schedule": "multistep",
        "milestones": [],
        "gamma": 0.1,
        "warmup_epochs": 0.0,
        "cycle_epochs": None,
        "cycle_factor": 1.0,
        "augmentation": "none",
        "label_smoothing": 0.0,
        "mixed_precision": "no",
        "accumulation_steps": 1,
        "channels_last": True,
        "seed": 0,
    }
    assert Recipe(model="").to_json().items() >= defaults.items()
    recipe = Recipe(model="resnet20", seed=3, milestones=(1, 2), options={"shortcut": "B"})
    assert recipe.address[:16] == "058a768aa50acae3"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"epochs": 0}, "epochs 0.0 is not possible; give a number above 0"),
        ({"epochs": math.nan}, "epochs nan"),
        ({"learning_rate": math.inf}, "learning rate inf"),
        ({"batch_size": 0}, "batch size 0"),
        ({"accumulation_steps": 3}, "accumulation steps 3 is not possible; give a divisor of the batch size 32"),
        ({"warmup_epochs": 10}, "warmup epochs 10.0"),
        ({"label_smoothing": 1}, "label smoothing 1.0"),
        ({"mixed_precision": "int4"}, "one of no, fp16, bf16"),
        ({"learning_rat": 1}, "did you mean learning_rate"),
    ],
)
def test_impossible_values_are_refused(overrides, words):
    with pytest.raises(TrainingError, match=words) as caught:
        Recipe.from_preset("digits", model="resnet20", **overrides)
    assert "\n" not in str(caught.value)


def test_unknown_names_are_refused_with_choices(tmp_path):
    with pytest.raises(TrainingError, match="unknown recipe 'imagenett': did you mean imagenet"):
        Recipe.from_preset("imagenett", model="resnet20")
    recipe = Recipe.from_preset("digits", model="resnet20")
    for option, near in (("optimizer", "sgd"), ("schedule", "cosine"), ("augmentation", "shift-rotate")):
        with pytest.raises(TrainingError, match=f"unknown {option} .*did you mean {near}"):
            train(replace(recipe, **{option: near + "x"}), Cache(tmp_path))
    with pytest.raises(TrainingError, match="fp16 does not train on cpu; give bf16 or no"):
        train(replace(recipe, mixed_precision="fp16"), Cache(tmp_path), device="cpu")
    with pytest.raises(DeviceError, match="the device 'tpu' cannot train"):
        train(recipe, Cache(tmp_path), device="tpu")
    assert not (tmp_path / "runs").exists()


# --- learning rates --------------------------------------------------------------------------------------------------


def rates(recipe: Recipe, steps_per_epoch: int) -> list[float]:
    num_steps = round(recipe.epochs * steps_per_epoch)
    return [learning_rate(recipe, step, steps_per_epoch, num_steps) for step in range(num_steps)]


@pytest.mark.parametrize("preset", ["imagenet", "imagenet-90", "cifar"])
def test_multistep_rates_equal_torchs(preset):
    recipe = Recipe.from_preset(preset, model="resnet50")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [7 * epoch for epoch in recipe.milestones], 0.1)
    expected = []
    for _ in range(round(recipe.epochs) * 7):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(rates(recipe, 7), expected, rtol=1e-12)


def test_cosine_restarts_follow_the_paper():
    by_step = rates(Recipe.from_preset("adamw-cosine", model="resnet50"), 100)
    assert len(by_step) == 2684
    expected = []
    for length in (500, 600, 720, 864):
        expected += [0.5e-3 * (1 + math.cos(math.pi * step / length)) for step in range(length)]
    np.testing.assert_allclose(by_step, expected, rtol=1e-9)


def test_one_cycle_warms_up_and_ends_near_zero():
    recipe = Recipe.from_preset("digits", model="resnet20", epochs=10, warmup_epochs=2, learning_rate=0.5)
    by_step = np.array(rates(recipe, 20))
    assert np.argmax(by_step) == 40 and by_step[40] == 0.5
    assert by_step[0] == pytest.approx(0.02) and np.all(np.diff(by_step[:41]) > 0) and np.all(np.diff(by_step[40:]) < 0)
    assert by_step[120] == pytest.approx(0.25) and by_step[-1] < 1e-3


# --- batches and augmentation ----------------------------------------------------------------------------------------


def test_batches_are_permutations_and_go_on_anywhere():
    whole = list(Batches(50, 8, 3, range(18)))
    for epoch in range(3):
        drawn = [index for batch in whole[6 * epoch : 6 * epoch + 6] for index, _ in batch]
        assert len(drawn) == 48 == len(set(drawn)) and set(drawn) <= set(range(50))
    assert len({tuple(index for index, _ in whole[6 * epoch]) for epoch in range(3)}) == 3
    assert list(Batches(50, 8, 3, range(7, 18))) == whole[7:]
    assert list(Batches(50, 8, 4, range(18))) != whole
    assert len({seed for batch in whole for _, seed in batch}) == 18 * 8


def test_batches_are_the_same_images_however_they_are_split():
    whole = [set(batch) for batch in Batches(50, 8, 3, range(12))]
    micro = list(Batches(50, 8, 3, range(12), accumulation_steps=2))
    assert [set(micro[2 * step] + micro[2 * step + 1]) for step in range(12)] == whole
    shares = [list(Batches(50, 8, 3, range(12), process=process, num_processes=2)) for process in range(2)]
    assert all(len(first) == len(second) == 4 for first, second in zip(*shares, strict=True))
    assert [set(first + second) for first, second in zip(*shares, strict=True)] == whole


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_augmentation_depends_on_its_seed_alone(name, folder):
    data = load_data(f"imagefolder:{folder}", image_size=12, split="train")
    images = TrainingImages(data, AUGMENTATIONS[name])
    before = torch.get_rng_state()
    first, target = images[5, 11]
    assert torch.equal(torch.get_rng_state(), before)
    assert first.dtype == torch.uint8 and first.shape == (3, 12, 12) and target == data.targets[5]
    images[6, 12]
    assert torch.equal(images[5, 11][0], first)
    differ = any(not torch.equal(images[5, seed][0], first) for seed in range(20))
    assert differ == (name != "none")
    if name == "none":
        assert torch.equal(data.transform.normalize(first), data[5][0])


def test_digits_are_never_flipped():
    augment = AUGMENTATIONS[PRESETS["digits"]["augmentation"]].make(32, InterpolationMode.BILINEAR)
    lopsided = torch.zeros(3, 32, 32, dtype=torch.uint8)
    lopsided[:, 4:12, 4:28] = 255
    lopsided[:, 12:28, 4:12] = 255
    for seed in range(50):
        torch.manual_seed(seed)
        moved = augment(lopsided)[0].float()
        assert moved[:16, :16].sum() > 1.2 * max(moved[16:, 16:].sum(), 1), "the full corner stays where it is"
        assert moved[:16].sum() > moved[16:].sum() and moved[:, :16].sum() > moved[:, 16:].sum()


# --- runs ------------------------------------------------------------------------------------------------------------


def top1_of(checkpoint: Path, data_spec: str) -> float:
    """Count hits one image at a time, with nothing of the training package."""
    net = load_network(str(checkpoint)).net
    data = load_data(data_spec, image_size=8)
    with torch.no_grad():
        hits = [int(net(image[None]).argmax()) == target for image, target in data]
    return 100 * sum(hits) / len(hits)


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory) -> tuple[Run, Recipe, Cache, list[TrainingProgress]]:
    cache, reports = Cache(tmp_path_factory.mktemp("cache")), []
    recipe = small_recipe(folder, excitation="lwe")
    return train(recipe, cache, device="cpu", progress=reports.append), recipe, cache, reports


def test_run_keeps_what_it_says(finished, folder):
    run, recipe, cache, _ = finished
    assert run.folder.parent == cache.runs and run.name == f"resnet20-imagefolder-lwe-{recipe.address[:8]}"
    left = {path.name for path in run.folder.iterdir()}
    assert left == {"recipe.json", "metrics.csv", "last.safetensors", "best.safetensors", "result.json", "log.txt"}
    header = run.metrics_file.read_text().splitlines()[0]
    assert header == (
        "epoch,step,seconds,learning_rate,train_loss,train_top1,train_top5,val_loss,val_top1,val_top5,peak_memory_gib"
    )
    metrics = read_metrics(run)
    assert tuple(metrics.columns) == METRICS
    assert metrics["epoch"].tolist() == [1, 2] and metrics["step"].tolist() == [STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH]
    assert metrics[["train_top5", "val_top5"]].isna().all(axis=None), "there is no top-5 among four classes"
    missing = ["train_top5", "val_top5", "train_miou", "val_miou"]
    assert metrics[missing].isna().all(axis=None) and metrics.drop(columns=missing).notna().all(axis=None)
    assert metrics["seconds"].is_monotonic_increasing
    assert Recipe.from_json(run.recipe) == recipe
    assert run.result["top1"] == metrics["val_top1"].iloc[-1] and run.result["best_top1"] == metrics["val_top1"].max()


def test_checkpoints_are_what_the_metrics_measured(finished):
    run, recipe, _, _ = finished
    metrics = read_metrics(run)
    assert top1_of(run.checkpoint, recipe.data) == pytest.approx(metrics["val_top1"].iloc[-1])
    assert top1_of(run.best_checkpoint, recipe.data) == pytest.approx(metrics["val_top1"].max())
    model = load_network(str(run.checkpoint))
    assert model.classes == CLASSES and model.architecture["excitation"]["kind"] == "lwe"
    assert model.transform == load_data(recipe.data, image_size=8).transform


def test_validation_loss_is_plain_cross_entropy(finished):
    run, recipe, _, _ = finished
    net, data = load_network(str(run.checkpoint)).net, load_data(recipe.data, image_size=8)
    with torch.no_grad():
        logits = net(torch.stack([image for image, _ in data])).double()
    loss = -logits.log_softmax(1)[np.arange(len(data)), data.targets].mean().item()
    assert read_metrics(run)["val_loss"].iloc[-1] == pytest.approx(loss, rel=1e-4)


def test_progress_counts_to_the_end(finished):
    run, _, _, reports = finished
    steps = [report.step for report in reports]
    assert steps == sorted(steps) and set(range(1, 2 * STEPS_PER_EPOCH + 1)) <= set(steps)
    last = reports[-1]
    assert (last.run, last.epoch, last.step, last.num_steps) == (run.name, 2, last.num_steps, 2 * STEPS_PER_EPOCH)
    assert last.eta_seconds == 0 and last.val_top1 == run.result["top1"]
    midway = next(report for report in reports if report.step == STEPS_PER_EPOCH + 2 and not report.note)
    assert midway.epoch == 2 and midway.eta_seconds > 0 and midway.seconds > 0 and midway.loss > 0
    assert any("trains resnet20 on imagefolder" in report.note for report in reports)


def test_finished_run_returns_at_once(finished):
    run, recipe, cache, _ = finished
    before = {path: path.stat().st_mtime_ns for path in run.folder.iterdir()}
    reports: list[TrainingProgress] = []
    assert train(recipe, cache, progress=reports.append) == run
    assert reports == [] and {path: path.stat().st_mtime_ns for path in run.folder.iterdir()} == before


def test_baseline_and_excited_network_begin_alike(folder, tmp_path):
    data = load_data(f"imagefolder:{folder}", image_size=8, split="train")
    baseline, _, _ = make_network(small_recipe(folder), data)
    excited, _, _ = make_network(small_recipe(folder, excitation="lwe"), data)
    assert torch.equal(baseline.conv1.weight, excited.conv1.parametrizations.weight.original)
    assert torch.equal(baseline.fc.weight, excited.fc.weight)


def test_runs_are_listed_without_torch(finished):
    run, _recipe, cache, _ = finished
    code = (
        "import sys; from pathlib import Path; from weanalysis.cache import Cache; from weanalysis.training import "
        "list_runs, read_metrics; from weanalysis.training.runs import Run; "
        f"table = list_runs(Cache(Path({str(cache.root)!r}))); assert 'torch' not in sys.modules; "
        f"assert len(read_metrics(Run(Path({str(run.folder)!r})))) == 2; assert 'torch' not in sys.modules; "
        "print(table.to_json(orient='records'))"
    )
    (row,) = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    assert (row["run"], row["state"], row["epochs"], row["excitation"]) == (run.name, "finished", 2, "lwe")
    assert row["top1"] == pytest.approx(run.result["top1"]) and row["checkpoint"] == str(run.checkpoint)
    assert list_runs(Cache(cache.root / "nothing")).columns.tolist() == list_runs(cache).columns.tolist()


# --- stopping and going on -------------------------------------------------------------------------------------------

INTERRUPTED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from weanalysis.cache import Cache
from weanalysis.training import Recipe, session, train

root, values = Path(sys.argv[1]), eval(sys.argv[2])
recipe = Recipe.from_json(values)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def in_step(step, save_every_s):
    def watch(report):
        if report.step == step and not report.note:
            die()
    train(recipe, Cache(root / f"step{step}"), device="cpu", save_every_s=save_every_s, progress=watch)

def before_checkpoint():
    saved = session.save_checkpoint
    count = 0
    def save(*arguments):
        nonlocal count
        count += 1
        if count == 2:
            die()
        saved(*arguments)
    session.save_checkpoint = save
    train(recipe, Cache(root / "checkpoint"), device="cpu")

# Forked, since importing torch takes longer than all the training here.
for scenario in (lambda: in_step(3, 300), lambda: in_step(5, 0), lambda: in_step(9, 300), before_checkpoint):
    child = os.fork()
    if child == 0:
        scenario()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
"""


def assert_same_outcome(measured: Run, wanted: Run) -> None:
    for first, second in (measured.checkpoint, wanted.checkpoint), (measured.best_checkpoint, wanted.best_checkpoint):
        (tensors, metadata), (other_tensors, other_metadata) = read_state_dict(first), read_state_dict(second)
        assert metadata == other_metadata and tensors.keys() == other_tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other_tensors[name]), name
    timeless = [read_metrics(run).drop(columns=["seconds", "peak_memory_gib"]) for run in (measured, wanted)]
    pd.testing.assert_frame_equal(*timeless, check_exact=True)


@pytest.mark.parametrize("overrides", [{"excitation": "lwe"}, {"optimizer": "adamw", "accumulation_steps": 2}])
def test_killed_run_ends_bit_for_bit_like_one_that_was_not(overrides, folder, tmp_path):
    recipe = small_recipe(folder, **overrides)
    whole = train(recipe, Cache(tmp_path / "whole"), device="cpu")
    arguments = [sys.executable, "-c", INTERRUPTED, str(tmp_path), repr(recipe.to_json())]
    subprocess.run(arguments, check=True, cwd=Path(__file__).parents[1])
    expected_steps = {"step3": None, "step5": 4, "step9": 6, "checkpoint": 6}
    for name, step in expected_steps.items():
        begun = Run(tmp_path / name / "runs" / whole.name)
        assert not begun.finished and begun.state_file.is_file() == (step is not None)
        reports: list[TrainingProgress] = []
        run = train(recipe, Cache(tmp_path / name), device="cpu", progress=reports.append)
        assert run == begun and run.finished and not run.state_file.exists()
        note = reports[0].note
        assert note.startswith("trains") if step is None else f"after step {step} of 12" in note
        assert_same_outcome(run, whole)


def test_interrupt_loses_nothing_and_says_how_to_go_on(folder, tmp_path):
    recipe = small_recipe(folder)
    whole = train(recipe, Cache(tmp_path / "whole"), device="cpu")
    handler = signal.getsignal(signal.SIGINT)

    def interrupt(report: TrainingProgress) -> None:
        if report.step == 8 and not report.note:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="after step 9 of 12; the same command continues it"):
        train(recipe, Cache(tmp_path / "cut"), device="cpu", progress=interrupt)
    assert signal.getsignal(signal.SIGINT) is handler
    row = list_runs(Cache(tmp_path / "cut")).iloc[0]
    assert (row["state"], row["epochs"]) == ("unfinished", 1)
    run = train(recipe, Cache(tmp_path / "cut"), device="cpu")
    assert "continues the run" in run.log_file.read_text()
    assert_same_outcome(run, whole)


def test_number_of_workers_changes_nothing_and_nothing_is_printed(folder, tmp_path, capfd):
    recipe = small_recipe(folder, augmentation="resized-crop-flip", epochs=1)
    runs = [train(recipe, Cache(tmp_path / str(workers)), device="cpu", num_workers=workers) for workers in (0, 2)]
    assert_same_outcome(*runs)
    assert capfd.readouterr() == ("", "")


def test_accumulation_gives_the_gradients_of_the_whole_batch(folder, tmp_path):
    # Group norm, since batch norm sees the micro-batch; small steps, since large ones amplify rounding.
    recipe = small_recipe(folder, norm="gn", epochs=1, learning_rate=1e-3)
    losses = [
        read_metrics(train(replace(recipe, accumulation_steps=steps), Cache(tmp_path), device="cpu"))
        for steps in (1, 4)
    ]
    np.testing.assert_allclose(losses[0]["train_loss"], losses[1]["train_loss"], rtol=1e-5)
    np.testing.assert_allclose(losses[0]["val_loss"], losses[1]["val_loss"], rtol=1e-4)


def test_mixed_precision_and_fractions_of_an_epoch(folder, tmp_path):
    run = train(small_recipe(folder, mixed_precision="bf16", epochs=1.5), Cache(tmp_path), device="cpu")
    assert read_metrics(run)["step"].tolist() == [STEPS_PER_EPOCH, 1.5 * STEPS_PER_EPOCH]
    assert all(tensor.dtype != torch.bfloat16 for tensor in load_network(str(run.checkpoint)).net.parameters())


@pytest.mark.slow
def test_two_processes_train_one_network(folder, tmp_path):
    # Without batch norm, whose statistics are those of each process's share.
    recipe = small_recipe(folder, norm="gn", learning_rate=1e-3, accumulation_steps=2)
    changed = (
        "--norm gn --lr 0.001 --accumulation-steps 2 --warmup-epochs 0 --augmentation pad-crop-flip --image-size 8"
    )
    words = ["-m", "weanalysis", "train", "--model", "resnet20", "--recipe", "digits", "--data", recipe.data]
    words += [*changed.split(), "--epochs", str(EPOCHS), "--batch-size", str(BATCH_SIZE)]
    words += ["--device", "cpu", "--cache", str(tmp_path / "two")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]  # torchrun
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([*launch, *words], check=True, env=environment)
    one = train(recipe, Cache(tmp_path / "one"), device="cpu")
    runs = [Run(tmp_path / name / "runs" / one.name) for name in ("one", "two")]
    losses = [read_metrics(run)[["train_loss", "val_loss", "val_top1"]].to_numpy() for run in runs]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    weights = [load_network(str(run.checkpoint)).net.state_dict() for run in runs]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-5)


# --- bad input -------------------------------------------------------------------------------------------------------


def one_line(caught: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("milestone", [1, 1 + 5 / 6], ids=["at a step's loss", "at the validation"])
def test_divergence_stops_and_keeps_the_last_good_network(milestone, folder, tmp_path):
    recipe = small_recipe(folder, schedule="multistep", milestones=(milestone,), gamma=1e30)
    with pytest.raises(TrainingError, match=r"diverged: the loss is no finite number at step \d+ of 12") as caught:
        train(recipe, Cache(tmp_path), device="cpu")
    assert "lower learning rate" in one_line(caught)
    row = list_runs(Cache(tmp_path)).iloc[0]
    assert (row["state"], row["epochs"]) == ("unfinished", 1) and row["checkpoint"] in one_line(caught)
    assert top1_of(Path(row["checkpoint"]), recipe.data) == pytest.approx(row["top1"])


def test_divergence_in_the_first_epoch(folder, tmp_path):
    with pytest.raises(TrainingError, match="no epoch was finished"):
        train(small_recipe(folder, learning_rate=1e30), Cache(tmp_path), device="cpu")
    assert list_runs(Cache(tmp_path)).iloc[0]["checkpoint"] is None


def test_run_of_another_recipe_is_left_alone(finished, folder):
    run, recipe, cache, _ = finished
    before = {path: path.read_bytes() for path in run.folder.iterdir()}
    with pytest.raises(
        TrainingError, match=r"has another recipe \(learning_rate: 0.5, not 0.05; seed: 3, not 0\)"
    ) as caught:
        train(replace(recipe, seed=3, learning_rate=0.5), cache, name=run.name)
    one_line(caught)
    assert {path: path.read_bytes() for path in run.folder.iterdir()} == before


def test_run_on_other_images_is_left_alone_until_it_begins_anew(tmp_path):
    folder = write_folder(tmp_path / "pictures", 4)
    recipe, cache = small_recipe(folder, epochs=1), Cache(tmp_path / "cache")
    run = train(recipe, cache, device="cpu")
    checkpoint = run.checkpoint.read_bytes()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(folder / "train" / "up" / "00.png")
    with pytest.raises(TrainingError, match=r"are not those that the run .* began with"):
        train(recipe, cache, device="cpu")
    assert run.checkpoint.read_bytes() == checkpoint and run.finished
    assert train(recipe, cache, device="cpu", resume=False) == run
    assert run.finished and run.checkpoint.read_bytes() != checkpoint


def test_one_process_trains_a_run(finished, monkeypatch):
    run, recipe, cache, _ = finished
    monkeypatch.setattr(loop, "_LOCK_PATIENCE_S", 0.1)
    with (
        filelock.FileLock(cache.locks / f"run-{run.name}.lock"),
        pytest.raises(TrainingError, match="another process is training the run"),
    ):
        train(recipe, cache)


def test_names_of_runs_are_no_paths(folder, tmp_path):
    recipe = small_recipe(folder, excitation="lwe+mwe", norm="gn", seed=3)
    assert recipe.run_name == f"resnet20-imagefolder-lwe-mwe-gn-seed3-{recipe.address[:8]}"
    long = replace(recipe, model="timm:" + 200 * "x").run_name
    assert long.startswith("timm-xxx") and len(long) < 100 and ":" not in long
    with pytest.raises(TrainingError, match="cannot name a run"):
        train(small_recipe(folder), Cache(tmp_path), name="../elsewhere")


@pytest.mark.parametrize(
    ("keep", "words"),
    [([], "has no training images"), ([0, 1, 2], "all 3 training images .* are of class 'down'")],
)
def test_training_images_that_teach_nothing(keep, words, folder, tmp_path, monkeypatch):
    def some(spec, *arguments, split, **options):
        data = load_data(spec, *arguments, split=split, **options)
        if split == "train":
            down = np.flatnonzero(data.targets == 0)[keep]
            return replace(data, ids=data.ids[down], targets=data.targets[down], pictures=data.pictures.take(down))
        return data

    monkeypatch.setattr(loop, "load_data", some)
    with pytest.raises(TrainingError, match=words) as caught:
        train(small_recipe(folder), Cache(tmp_path), device="cpu")
    one_line(caught)
    assert not (tmp_path / "runs").exists()


def test_batch_larger_than_the_data(folder, tmp_path):
    with pytest.raises(TrainingError, match="batch size 49 is larger than the 48 training images") as caught:
        train(small_recipe(folder, batch_size=49), Cache(tmp_path), device="cpu")
    assert "give 48 or less" in one_line(caught) and not (tmp_path / "runs").exists()


def test_classes_of_both_splits_must_agree(tmp_path):
    folder = write_folder(tmp_path / "pictures", 2)
    (folder / "test" / "up").rename(folder / "test" / "above")
    with pytest.raises(TrainingError, match="'above' among its validation classes"):
        train(small_recipe(folder), Cache(tmp_path), device="cpu")


@pytest.mark.parametrize("overrides", [{"eps": 0.0, "excitation": "mwe"}, {"reduction": 0}, {"excitation": "lwee"}])
def test_impossible_excitations(overrides, folder, tmp_path):
    with pytest.raises(ExcitationError):
        train(small_recipe(folder, **({"excitation": "lwe"} | overrides)), Cache(tmp_path), device="cpu")
    assert not (tmp_path / "runs").exists()


# --- checkpoints on demand -------------------------------------------------------------------------------------------


def test_digits_train_on_first_use_and_only_then(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "digits", {**PRESETS["digits"], "epochs": 0.1, "warmup_epochs": 0})
    cache, reports = Cache(tmp_path), []

    def checkpoint_for(**choices) -> Path:
        return trained_checkpoint("resnet20", "digits", cache, progress=reports.append, **{"image_size": 8, **choices})

    def trained(**overrides) -> Path:
        return train(Recipe.from_preset("digits", model="resnet20", image_size=8, **overrides), cache).checkpoint

    trained(excitation="lwe")
    checkpoint = checkpoint_for()
    assert "there is no resnet20 trained on digits yet: training one now" in reports[0].note
    assert "excitation" not in load_network(str(checkpoint)).architecture
    reports.clear()
    assert checkpoint_for() == checkpoint == checkpoint_for(image_size=None) and not reports
    newest = trained(seed=1)
    trained(excitation="mwe", seed=2)
    assert checkpoint_for() == newest != checkpoint
    assert checkpoint_for(options={"shortcut": "B"}) not in (checkpoint, newest)
    assert load_network(str(checkpoint_for(image_size=9))).transform.image_size == 9
    assert len(list_runs(cache)) == 6


def test_other_data_needs_a_run(finished, folder):
    run, recipe, cache, _ = finished
    assert trained_checkpoint("resnet20", recipe.data, cache) == run.checkpoint
    with pytest.raises(TrainingError, match="'weanalysis train --model resnet32 --data imagefolder:") as caught:
        trained_checkpoint("resnet32", recipe.data, cache)
    one_line(caught)
    with pytest.raises(TrainingError, match="no finished run of resnet20 on cifar10"):
        trained_checkpoint("resnet20", "cifar10", cache)
