"""What lives on: no worker does when its parent is killed, and what was kept does when the disk is full."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from command_line import run
from made_studies import location_plan, only, write_study
from PIL import Image
from processes import CHECKOUT, wait_until

from weanalysis.ablation import ablate
from weanalysis.cache import Cache
from weanalysis.errors import DataError, ModelError, StoreError, TrainingError
from weanalysis.loading import load_data, load_model
from weanalysis.results import Store
from weanalysis.training import Recipe, read_metrics, train


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            for place in range(6):
                pixels = generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{place}.png")
    return root


# Processes ----------------------------------------------------------------------------------------------------------


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def test_the_workers_of_a_study_that_is_killed_end_by_themselves(photos: Path, tmp_path: Path) -> None:
    words = "ablate --model resnet20 --weights none --num-classes 2 --grid 5x5 --evaluate naive --jobs 2 --shard-size 2"
    command = [*words.split(), "--data", f"imagefolder:{photos}", "--cache", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    study = subprocess.Popen(
        [sys.executable, "-m", "weanalysis", *command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    own = psutil.Process(study.pid)

    def measures() -> bool:
        assert study.poll() is None
        path = tmp_path / "results.sqlite"
        if not path.is_file():
            return False
        with contextlib.suppress(StoreError), Store.open(path) as store:
            return bool((store.studies()["done"] > 0).any())
        return False

    try:
        wait_until(measures)
        children = own.children(recursive=True)
        assert len(children) >= 2
    finally:
        study.send_signal(signal.SIGKILL)
        study.wait()
    try:
        wait_until(lambda: not any(is_alive(child) for child in children), 60)
    finally:
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()


def test_a_process_ends_with_the_one_that_it_works_for() -> None:
    """Also while it is idle: a worker waits for work in silence."""
    watches = (
        "import os, sys, time; from weanalysis.orphans import end_with; end_with(os.getppid()); "
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    starts = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]]).wait()"
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    parent = subprocess.Popen([sys.executable, "-c", starts, watches], stdout=subprocess.PIPE, env=environment)
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(1.5)
    assert is_alive(child), "it stays while its parent does"
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_alive(child), 40)  # by itself it would sleep for longer


# A full disk --------------------------------------------------------------------------------------------------------


class Disk:
    """A place that can be filled: a small file system of its own, or where none may be mounted, a limit on files."""

    def __init__(self, root: Path, is_mounted: bool):
        self.root, self.is_mounted = root, is_mounted
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        """Leave no room for another page."""
        if not self.is_mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, self._before[1]))
            return
        with contextlib.suppress(OSError), open(self.root / "ballast", "ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        """Make room again."""
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)
        (self.root / "ballast").unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    root = tmp_path / "disk"
    root.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=24m", "weanalysis-test", str(root)]
    is_mounted = subprocess.run(mounting, capture_output=True, check=False).returncode == 0
    disk = Disk(root, is_mounted)
    try:
        yield disk
    finally:
        disk.free()
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(root)], check=True)


def one_line(error: BaseException) -> str:
    line = str(error)
    assert "\n" not in line and ("cannot be written" in line or "cannot be opened" in line), line
    return line


def parts(root: Path) -> list[Path]:
    """Return what was left half-written."""
    return [path for path in root.rglob("*") if path.name.endswith(".part")]


def test_a_study_on_a_full_disk_keeps_what_it_has_and_goes_on(disk: Disk, photos: Path) -> None:
    cache, data = Cache(disk.root / "cache"), load_data(f"imagefolder:{photos}")
    model = load_model("resnet20", weights="none", data=data)
    seen: list[int] = []

    def fill_after_two(status) -> None:
        seen.append(status.done)
        if len(seen) == 3:
            disk.fill()

    asked = {"grid": "1x1", "layers": "layer1*", "cache": cache, "jobs": 1, "shard_size": 2, "name": "study"}
    with pytest.raises(StoreError) as caught:
        ablate(model, data, "location", report=fill_after_two, **asked)
    assert "what was kept before is intact" in one_line(caught.value)
    with Store.open(cache.results) as store:
        table, (done,) = store.table(only(store)), store.studies()["done"]
    assert 0 < done < 36 and table["num_images"].max() == done // 6 * 2
    with pytest.raises((StoreError, ModelError)) as caught:
        ablate(model, data, "location", **asked)
    one_line(caught.value)
    disk.free()
    resumed = ablate(model, data, "location", **asked)
    assert resumed.attrs["reused"] == done and not parts(disk.root)
    whole = ablate(model, data, "location", **asked | {"cache": Cache(disk.root / "other")})
    pd.testing.assert_frame_equal(resumed, whole)


def test_a_training_on_a_full_disk_keeps_its_last_epoch_and_goes_on(disk: Disk, photos: Path) -> None:
    recipe = Recipe(model="resnet20", data=f"imagefolder:{photos}", epochs=3, batch_size=6, image_size=16)
    cache = Cache(disk.root / "cache")

    def fill_in_the_second_epoch(progress) -> None:
        if progress.step == 3:
            disk.fill()

    with pytest.raises((TrainingError, ModelError)) as caught:
        train(recipe, cache, device="cpu", num_workers=0, progress=fill_in_the_second_epoch)
    line = one_line(caught.value)
    assert "what was kept is intact: make room, and the same command continues it" in line
    (folder,) = (cache.root / "runs").iterdir()
    assert len(read_metrics(folder)) == 1 and not parts(disk.root)
    with pytest.raises((TrainingError, ModelError, StoreError)) as caught:
        train(recipe, cache, device="cpu", num_workers=0)
    one_line(caught.value)
    disk.free()
    resumed = train(recipe, cache, device="cpu", num_workers=0)
    whole = train(recipe, Cache(disk.root / "other"), device="cpu", num_workers=0)
    columns = ["epoch", "step", "train_loss", "val_loss", "val_top1"]
    pd.testing.assert_frame_equal(resumed.metrics()[columns], whole.metrics()[columns])


@pytest.mark.parametrize("what", ["changes", "vanishes"])
def test_a_picture_that_changes_or_vanishes_in_the_middle_is_named_and_what_was_kept_stays(
    what: str, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    data = load_data(f"imagefolder:{folder}")
    model = load_model("resnet20", weights="none", data=data)
    file = folder / "test" / data.label(11)
    content, state = file.read_bytes(), file.stat()

    def harm(status) -> None:
        if status.done and file.exists() and file.read_bytes() == content:
            file.unlink()
            if what == "changes":
                file.write_bytes(next(path for path in folder.rglob("*.png") if path != file).read_bytes())

    asked = {"grid": "1x1", "layers": "layer1*", "jobs": 1, "shard_size": 2, "name": "study"}
    line = "has changed since the data was loaded" if what == "changes" else "No such file"
    with pytest.raises(DataError, match=f"{file}.*{line}") as caught:
        ablate(model, data, "location", cache=Cache(tmp_path / "one"), report=harm, **asked)
    assert "\n" not in str(caught.value)
    file.write_bytes(content)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    resumed = ablate(model, data, "location", cache=Cache(tmp_path / "one"), **asked)
    assert resumed.attrs["reused"] == 5 * len(resumed)
    whole = ablate(model, data, "location", cache=Cache(tmp_path / "other"), **asked)
    pd.testing.assert_frame_equal(resumed, whole)


@pytest.mark.parametrize("command", ["export", "report"])
def test_a_file_that_finds_no_room_leaves_the_one_that_was_there(
    command: str, disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cache = tmp_path / "cache"
    write_study(cache / "results.sqlite", "location", location_plan(), "study", 250)
    target = disk.root / {"export": "x.csv", "report": "x.html"}[command]
    words = [command, "study", "-o", str(target), "--cache", str(cache)]
    target.write_text("what was there")
    disk.fill()
    assert run(*words) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {target} cannot be written (") and said.count("\n") == 1
    assert target.read_text() == "what was there" and not parts(disk.root)
    disk.free()
    assert run(*words) == 0
    assert target.stat().st_size > 1000


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_output_that_finds_no_room_is_one_line_and_status_1(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "weanalysis", "list", "data", "--cache", str(tmp_path)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the output cannot be written (") and done.stderr.count("\n") == 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library's allocator is left as it is")
@pytest.mark.parametrize("keeps", [False, True])
def test_a_process_takes_again_the_memory_that_it_has_freed(keeps: bool) -> None:
    program = f"""
import resource
import numpy as np
from weanalysis.memory import keep_freed_memory
assert not {keeps} or keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def activations():
    return [np.ones(6 * 2**20, np.float32) for _ in range(3)]  # 24 MiB each
activations()
before = faults()
for _ in range(4):
    activations()
print(faults() - before)
"""
    finished = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert (int(finished.stdout) < 1000) == keeps, finished.stdout
