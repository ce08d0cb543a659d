"""How fast the dashboard answers with 100 studies and 1,000,000 ablations in the store, and what memory it takes.

    python -m benchmarks.dashboard                    # makes the cache in a temporary folder, removed afterwards
    python -m benchmarks.dashboard --cache DIR        # makes it in DIR, or uses what an earlier run made there
    python -m benchmarks.dashboard --only Compare     # visits no other page

What is in the cache is made up, written as a running study writes it. A Chromium that is on the PATH opens every page
as a person does, in a new tab of a browser that has shown the page for another study ("first": nothing of this study
was read yet; "again": the same address once more), and from the menu of a tab that is open, which shows the newest
study: in the first round it was not read yet. All end when the figure is drawn that the page is for (on Overview and
Baseline against LWE, what is there instead). An interaction begins with the click or key that asks for something, and
ends in the frame that shows the answer; that it was not there before is made sure of.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from urllib.parse import urlencode

import pandas as pd
import psutil
from playwright.sync_api import BrowserContext, Error, Page, sync_playwright

from benchmarks.dashboard.store import NUM_STUDIES, make_cache
from benchmarks.dashboard.visits import JOBS, VISITS, Deed, Visit, drawn, from_menu
from weanalysis.cache import Cache

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PAGE_SECONDS, MEMORY_GB = 3.0, 1.5
MOST_ROUNDS = 9  # each opens studies that no other does
PATIENCE_MS = 60_000
OPENED = ("opened, first", "opened, again", "opened from the menu")
STILL = "() => !document.querySelector('[data-testid=stApp][data-test-script-state=running]')"

BARE_PAGE = """
import plotly.graph_objects as go
import streamlit as st

st.title("One figure")
with st.container(key="figure"):
    st.plotly_chart(go.Figure(go.Scatter(x=[1, 2, 3], y=[1, 3, 2])), theme=None)
"""


@contextmanager
def serving(command: list[str], log: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run a command that serves Streamlit on the port put behind it, a free one; yield its address and process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with open(log, "wb") as output:
        server = subprocess.Popen([sys.executable, "-m", *command, str(port)], stdout=output, stderr=output)
        try:
            address = f"http://127.0.0.1:{port}"
            while True:
                try:
                    urllib.request.urlopen(f"{address}/_stcore/health", timeout=2).close()
                    break
                except OSError:
                    if server.poll() is not None:
                        sys.exit(log.read_text())
                    time.sleep(0.2)
            yield address, psutil.Process(server.pid)
        finally:
            server.terminate()
            server.wait(timeout=30)


def memory_gb(process: psutil.Process) -> float:
    """Return the resident memory of a process and its children, in GB."""
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True))) / 1e9


@contextmanager
def visiting(browser: BrowserContext, url: str, opened: str) -> Iterator[tuple[Page, float]]:
    """Open `url` in a new tab; yield the page and the seconds until it is `opened`, which JavaScript tells.

    Where the page does not open, or what is done there is not answered, a picture of the tab is left behind.
    """
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    try:
        begun = time.perf_counter()
        page.goto(url, wait_until="commit")
        page.wait_for_function(opened, polling="raf")
        seconds = time.perf_counter() - begun
        page.wait_for_function(STILL)
        yield page, seconds
    except Error:
        picture = Path(tempfile.gettempdir()) / "weanalysis-dashboard.png"
        page.screenshot(path=picture)
        print(f"{url} did not answer; {picture} is what it showed", file=sys.stderr)
        raise
    page.close()


def seconds_of(deed: Deed, page: Page) -> float:
    """Do it; return the seconds from the last click or key to the frame that shows the answer."""
    page.wait_for_function(STILL)
    deed.prepare(page)
    page.wait_for_function(STILL)
    if page.evaluate(deed.answered):
        raise RuntimeError(f"{deed.name}: the answer is there before it is asked for")
    begun = time.perf_counter()
    deed.act(page)
    page.wait_for_function(deed.answered, polling="raf")
    return time.perf_counter() - begun


def go_round(browser: BrowserContext, address: str, visit: Visit, turn: int) -> dict[str, float]:
    """Open a page in all ways and do all that is done there; return the seconds of each."""
    url = f"{address}{visit.path}?{urlencode(visit.address(turn))}"
    with visiting(browser, url, visit.opened) as (_, seconds):
        taken = {OPENED[0]: seconds}
    with visiting(browser, url, visit.opened) as (page, seconds):
        taken[OPENED[1]] = seconds
        for deed in visit.deeds:
            taken[deed.name] = seconds_of(deed, page)
        seconds_of(from_menu("Jobs", JOBS), page)
        taken[OPENED[2]] = seconds_of(from_menu(visit.name, visit.opened_from_menu or visit.opened), page)
    return taken


def measure(
    browser: BrowserContext, address: str, server: psutil.Process, visits: list[Visit], rounds: int
) -> pd.DataFrame:
    """Return a row a page and deed with the seconds of each round, and the server's memory after it."""
    rows = []
    for visit in visits:
        url = f"{address}{visit.path}?{urlencode(visit.address(0))}"
        with visiting(browser, url, visit.opened) as (page, _):
            for deed in visit.deeds:  # what imports a library the first time, or reads the images
                seconds_of(deed, page)
        taken = pd.DataFrame([go_round(browser, address, visit, turn) for turn in range(1, rounds + 1)])
        limits = dict.fromkeys(OPENED, PAGE_SECONDS) | {deed.name: deed.limit for deed in visit.deeds}
        rows += [
            {
                "page": visit.name,
                "what": name,
                "median_s": taken[name].median(),
                "longest_s": taken[name].max(),
                "limit_s": limit,
                "server_gb": memory_gb(server),
            }
            for name, limit in limits.items()
        ]
    return pd.DataFrame(rows)


def bare(browser: BrowserContext, folder: Path, rounds: int) -> list[float]:
    """Return the seconds that Streamlit and Plotly take by themselves to show three points, in each round."""
    (folder / "bare.py").write_text(BARE_PAGE)
    command = [
        "streamlit",
        "run",
        str(folder / "bare.py"),
        "--server.headless=true",
        "--server.address=127.0.0.1",
        "--browser.gatherUsageStats=false",
        "--server.fileWatcherType=none",
        "--server.port",
    ]
    taken = []
    with serving(command, folder / "bare.log") as (address, _):
        for _ in range(rounds + 1):
            with visiting(browser, address, drawn("figure")) as (_, seconds):
                taken.append(seconds)
    return taken[1:]


def run(cache: Cache, chromium: str, visits: list[Visit], rounds: int) -> tuple[pd.DataFrame, list[float]]:
    """Serve a cache and visit its pages; return the table, and the seconds that a page of three points takes."""
    command = ["weanalysis", "dashboard", "--no-open", "--cache", str(cache.root), "--port"]
    # A browser that is being closed may write into its profile once more.
    profile = tempfile.TemporaryDirectory(prefix="weanalysis-browser-", ignore_cleanup_errors=True)
    with profile as folder, sync_playwright() as driver:
        browser = driver.chromium.launch_persistent_context(
            folder, executable_path=chromium, args=FLAGS, viewport={"width": 1440, "height": 1000}
        )
        alone = bare(browser, Path(folder), rounds)
        with serving(command, cache.root / "server.log") as (address, server):
            table = measure(browser, address, server, visits, rounds)
        browser.close()
    return table, alone


def as_markdown(table: pd.DataFrame) -> str:
    """Return the rows as the documentation has them; a median above its limit is bold."""
    lines = [
        "| page | what | median, s | longest, s | limit, s | server, GB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in table.itertuples():
        median = f"{row.median_s:.2f}" if row.median_s <= row.limit_s else f"**{row.median_s:.2f}**"
        numbers = f"{row.longest_s:.2f} | {row.limit_s:.2f} | {row.server_gb:.2f}"
        lines.append(f"| {row.page} | {row.what} | {median} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    """Make the cache where it is missing, drive the browser, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=3, choices=range(1, MOST_ROUNDS + 1))
    names = [visit.name for visit in VISITS]
    parser.add_argument("--only", action="append", choices=names, help="a page; may be given several times")
    given = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no chromium on the PATH; apt-get install chromium")
    visits = [visit for visit in VISITS if visit.name in (given.only or names)]
    folder = given.cache or Path(tempfile.mkdtemp(prefix="weanalysis-benchmark-"))
    cache = Cache(folder.resolve()).ready()
    try:
        if not cache.results.is_file():
            begun = time.perf_counter()
            num_rows = make_cache(cache)
            print(
                f"made {NUM_STUDIES} studies, {num_rows:,} ablations in {time.perf_counter() - begun:.0f} s, "
                f"{cache.results.stat().st_size / 1e6:,.0f} MB"
            )
        loads = [os.getloadavg()[0]]
        table, alone = run(cache, chromium, visits, given.rounds)
        loads.append(os.getloadavg()[0])
    finally:
        if given.cache is None:
            shutil.rmtree(folder)
    print(
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"load {loads[0]:.1f} before and {loads[1]:.1f} after; median and longest of {given.rounds}; server, browser "
        "(without a GPU) and driver share these cores"
    )
    print(as_markdown(table))
    print(
        f"A page of Streamlit's with one figure of three points: {statistics.median(alone):.2f} s "
        f"({min(alone):.2f} to {max(alone):.2f})"
    )
    late = table[table["median_s"] > table["limit_s"]]
    most = table["server_gb"].max()
    print(
        f"{len(late)} of {len(table)} medians above their limit; memory of the server at most {most:.2f} GB "
        f"(limit {MEMORY_GB})"
    )
    sys.exit(1 if len(late) or most > MEMORY_GB else 0)


if __name__ == "__main__":
    main()
