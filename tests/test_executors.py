"""Whoever measures a study: the same table, whatever becomes of the processes that do."""

from __future__ import annotations

import json
import logging.handlers
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
import torch
from clusters import HARMFUL, DaskHosts, Harmful
from distributed import LocalCluster
from joblib.externals.loky.backend.reduction import dumps
from processes import CHECKOUT, free_port
from small_networks import Images, Small, count_blocks

from weanalysis.ablation import ablate, execution, schedule
from weanalysis.ablation.schedule import cluster, crew
from weanalysis.ablation.schedule.work import Parcel, other_versions
from weanalysis.cache import Cache
from weanalysis.data import load_data
from weanalysis.errors import DataError, DeviceError, StudyError
from weanalysis.results import Store
from weanalysis.versions import versions

NUM_TASKS = 3
# A process that has the work of a study takes none that is alike, and a batch of another size makes another work.
BATCH_SIZES = count(6)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskHosts]:
    """A scheduler, and workers that are processes of their own."""
    hosts = DaskHosts(tmp_path_factory.mktemp("hosts"))
    try:
        hosts.start_scheduler()
        hosts.start_workers(5)
        yield hosts
    finally:
        hosts.close()


@pytest.fixture(scope="module")
def inside() -> Iterator[str]:
    """The address of a scheduler with one worker, both within this process."""
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as inside:
        yield inside.scheduler_address


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The table that this process makes by itself."""
    return study(Images(), Cache(tmp_path_factory.mktemp("alone")), jobs=1)[0]


def study(data: Images, cache: Cache, **how: object) -> tuple[pd.DataFrame, list[str]]:
    said: list[str] = []
    options = {"shard_size": HARMFUL + 1, "batch_size": next(BATCH_SIZES), "say": said.append}
    return ablate(Small(), data, "channel", cache=cache, **{**options, **how}), said


STOP, KILL = signal.SIGSTOP, signal.SIGKILL


@pytest.mark.parametrize("where", ["processes", "workers"])
def test_processes_that_hang_or_die_are_replaced_and_one_task_too_many_is_named(
    where, request, alone, tmp_path, monkeypatch
) -> None:
    """One image halts the first process that reads it, and kills two others, which a scheduler keeps to itself.

    The fourth one, which the scheduler had begin at once, is halted too, and not waited for.
    """
    monkeypatch.setattr(crew, "LEAST_PATIENCE_SECONDS", 8.0)
    how = {"jobs": 2}
    if where == "workers":
        how = {"scheduler": str(request.getfixturevalue("hosts").file), "scheduler_wait": 60.0}
    cache, said = Cache(tmp_path / "cache"), []
    with pytest.raises(DeviceError, match=r"21 ablations of one, two on images 0 to 8 \(3 of them died\)") as caught:
        study(Harmful(tmp_path, [STOP, KILL, KILL, STOP]), cache, say=said.append, **how)
    assert "\n" not in str(caught.value) and count_blocks(cache) == NUM_TASKS - 1
    if where == "workers":
        request.getfixturevalue("hosts").end_halted()
    assert len([line for line in said if "not answered for" in line]) == 1, said
    with Store.open(cache.results) as store:
        assert store.studies()["state"].tolist() == ["failed"]
    table, _ = study(Images(), cache, jobs=1)
    pd.testing.assert_frame_equal(table, alone)
    assert table["num_flipped"].sum() > 0
    assert table.attrs["reused"] == 21 * (NUM_TASKS - 1) and count_blocks(cache) == NUM_TASKS


class Growing(Images):
    """Images of which each takes 90 MB more, and notes which process reads it."""

    kept: ClassVar[list[bytearray]] = []

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def __getitem__(self, index: int):
        if str(os.getpid()) != (self.folder / "parent").read_text():
            self.kept.append(bytearray(os.urandom(1024)) * 90_000)
            (self.folder / f"by-{os.getpid()}").touch()
            time.sleep(0.3)
        return super().__getitem__(index)


def test_a_process_that_needs_more_memory_than_in_its_first_call_stays(alone, tmp_path) -> None:
    (tmp_path / "parent").write_text(str(os.getpid()))
    table, said = study(Growing(tmp_path), Cache(tmp_path / "cache"), jobs=2, shard_size=4)
    pd.testing.assert_frame_equal(table, alone)
    assert 1 <= len(list(tmp_path.glob("by-*"))) <= 2 and not [line for line in said if "replaced" in line]


def test_a_scheduler_that_is_killed_is_found_again_by_its_file(hosts, alone, tmp_path) -> None:
    seen, logged = [], queue.SimpleQueue()
    handler = logging.handlers.QueueHandler(logged)
    logging.getLogger("distributed.client").addHandler(handler)

    def kill(status) -> None:
        seen.append(status.jobs)
        if status.done and len(seen) == 2:
            hosts.scheduler.kill()
            hosts.scheduler.wait()
            hosts.start_scheduler()
            hosts.start_workers(1)

    try:
        table, said = study(Images(), Cache(tmp_path), scheduler=str(hosts.file), scheduler_wait=60.0, report=kill)
    finally:
        logging.getLogger("distributed.client").removeHandler(handler)
    assert logged.empty(), "Dask's tracebacks stand between what is said"
    pd.testing.assert_frame_equal(table, alone)
    assert count_blocks(Cache(tmp_path)) == NUM_TASKS
    assert "is away: it is looked for during 60 s" in " ".join(said) and "is there again" in " ".join(said)


def test_a_scheduler_that_stays_away_is_one_line_and_nothing_is_lost(hosts, tmp_path) -> None:
    def kill(status) -> None:
        if status.done:
            hosts.scheduler.kill()

    with pytest.raises(DeviceError, match=r"there is no scheduler at .*looked for during 1 s.*measured is kept"):
        study(Images(), Cache(tmp_path), scheduler=str(hosts.file), scheduler_wait=1.0, report=kill)
    assert 1 <= count_blocks(Cache(tmp_path)) < NUM_TASKS


def test_a_study_whose_workers_scheduler_and_self_are_killed_at_random_loses_and_doubles_nothing(tmp_path) -> None:
    """A few seconds of what `benchmarks/soak.py --minutes 10` does for longer."""
    short = "--by workers --minutes 0.06 --grid 1x1 --image-size 8 --between 0.2 0.6"
    soak = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", *short.split()],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert soak.returncode == 0, soak.stdout + soak.stderr[-2000:]
    assert "unfinished: 0, lost: 0, doubled: 0, different: 0" in soak.stdout
    assert int(re.search(r"(\d+) blows", soak.stdout)[1]) >= 3, soak.stdout


class Unseen(Images):
    """Images that only the thread that runs a study can read."""

    def __getitem__(self, index: int):
        if threading.current_thread() is not threading.main_thread():
            raise DataError("/data/photos is no folder")
        return super().__getitem__(index)


@pytest.mark.parametrize("why", ["version", "unseen"])
def test_workers_that_cannot_measure_are_named(why, inside, tmp_path, monkeypatch) -> None:
    data, reason = Unseen(), "/data/photos is no folder"
    if why == "version":
        data, reason = Images(), r"torch 2\.\S+ there, 1\.0\.0 here"
        monkeypatch.setattr(Parcel, "of", lambda work: Parcel(b"", {**versions(), "torch": "1.0.0"}))
    with pytest.raises(DeviceError, match=rf"none of the 1 workers.*inproc://\S+: .*{reason}") as caught:
        study(data, Cache(tmp_path), scheduler=inside)
    assert "\n" not in str(caught.value) and "under the same path" in str(caught.value)


def test_versions_are_told_apart_by_what_numbers_hang_on() -> None:
    here = {"weanalysis": "0.1.0", "torch": "2.13.0+cpu", "python": "3.11.7", "numpy": "2.4.6"}
    assert other_versions(here, {**here, "torch": "2.13.0+cu130", "python": "3.11.9", "numpy": "2.0.0"}) is None
    assert other_versions(here, {**here, "python": "3.12.1"}) == "python 3.12.1 there, 3.11.7 here"
    assert other_versions(here, {"python": "3.11.7", "torch": "2.13.0"}) == "weanalysis is missing there, 0.1.0 here"


def test_pictures_travel_once_a_process_and_not_with_every_task(inside, alone, tmp_path, monkeypatch) -> None:
    sizes: dict[bool, list[int]] = {True: [], False: []}
    submit = cluster.Cluster._submit

    def weighed(self, errand):
        sizes[errand.asked_by is not None].append(len(bytes(dumps((self._work.key, errand.task)))))
        return submit(self, errand)

    monkeypatch.setattr(cluster.Cluster, "_submit", weighed)
    table, _ = study(Harmful(tmp_path), Cache(tmp_path), scheduler=inside)
    pd.testing.assert_frame_equal(table, alone)
    assert len(sizes[True]) == 1 and len(sizes[False]) == NUM_TASKS and max(sizes[False]) < 4096


def test_processes_that_are_used_again_do_not_go_on_with_data_that_were_fewer_or_lay_elsewhere(
    pictures, tmp_path, monkeypatch
) -> None:
    """The contents are the same, and so is what is kept; a process that has the one must be sent the other."""
    works, measured = [], execution.schedule.open_executor

    def kept(work, *given, **how):
        works.append(work)
        return measured(work, *given, **how)

    monkeypatch.setattr(execution.schedule, "open_executor", kept)
    shutil.copytree(pictures / "images", tmp_path / "elsewhere" / "test")
    shutil.copytree(pictures / "images", tmp_path / "here" / "test")
    for place, number in (("here", 4), ("here", 6), ("elsewhere", 6), ("here", 6)):
        data = load_data(f"imagefolder:{tmp_path / place}", image_size=8, num_images=number)
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, len(data.classes)))
        ablate(net, data, "channel", cache=Cache(tmp_path / "cache"), batch_size=4, jobs=1)
    keys = [work.key for work in works]
    assert len(set(keys[:3])) == 3 and keys[3] == keys[1]


@pytest.mark.parametrize(
    ("scheduler", "content", "line"),
    [
        ("tcp://127.0.0.1:{port}", None, "there is no scheduler at tcp://127.0.0.1:"),
        ("127.0.0.1:{port}", None, "there is no scheduler at 127.0.0.1:"),
        ("{folder}/none.json", None, "there is no such file"),
        ("{folder}/other.json", json.dumps({"workers": 3}), "is no scheduler file"),
        ("{folder}/text.json", "hello", "is no scheduler file"),
    ],
)
def test_what_is_no_scheduler_is_one_line(scheduler, content, line, tmp_path) -> None:
    given = scheduler.format(port=free_port(), folder=tmp_path)
    if content is not None:
        Path(given).write_text(content)
    with pytest.raises(DeviceError) as caught:
        study(Images(), Cache(tmp_path / "cache"), scheduler=given, scheduler_wait=0.0)
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"scheduler": "tcp://host:1", "jobs": 2}, "give one of them"),
        ({"scheduler": " "}, "--scheduler is empty"),
        ({"scheduler_wait": 5.0}, "belongs to --scheduler"),
        ({"scheduler": "tcp://host:1", "scheduler_wait": -1.0}, "--scheduler-wait -1 is not allowed"),
    ],
)
def test_what_does_not_belong_to_a_scheduler_is_one_line(given, line, tmp_path) -> None:
    with pytest.raises(StudyError, match=line):
        study(Images(), Cache(tmp_path), **given)


def test_a_parcel_says_by_which_versions_it_was_made() -> None:
    work = schedule.Work("key", Small(), None, None, Images(), "exact", "float32", 5, ("cpu",), Cache(Path()))
    assert Parcel.of(work).made_by == versions()
