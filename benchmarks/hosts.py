"""Three hosts with 30 ms between them, one of which is cut off in the middle of a study: are its rows the same?

    python -m benchmarks.hosts --cut 3

The hosts are network namespaces of this machine (Linux, root, iproute2). Each has one network device, a TUN, and this
process is the wire between them: it hands every packet on after a delay, and drops those from and to a host that is cut
off, of which nobody is told. The study is on the first host, the scheduler on the second one, a worker on each. `--cut`
says which one is cut off when a third of the study is done, `--back` that it is reached again so many seconds later.
Exit status 1 where the study does not end, or its table is not that of one process.
"""

from __future__ import annotations

import argparse
import fcntl
import heapq
import os
import selectors
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd

from benchmarks.soak import num_different, pairs, prepare, table_of

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}

# Where the study and the scheduler are; a worker is on each.
NUM_HOSTS, STUDY, SCHEDULER = 3, 1, 2

# Linux's own numbers: `TUNSETIFF` of if_tun.h, a device of IP packets without a header of their own.
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_MTU = 9000


class Wire:
    """Three hosts, and the wire between them, which takes `delay` seconds each way."""

    def __init__(self, delay: float):
        self._delay = delay
        self._names = [f"weanalysis-{os.getpid()}-{one}" for one in range(1, NUM_HOSTS + 1)]
        self._devices: list[int] = []
        self._cut: int | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self.num_dropped = 0

    @contextmanager
    def laid(self) -> Iterator[Wire]:
        """The hosts are there, and reach one another, within the block."""
        try:
            for place, name in enumerate(self._names):
                self._devices.append(self._add_host(name, place + 1))
            self._thread.start()
            yield self
        finally:
            self._is_over.set()
            if self._thread.is_alive():
                self._thread.join()
            for device in self._devices:
                os.close(device)
            for name in self._names:
                subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)

    def _add_host(self, name: str, number: int) -> int:
        """Add a host; return what the packets that it sends are read from, and those for it are written to."""
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        short = f"wea{os.getpid() % 10**6}-{number}"
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", short.encode(), _IFF_TUN | _IFF_NO_PI))
        for words in (
            ["netns", "add", name],
            ["link", "set", short, "netns", name],
            ["-n", name, "link", "set", "lo", "up"],
            ["-n", name, "addr", "add", f"{address_of(number)}/24", "dev", short],
            ["-n", name, "link", "set", short, "mtu", str(_MTU), "up"],
        ):
            subprocess.run(["ip", *words], check=True)
        return device

    def on(self, number: int, command: list[str], **how: object) -> subprocess.Popen[bytes]:
        """Start a program on a host, which is counted from 1."""
        return subprocess.Popen(["ip", "netns", "exec", self._names[number - 1], *command], **how)  # type: ignore[call-overload, no-any-return]

    def cut(self, number: int | None) -> None:
        """Drop whatever is from or for this host, from now on; None: of none."""
        self._cut = number

    def _carry(self) -> None:
        """Hand packets on, in their order, each after the delay."""
        under_way: list[tuple[float, int, int, bytes]] = []
        num_sent = 0
        with selectors.DefaultSelector() as ready:
            for place, device in enumerate(self._devices):
                ready.register(device, selectors.EVENT_READ, place + 1)
            while not self._is_over.is_set():
                now = time.monotonic()
                while under_way and under_way[0][0] <= now:
                    _, _, target, packet = heapq.heappop(under_way)
                    if self._cut == target:
                        self.num_dropped += 1
                        continue
                    with suppress(OSError):  # a queue that is full drops it, as a network does
                        os.write(self._devices[target - 1], packet)
                pause = min(0.1, max(0.0, under_way[0][0] - time.monotonic())) if under_way else 0.1
                for key, _ in ready.select(pause):
                    with suppress(BlockingIOError):
                        while True:
                            packet = os.read(key.fd, 65536)
                            target = (
                                packet[19] if packet[0] >> 4 == 4 else 0
                            )  # the last byte of where an IPv4 packet goes
                            if self._cut == key.data:
                                self.num_dropped += 1
                            elif 1 <= target <= NUM_HOSTS:
                                num_sent += 1
                                heapq.heappush(under_way, (time.monotonic() + self._delay, num_sent, target, packet))


def address_of(number: int) -> str:
    """The address of a host."""
    return f"10.77.0.{number}"


# Run on a host: how long a packet takes to another one, where nobody listens, and back.
_ROUND_TRIP = """
import socket, sys, time
began = time.perf_counter()
try:
    socket.create_connection((sys.argv[1], 9), timeout=10)
except ConnectionRefusedError:
    print(time.perf_counter() - began)
"""


class Trial:
    """A study by workers on three hosts, of which one may be cut off."""

    def __init__(self, wire: Wire, folder: Path, study: list[str]):
        self._wire, self._folder, self._file = wire, folder, folder / "scheduler.json"
        scheduler = ["--scheduler", str(self._file), "--scheduler-wait", "300"]
        self._command = ["-m", "weanalysis", "ablate", *study, *scheduler, "--cache", str(folder)]
        self._running: list[subprocess.Popen[bytes]] = []

    @property
    def results(self) -> Path:
        """The results file."""
        return self._folder / "results.sqlite"

    @property
    def said(self) -> str:
        """What the study printed."""
        return (self._folder / "study.txt").read_text(encoding="utf-8", errors="replace")

    def run(self, num_pairs: int, cut: int | None, back: float | None) -> tuple[float, float | None]:
        """Run the study to its end; return its seconds, and those since a host was cut off."""
        began, cut_at = time.monotonic(), None
        try:
            study = self._start()
            while study.poll() is None and time.monotonic() - began < 1200:
                if cut_at is None and cut is not None and len(list(pairs(self.results))) >= num_pairs / 3:
                    self._wire.cut(cut)
                    cut_at = time.monotonic()
                if cut_at is not None and back is not None and time.monotonic() - cut_at > back:
                    self._wire.cut(None)
                time.sleep(0.1)
            ended = time.monotonic()
            if study.poll() != 0:
                raise SystemExit(f"the study has not ended, or with status {study.poll()}: {self.said[-3000:]}")
            return ended - began, None if cut_at is None else ended - cut_at
        finally:
            self._wire.cut(None)
            for process in self._running:
                process.kill()
                process.wait()

    def compare(self, alone: Path, expected: pd.DataFrame, cut: int | None, back: float | None) -> int:
        """Run the study, and print what came of it beside what one process measured; return how much is wrong."""
        num_pairs = len(list(pairs(alone)))
        seconds, since = self.run(num_pairs, cut, back)
        kept = list(pairs(self.results))
        wrong = {
            "rows different": num_different(table_of(self.results), expected),
            "lost": num_pairs - len(set(kept)),
            "doubled": len(kept) - len(set(kept)),
        }
        what = "nothing is cut off" if since is None else f"host {cut} is cut off {since:.1f} s before the end"
        numbers = ", ".join(f"{name}: {number}" for name, number in wrong.items())
        print(f"{what}: {seconds:.1f} s for {len(expected)} rows; {numbers}; {self._wire.num_dropped} packets dropped")
        lines = [line for line in self.said.splitlines() if " measurements, " not in line]
        print("\n".join(f"  {line}" for line in lines if "worker" in line or "scheduler" in line), flush=True)
        return sum(map(abs, wrong.values()))

    def _start(self) -> subprocess.Popen[bytes]:
        for number in (SCHEDULER, *range(1, NUM_HOSTS + 1)):
            what = "scheduler" if not self._running else "worker"
            options = ["--port", "0"] if what == "scheduler" else ["--no-nanny", "--nthreads", "1"]
            options += ["--host", address_of(number), "--scheduler-file", str(self._file), "--no-dashboard"]
            self._on(number, what, ["-m", f"distributed.cli.dask_{what}", *options])
            while not self._file.is_file():
                time.sleep(0.05)
        return self._on(STUDY, "study", self._command)

    def _on(self, number: int, what: str, command: list[str]) -> subprocess.Popen[bytes]:
        with open(self._folder / f"{what}.txt", "ab") as log:
            process = self._wire.on(
                number, [sys.executable, *command], env=ENVIRONMENT, stdout=log, stderr=log, cwd=self._folder
            )
        self._running.append(process)
        return process


def main(words: list[str] | None = None) -> int:
    """Run the study undisturbed, then with a host that is cut off; print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cut", type=int, choices=range(1, NUM_HOSTS + 1), default=3, help="the host that is cut off")
    parser.add_argument("--back", type=float, help="seconds after which it is reached again (default: never)")
    parser.add_argument("--delay", type=float, default=0.03, help="seconds between two hosts, one way")
    parser.add_argument("--grid", default="3x3", help="how long the study is")
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as root:
        alone = Path(root) / "alone"
        alone.mkdir()
        study, expected = prepare(alone, given.grid)
        with Wire(given.delay).laid() as wire:
            asked = wire.on(1, [sys.executable, "-c", _ROUND_TRIP, address_of(3)], stdout=subprocess.PIPE)
            print(f"a packet to another host and back takes {1000 * float(asked.communicate()[0]):.0f} ms")
            num_wrong = 0
            for cut in (None, given.cut):
                folder = Path(root) / f"cut-{cut}"
                folder.mkdir()
                trial = Trial(wire, folder, study)
                num_wrong += trial.compare(alone / "results.sqlite", expected, cut, given.back)
    return int(num_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
