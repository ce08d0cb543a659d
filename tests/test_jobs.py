"""Jobs are real commands in processes of their own: started once, watched, cancelled, killed, resumed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from command_line import run
from processes import CHECKOUT, wait_until

from weanalysis.cache import Cache
from weanalysis.errors import StoreError
from weanalysis.jobs import Job, Jobs, complaint, progress
from weanalysis.results import Store

# Random weights, so that no training comes first; another run of the command draws others.
QUICK = ["ablate", "--model", "resnet20", "--weights", "none", "--layers", "conv1", "--grid", "1x1", "--images", "10"]


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other tests run beside this one
    jobs = Jobs(Cache(tmp_path))
    yield jobs
    with contextlib.suppress(StoreError):
        for job in jobs.all():
            if job.active:
                jobs.kill(job.id)


@pytest.fixture
def long(tmp_path: Path) -> list[str]:
    """Return a command that takes minutes, on weights that stay the same."""
    from weanalysis.models import build, save_checkpoint

    architecture = {"source": "builtin", "name": "resnet20", "num_classes": 10, "options": {}}
    checkpoint = tmp_path / "random.safetensors"
    save_checkpoint(checkpoint, build(architecture), architecture, {})
    return ["ablate", "--model", str(checkpoint), "--grid", "4x4", "--jobs", "1", "--shard-size", "10"]


def measuring(jobs: Jobs) -> bool:
    if not jobs.cache.results.is_file():
        return False
    try:
        with Store.open(jobs.cache.results) as store:
            return bool((store.studies()["done"] > 0).any())
    except StoreError:
        return False


def ended(jobs: Jobs, job: Job) -> Job:
    wait_until(lambda: not jobs.get(job.id).active)
    return jobs.get(job.id)


@pytest.mark.slow
def test_a_mistake_in_a_command_is_its_line(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    done = ended(jobs, jobs.start(["ablate", "--model", "resnet21"]))
    assert done.state == "failed"
    assert "unknown" in complaint(jobs.log(done.id))
    assert "resnet20" in complaint(jobs.log(done.id))
    assert "Traceback" not in jobs.log(done.id)
    assert run("ablate", "--nonsense") == 2
    assert "nonsense" in complaint(capsys.readouterr().err), "what a log would hold"


@pytest.mark.slow
def test_cancelled_work_is_kept_and_taken_up_again(jobs: Jobs, long: list[str]) -> None:
    job = jobs.start(long)
    with pytest.raises(StoreError, match=f"running already, as job {job.id}"):
        Jobs(jobs.cache).start(long)
    wait_until(lambda: measuring(jobs))
    jobs.cancel(job.id)
    done = ended(jobs, job)
    assert done.state == "cancelled", jobs.log(job.id)
    with Store.open(jobs.cache.results) as store:
        assert list(store.studies()["state"]) == ["stopped"]
        before = int(store.studies()["done"][0])
    again = jobs.start(long)
    assert again.id != job.id

    def goes_on() -> bool:
        with Store.open(jobs.cache.results) as store:
            (done,) = store.studies()["done"]  # still one study
            return done > before

    wait_until(goes_on)
    jobs.kill(again.id)
    assert jobs.get(again.id).state == "cancelled"
    wait_until(lambda: not psutil.pid_exists(again.pid) or psutil.Process(again.pid).status() == "zombie")


def test_a_killed_process_is_noticed_and_frees_its_command(jobs: Jobs, long: list[str]) -> None:
    job = jobs.start(long)
    os.killpg(job.pid, signal.SIGKILL)
    wait_until(lambda: not jobs.get(job.id).active)
    assert jobs.get(job.id).state == "lost"
    assert jobs.start(long).active


@pytest.mark.slow
def test_a_job_runs_the_command_outlives_who_started_it_and_records_its_end(jobs: Jobs) -> None:
    program = (
        "import sys; from pathlib import Path; from weanalysis.cache import Cache; from weanalysis.jobs import Jobs; "
        "print(Jobs(Cache(Path(sys.argv[1]))).start(sys.argv[2:]).id, flush=True); import time; time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(jobs.cache.root), *QUICK]
    starter = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, start_new_session=True)
    job = jobs.get(int(starter.stdout.readline()))
    os.killpg(starter.pid, signal.SIGKILL)
    starter.wait()
    assert job.active
    assert job.command == tuple(QUICK)
    wait_until(lambda: jobs.get(job.id).heartbeat > job.created)
    done = ended(jobs, job)
    assert done.state == "finished", jobs.log(job.id)
    assert done.ended > job.created
    with Store.open(jobs.cache.results) as store:
        assert list(store.studies()["state"]) == ["complete"]
        assert store.studies()["command"][0] == "weanalysis " + " ".join(QUICK)


def test_many_browsers_at_once_start_it_once(jobs: Jobs) -> None:
    outcomes: list[str] = []
    ready = threading.Barrier(6)

    def browser() -> None:
        ready.wait()
        try:
            outcomes.append(f"started {jobs.start(QUICK).id}")
        except StoreError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=browser) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(outcome.startswith("started") for outcome in outcomes) == 1
    assert sum("running already" in outcome for outcome in outcomes) == 5


def test_a_later_process_of_the_same_number_is_not_the_job(jobs: Jobs) -> None:
    with jobs._database() as db:
        # As if this very test had got the number of a process that died long ago.
        db.execute(
            "INSERT INTO jobs (command, state, created, heartbeat, pid, process_started) "
            "VALUES (?, 'running', 1000, 1000, ?, 1000.0)",
            (json.dumps(QUICK), os.getpid()),
        )
    assert jobs.get(1).state == "lost"
    assert psutil.pid_exists(os.getpid())


def test_only_jobs_of_this_program_are_started(jobs: Jobs) -> None:
    for command in ([], ["rm", "-rf", "x"], ["dashboard"]):
        with pytest.raises(StoreError, match="is no job"):
            jobs.start(command)
    assert jobs.all() == []
    with pytest.raises(StoreError, match="no job 7"):
        jobs.get(7)


@pytest.mark.parametrize(
    "change",
    [
        "command = '['",
        "command = '3'",
        "command = '[1]'",
        "command = x'5b5d'",
        "command = CAST(x'ff' AS TEXT)",
        "state = 'odd'",
        "pid = -1",
        "pid = 'x'",
        "pid = 4294967296",
        "created = 1e300",
        "heartbeat = 'now'",
        "ended = -1",
    ],
)
def test_a_job_that_cannot_be_read_is_named_and_the_rest_is_there(change: str, jobs: Jobs) -> None:
    with jobs._database() as db:
        for command in ("one", "two"):
            db.execute(
                "INSERT INTO jobs (command, state, created, heartbeat) VALUES (?, 'finished', 1, 1)",
                (f'["ablate", "{command}"]',),
            )
    with sqlite3.connect(jobs.cache.jobs) as db:
        db.execute(f"UPDATE jobs SET {change} WHERE id = 1")
    assert [job.command for job in jobs.all()] == [("ablate", "two")]
    (line,) = jobs.unreadable()
    assert line.startswith("job 1 in ")
    with pytest.raises(StoreError, match="no job 1"):
        jobs.get(1)


@pytest.mark.parametrize("word", ["a\nb", "a\r--quiet", "a\x00b", "a\x1b[2J", "a\x85b", "a\u2028b"])
def test_a_word_with_a_line_break_or_a_control_character_is_refused(word: str, jobs: Jobs) -> None:
    with pytest.raises(StoreError, match="line break or another control character"):
        jobs.start(["ablate", "--name", word])
    assert jobs.all() == []


def test_a_file_that_is_no_database_is_one_clear_line(jobs: Jobs) -> None:
    jobs.cache.jobs.write_bytes(b"nothing" * 1000)
    with pytest.raises(StoreError, match="cannot be used"):
        jobs.all()


def test_progress_is_read_from_what_the_commands_write() -> None:
    from types import SimpleNamespace

    from weanalysis.cli.display import Watcher

    log = "note: something\n 34%  resnet20: 12 of 35 measurements, 2 min 05 s left\n"
    assert progress(log) == (0.34, "resnet20: 12 of 35 measurements, 2 min 05 s left")
    assert math.isnan(progress("nothing yet")[0])
    watcher = Watcher()
    written: list[str] = []
    watcher.console = SimpleNamespace(is_terminal=False, print=lambda line, **_: written.append(line))
    watcher.training(
        SimpleNamespace(
            note="",
            step=50,
            num_steps=200,
            val_top1=math.nan,
            val_miou=math.nan,
            loss=1.0,
            run="r",
            epoch=1,
            num_epochs=4,
            eta_seconds=9,
        )
    )
    share, words = progress("\n".join(written))
    assert share == 0.25
    assert words.startswith("training r: epoch 1 of 4")
