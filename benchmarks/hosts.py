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
import ctypes
import fcntl
import heapq
import multiprocessing
import os
import selectors
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.context import ForkProcess
from pathlib import Path

import pandas as pd

from benchmarks.soak import num_different, pairs, prepare, start, table_of

# Where the study and the scheduler are; a worker is on each.
NUM_HOSTS, STUDY, SCHEDULER = 3, 1, 2

# Linux's own numbers: `TUNSETIFF` of if_tun.h, for a device of bare IP packets, and a network namespace.
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI, _CLONE_NEWNET = 0x400454CA, 0x0001, 0x1000, 0x40000000
_MTU = 9000

# The wire comes before the programs that use it, so that a busy machine does not make it a longer one.
_NICENESS = -10


class Wire:
    """Three hosts, and the wire between them, of `delay` seconds each way, which a copy of this process is."""

    def __init__(self, delay: float):
        self._delay = delay
        self._names = [f"weanalysis-{os.getpid()}-{one}" for one in range(1, NUM_HOSTS + 1)]
        self._devices: list[int] = []
        self._cut, self._dropped = multiprocessing.Value("i", 0), multiprocessing.Value("i", 0)
        self._carrier = ForkProcess(target=self._carry, daemon=True)

    @property
    def num_dropped(self) -> int:
        """How many packets were dropped."""
        return self._dropped.value

    @contextmanager
    def laid(self) -> Iterator[Wire]:
        """The hosts are there, and reach one another, within the block."""
        try:
            for place, name in enumerate(self._names):
                self._devices.append(self._add_host(name, place + 1))
            self._carrier.start()
            yield self
        finally:
            if self._carrier.pid is not None:
                self._carrier.kill()
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

    def enter(self, number: int) -> None:
        """Have this process be on a host, which is counted from 1."""
        with open(f"/run/netns/{self._names[number - 1]}", "rb") as name:
            if ctypes.CDLL(None, use_errno=True).setns(name.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "the network namespace cannot be entered")

    def cut(self, number: int) -> None:
        """Drop whatever is from or for this host, from now on; 0: of none."""
        self._cut.value = number

    def seconds_there_and_back(self) -> float:
        """How long a packet takes from the first host to the last, where nobody listens, and back."""
        reader, writer = multiprocessing.Pipe(duplex=False)
        asking = ForkProcess(target=self._ask, args=(writer,))
        asking.start()
        asking.join()
        return reader.recv()

    def _ask(self, writer: multiprocessing.connection.Connection) -> None:
        self.enter(1)
        began = time.perf_counter()
        with suppress(ConnectionRefusedError):
            socket.create_connection((address_of(NUM_HOSTS), 9), timeout=10)
        writer.send(time.perf_counter() - began)

    def _carry(self) -> None:
        """Hand packets on, in their order, each after the delay."""
        with suppress(OSError):
            os.nice(_NICENESS)
        under_way: list[tuple[float, int, int, bytes]] = []
        num_sent = 0
        with selectors.DefaultSelector() as ready:
            for place, device in enumerate(self._devices):
                ready.register(device, selectors.EVENT_READ, place + 1)
            while True:
                while under_way and under_way[0][0] <= time.monotonic():
                    _, _, target, packet = heapq.heappop(under_way)
                    if self._cut.value == target:
                        self._dropped.value += 1
                        continue
                    with suppress(OSError):  # a queue that is full drops it, as a network does
                        os.write(self._devices[target - 1], packet)
                pause = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
                for key, _ in ready.select(pause):
                    with suppress(BlockingIOError):
                        while True:
                            packet = os.read(key.fd, 65536)
                            target = packet[19] if packet[0] >> 4 == 4 else 0  # the last byte of an IPv4 address
                            if self._cut.value == key.data:
                                self._dropped.value += 1
                            elif 1 <= target <= NUM_HOSTS:
                                num_sent += 1
                                heapq.heappush(under_way, (time.monotonic() + self._delay, num_sent, target, packet))


def address_of(number: int) -> str:
    """The address of a host."""
    return f"10.77.0.{number}"


class Trial:
    """A study by workers on three hosts, of which one may be cut off."""

    def __init__(self, wire: Wire, folder: Path, study: list[str]):
        self._wire, self._folder, self._file = wire, folder, folder / "scheduler.json"
        scheduler = ["--scheduler", str(self._file), "--scheduler-wait", "300"]
        self._words = ["ablate", *study, *scheduler, "--cache", str(folder)]
        self._running: list[ForkProcess] = []

    @property
    def results(self) -> Path:
        """The results file."""
        return self._folder / "results.sqlite"

    @property
    def said(self) -> str:
        """What the study printed."""
        return (self._folder / "study.txt").read_text(encoding="utf-8", errors="replace")

    def run(self, num_pairs: int, cut: int, back: float | None) -> dict[str, float]:
        """Run the study to its end; return its seconds, and those from the cut to what followed."""
        began, cut_at, seconds = time.monotonic(), None, dict[str, float]()
        try:
            study = self._start()
            while study.is_alive() and time.monotonic() - began < 1200:
                if cut_at is None and cut and len(list(pairs(self.results))) >= num_pairs / 3:
                    self._wire.cut(cut)
                    cut_at = time.monotonic()
                if cut_at is not None and back is not None and time.monotonic() - cut_at > back:
                    self._wire.cut(0)
                if cut_at is not None and "until it was seen" not in seconds and "workers now" in self.said:
                    seconds["until it was seen"] = time.monotonic() - cut_at
                study.join(0.1)
            if cut_at is not None:
                seconds["from the cut to the end"] = time.monotonic() - cut_at
            if study.exitcode != 0:
                raise SystemExit(f"the study has not ended, or with status {study.exitcode}: {self.said[-3000:]}")
            return {"in all": time.monotonic() - began, **seconds}
        finally:
            self._wire.cut(0)
            for process in self._running:
                process.kill()
                process.join()

    def compare(self, alone: Path, expected: pd.DataFrame, cut: int, back: float | None) -> int:
        """Run the study, and print what came of it beside what one process measured; return how much is wrong."""
        num_pairs = len(list(pairs(alone)))
        seconds = self.run(num_pairs, cut, back)
        kept = list(pairs(self.results))
        wrong = {
            "rows different": num_different(table_of(self.results), expected),
            "lost": num_pairs - len(set(kept)),
            "doubled": len(kept) - len(set(kept)),
        }
        numbers = ", ".join(f"{name}: {number}" for name, number in wrong.items())
        times = ", ".join(f"{name} {number:.1f} s" for name, number in seconds.items())
        print(f"{f'host {cut}' if cut else 'nothing'} is cut off: {times}; {self._wire.num_dropped} packets dropped")
        print(f"{len(expected)} rows; {numbers}")
        lines = [line for line in self.said.splitlines() if " measurements, " not in line]
        print("\n".join(f"  {line}" for line in lines if "worker" in line or "scheduler" in line), flush=True)
        return sum(map(abs, wrong.values()))

    def _start(self) -> ForkProcess:
        for number in (SCHEDULER, *range(1, NUM_HOSTS + 1)):
            what = "worker" if self._running else "scheduler"
            options = ["--no-nanny", "--nthreads", "1"] if self._running else ["--port", "0"]
            options += ["--host", address_of(number), "--scheduler-file", str(self._file), "--no-dashboard"]
            self._on(number, what, options)
            while not self._file.is_file():
                time.sleep(0.05)
        return self._on(STUDY, "study", self._words)

    def _on(self, number: int, program: str, words: list[str]) -> ForkProcess:
        self._running.append(start(program, words, self._folder, partial(self._wire.enter, number)))
        return self._running[-1]


def main(words: list[str] | None = None) -> int:
    """Run the study with a host that is cut off; print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    hosts = range(NUM_HOSTS + 1)
    parser.add_argument("--cut", type=int, choices=hosts, default=3, help="the host that is cut off; 0: none")
    parser.add_argument("--back", type=float, help="seconds after which it is reached again (default: never)")
    parser.add_argument("--delay", type=float, default=0.03, help="seconds between two hosts, one way")
    parser.add_argument("--grid", default="3x3", help="how long the study is")
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as root:
        alone, folder = Path(root) / "alone", Path(root) / "hosts"
        for one in (alone, folder):
            one.mkdir()
        study, expected = prepare(alone, given.grid)
        with Wire(given.delay).laid() as wire:
            print(f"a packet to another host and back takes {1000 * wire.seconds_there_and_back():.0f} ms")
            trial = Trial(wire, folder, study)
            num_wrong = trial.compare(alone / "results.sqlite", expected, given.cut, given.back)
    return int(num_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
