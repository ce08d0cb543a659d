"""`weanalysis cluster`: workers on the machines of a batch system."""

from __future__ import annotations

from pathlib import Path

import click

from weanalysis.errors import DeviceError, unknown_name

CLUSTER_HELP = """Print, or hand in, the script with which a batch system starts workers for `ablate --scheduler FILE`.

The workers, each a job of an array, join the scheduler that wrote FILE, which must be in a folder that all machines
have. A study goes on when an allocation ends: with the workers of the next one.

\b
Examples:
  weanalysis cluster slurm --workers 8 --gpus-per-worker 1 --time 4:00:00
  weanalysis cluster slurm --workers 32 --cpus-per-worker 2 --time 2-00 --scheduler-file /shared/s.json --submit
"""

SYSTEMS = ("slurm",)


@click.command(help=CLUSTER_HELP, short_help="Start workers with a batch system.")
@click.argument("system", metavar="slurm")
@click.option("--workers", type=int, default=1, show_default=True, metavar="N", help="How many workers.")
@click.option("--gpus-per-worker", type=int, default=0, show_default=True, metavar="0|1", help="GPUs of a worker.")
@click.option(
    "--cpus-per-worker", type=int, default=1, show_default=True, metavar="N", help="Cores, and threads, of a worker."
)
@click.option("--memory-per-worker", metavar="8G", help="Memory of a worker (default: the batch system's).")
@click.option("--time", default="1:00:00", show_default=True, metavar="H:MM:SS", help="How long the workers stay.")
@click.option("--partition", metavar="NAME", help="Which partition of the machines.")
@click.option("--account", metavar="NAME", help="On whose account.")
@click.option(
    "--scheduler-file",
    default="scheduler.json",
    show_default=True,
    metavar="FILE",
    help="What `dask scheduler --scheduler-file FILE` writes, in a folder that all machines have.",
)
@click.option("--submit", is_flag=True, help="Hand the script in with sbatch instead of printing it.")
def cluster(
    system: str,
    workers: int,
    gpus_per_worker: int,
    cpus_per_worker: int,
    memory_per_worker: str | None,
    time: str,
    partition: str | None,
    account: str | None,
    scheduler_file: str,
    submit: bool,
) -> None:
    from weanalysis import slurm

    if system not in SYSTEMS:
        raise DeviceError(unknown_name("batch system", system, SYSTEMS))
    script = slurm.Allocation(
        workers,
        time,
        Path(scheduler_file),
        cpus_per_worker,
        gpus_per_worker,
        memory_per_worker,
        partition,
        account,
    ).script()
    click.echo(slurm.submit(script) if submit else script, nl=submit)
