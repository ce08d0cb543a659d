"""`weanalysis cluster slurm`: what the script asks for, what is refused, and a study on a Slurm of this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from clusters import ENVIRONMENT, DaskHosts, Slow
from command_line import run
from processes import free_port, wait_until
from small_networks import Images, Small

from weanalysis.ablation import ablate
from weanalysis.cache import Cache
from weanalysis.errors import DeviceError
from weanalysis.slurm import Allocation

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "sinfo", "squeue")

CONFIGURATION = """ClusterName=weanalysis
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
StateSaveLocation={folder}
SlurmdSpoolDir={folder}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MailProg=/bin/true
KillWait=5
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES State=UP
"""


def answer(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@contextmanager
def started(commands: list[list[str]], folder: Path) -> Iterator[None]:
    """Programs that run within the block."""
    running = []
    try:
        with open(folder / "slurm.log", "wb") as log:
            for command in commands:
                running.append(subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT | dict(os.environ)))
                wait_until(lambda command=command: command[0] != "munged" or (folder / "munge.sock").exists(), 20)
        yield
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait()


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Slurm of one node, this machine; skips the test where it is not installed or does not start."""
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        pytest.skip(f"there is no {missing[0]}: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("munged and slurmd are started by root alone")
    folder, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().partition(".")[0]
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=host, ports=(free_port(), free_port())))
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    munged = ["munged", "--foreground", "--force", f"--key-file={folder}/key", f"--socket={folder}/munge.sock"]
    munged += [f"--{file}-file={folder}/munge.{file}" for file in ("pid", "log", "seed")]
    with started([munged, ["slurmctld", "-D"], ["slurmd", "-D"]], folder):
        try:
            wait_until(lambda: "idle" in answer("sinfo", "--noheader"), 30)
        except AssertionError:
            pytest.skip(f"Slurm does not start here: {(folder / 'slurm.log').read_text()[-300:]}")
        yield folder


@pytest.mark.parametrize("how", ["is cancelled", "is over"])
def test_a_study_goes_on_with_the_next_allocation(how, slurm, tmp_path, monkeypatch, capsys) -> None:
    """The first allocation ends in the middle; the study waits for the workers of the second one."""
    if how == "is over" and "WEANALYSIS_WALLTIME" not in os.environ:
        pytest.skip("takes two minutes, since an allocation lasts one or more: set WEANALYSIS_WALLTIME=1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    hosts, said, jobs, ends = DaskHosts(slurm), [], [], []

    def submit(minutes: int) -> None:
        words = ["cluster", "slurm", "--time", str(minutes), "--scheduler-file", str(hosts.file), "--submit"]
        assert run(*words) == 0
        jobs.append(capsys.readouterr().out.rpartition(" ")[2].strip())

    def have_another_one() -> None:
        wait_until(lambda: not answer("squeue", "--noheader", "--job", jobs[0]).strip(), 180)
        ends.append(answer("scontrol", "show", "job", jobs[0]))
        submit(5)

    def cancel_the_first(status) -> None:
        if status.done and len(jobs) == 1:
            answer("scancel", jobs[0])
            have_another_one()

    images, options = Images(), {"study": "channel", "shard_size": 8}
    options |= {"scheduler": str(hosts.file), "say": said.append}
    watching = threading.Thread(target=have_another_one)
    try:
        hosts.start_scheduler()
        submit(1)
        if how == "is over":
            images = Slow(2.0)  # 16 s a task
            watching.start()
        else:
            options["report"] = cancel_the_first
        table = ablate(Small(), images, cache=Cache(tmp_path / "one"), **options)
    finally:
        if watching.is_alive():
            watching.join()
        answer("scancel", *jobs)
        hosts.close()
    alone = ablate(Small(), Images(), "channel", shard_size=8, cache=Cache(tmp_path / "two"), jobs=1)
    pd.testing.assert_frame_equal(table, alone)
    assert len(jobs) == 2 and jobs[0] != jobs[1] and jobs[0].isdigit()
    assert ("JobState=CANCELLED" in ends[0]) == (how == "is cancelled"), ends
    assert any("waiting for some" in line for line in said), said


def test_what_slurm_refuses_is_one_line(slurm, capsys) -> None:
    assert run("cluster", "slurm", "--partition", "none", "--submit") == 1
    line = capsys.readouterr().err
    assert (
        line.startswith("error: sbatch refuses the script (") and "nvalid partition" in line and line.count("\n") == 1
    )


def test_the_script_asks_for_what_is_given_and_reads_as_shell(capsys, tmp_path) -> None:
    file = tmp_path / "it's here" / "s.json"
    words = ["--workers", "8", "--gpus-per-worker", "1", "--time", "4:00:00", "--memory-per-worker", "8G"]
    assert run("cluster", "slurm", *words, "--cpus-per-worker", "2", "--scheduler-file", str(file)) == 0
    script = capsys.readouterr().out
    for line in ("array=0-7", "gres=gpu:1", "time=4:00:00", "mem=8G", "cpus-per-task=2"):
        assert f"#SBATCH --{line}\n" in script
    # What the worker is started with, as a shell hands it on.
    echoed = subprocess.run(["bash"], input=script.replace("exec ", "printf '%s\\n' "), capture_output=True, text=True)
    arguments = echoed.stdout.splitlines()
    assert arguments[1:3] == ["-m", "distributed.cli.dask_worker"]
    assert arguments[arguments.index("--scheduler-file") + 1] == str(file)
    assert arguments[arguments.index("--lifetime") + 1] == f"{4 * 3600 - 60}s"


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("30", 1800), ("30:10", 1810), ("1:02:03", 3723), ("2-0", 172800), ("1-1:30", 91800), ("1-0:0:30", 86430)],
)
def test_times_are_read_as_slurm_reads_them(time, seconds) -> None:
    assert Allocation(1, time, Path("s.json")).seconds == seconds


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"workers": 0}, "--workers 0"),
        ({"cpus": 0}, "--cpus-per-worker 0"),
        ({"gpus": 2}, "--gpus-per-worker 2"),
        ({"time": "soon"}, "--time 'soon'"),
        ({"time": "0:30"}, "a minute or more"),
        ({"memory": "8 G"}, "--memory-per-worker '8 G'"),
        ({"partition": "gpu\n#SBATCH --account=other"}, "--partition"),
        ({"account": ""}, "--account ''"),
        ({"scheduler_file": Path("a\nb")}, "--scheduler-file"),
    ],
)
def test_what_slurm_would_misread_is_refused(given, words) -> None:
    with pytest.raises(DeviceError) as caught:
        Allocation(**{"workers": 1, "time": "1:00:00", "scheduler_file": Path("s.json"), **given})
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_machine_without_slurm_and_another_system_are_one_line(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run("cluster", "slurm", "--submit") == 1
    assert "this machine has no sbatch" in capsys.readouterr().err
    assert run("cluster", "slrum") == 1
    assert "did you mean slurm?" in capsys.readouterr().err
