"""How fast the dashboard answers with 100 studies and 1,000,000 ablations in the store, and what memory it takes.

    python benchmarks/dashboard.py                    # makes the store in a temporary folder, removed afterwards
    python benchmarks/dashboard.py --cache DIR        # makes it in DIR, or uses what an earlier run made there

The studies are made up, written as a running study writes them. A Chromium that is on the PATH opens every page as a
person does, in a new tab of a browser that has shown the page for another study ("first": nothing of this study was
read yet; "again": the same address once more), and from the menu of a tab that is open. All end when the first figure
(on Overview: the table) is drawn. An interaction begins with the click or key that asks for something, and ends in the
frame that shows the answer.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pandas as pd
import psutil
from playwright.sync_api import BrowserContext, Page, sync_playwright
from safetensors.numpy import save_file

from weanalysis.ablation.evaluate import Measured
from weanalysis.cache import Cache
from weanalysis.results import Store
from weanalysis.results.store import Writer

NUM_STUDIES, NUM_ROWS = 100, 1_000_000
SHARD, NUM_IMAGES, CLASSES = 250, 1000, 10
WEIGHTS = "benchmark"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PAGE_SECONDS, INTERACTION_SECONDS, MEMORY_GB = 3.0, 1.0, 1.5

# ---- the store


def layers() -> list[tuple[str, int, int]]:
    """Return (name, output channels, input channels) of ResNet-110's 3x3 layers."""
    convolutions = [("conv1", 16, 3)]
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range(18):
            first = width // 2 if stage > 1 and block == 0 else width
            convolutions += [
                (f"layer{stage}.{block}.conv1", width, first),
                (f"layer{stage}.{block}.conv2", width, width),
            ]
    return convolutions


def location_plan(num_rows: int) -> pd.DataFrame:
    """Return kernels on equidistant channels of every layer, as many as asked for."""
    side = int(np.ceil(np.sqrt(num_rows / (len(layers()) - 1))))
    rows = [
        (layer, depth, "kernel", out, into)
        for depth, (layer, num_out, num_in) in enumerate(layers())
        for out in np.unique(np.linspace(0, num_out - 1, side).round().astype(int)).tolist()
        for into in np.unique(np.linspace(0, num_in - 1, side).round().astype(int)).tolist()
    ]
    return pd.DataFrame(rows[:num_rows], columns=["layer", "depth", "selection", "out_channel", "in_channel"])


def magnitude_plan(num_rows: int) -> pd.DataFrame:
    """Return 100 percentiles of layer after layer."""
    rows = [
        (layer, depth, "single", float(percentile), 0)
        for depth, (layer, _, _) in enumerate(layers())
        for percentile in range(1, 101)
    ]
    return pd.DataFrame(rows[:num_rows], columns=["layer", "depth", "selection", "percentile", "draw"])


def multiplier_plan(num_rows: int) -> pd.DataFrame:
    """Return the lowest and the highest channel everywhere and by layer, and curves over ranks with random draws."""
    rows: list[tuple[Any, ...]] = [(None, None, end, None, None) for end in ("lowest", "highest")]
    rows += [
        (layer, depth, end, None, None) for depth, (layer, _, _) in enumerate(layers()) for end in ("lowest", "highest")
    ]
    rows += [
        (None, None, selection, fraction / 100, draw)
        for draw in range(100)
        for fraction in range(1, 101)
        for selection in (("lowest", "highest", "random") if draw == 0 else ("random",))
    ]
    return pd.DataFrame(rows[:num_rows], columns=["layer", "depth", "selection", "fraction", "draw"])


PLANS = {"location": location_plan, "magnitude": magnitude_plan, "multiplier": multiplier_plan}


def made_shard(generator: np.random.Generator, start: int, num_ablations: int) -> Measured:
    """Return a shard in which an ablation changes about one image of 250, few of them many."""
    targets = np.random.default_rng(start).integers(0, CLASSES, SHARD)  # every study has the same images
    predictions = np.where(generator.random(SHARD) < 0.9, targets, (targets + 1) % CLASSES)
    counts = np.minimum(generator.geometric(0.5, num_ablations) - 1, 20)
    ends = np.cumsum(counts)
    # Distinct places for one ablation: consecutive ones from a random first.
    firsts = generator.integers(0, SHARD, num_ablations)
    positions = (np.repeat(firsts, counts) + np.arange(ends[-1]) - np.repeat(ends - counts, counts)) % SHARD
    right = predictions[positions] == targets[positions]
    classes = np.where(right, (targets[positions] + 2) % CLASSES, targets[positions])
    return Measured(
        start,
        start + SHARD,
        targets,
        predictions,
        (2 + (predictions == targets)).astype(np.uint8),
        counts,
        positions,
        classes,
        np.where(right, 2, 3),
        largest_difference=1e-6,
        seconds=1.0,
    )


def make_store(cache: Cache) -> None:
    """Write the studies, the network's weights and multipliers: of ten, six location, three magnitude, one LWE."""
    generator = np.random.default_rng(0)
    plans = {}
    for kind, plan in PLANS.items():
        table = plan(NUM_ROWS // NUM_STUDIES)
        rows = table.astype(object).where(table.notna(), None).assign(num_weights=9).to_dict("records")
        plans[kind] = [(f"{kind}{list(row.values())}", row) for row in rows]
    with Writer.open(cache.results) as writer, Store.open(cache.results) as store:
        for number in range(NUM_STUDIES):
            kind = "location" if number % 10 < 6 else "magnitude" if number % 10 < 9 else "multiplier"
            about = {
                "model": "resnet110",
                "weights": "made.safetensors",
                "data": "digits",
                "command": "weanalysis ablate",
                "layers": [name for name, _, _ in layers()],
            }
            context = writer.context(
                {
                    **about,
                    "weights_hash": WEIGHTS,
                    "evaluate": "exact",
                    "shard_size": SHARD,
                    "seed": 0,
                    "fingerprint": "made",
                    "number": number,
                }
            )
            name = f"made-{kind}-{number}"
            study = writer.begin_study(context, name, kind, name, "top1", NUM_IMAGES, plans[kind], about)
            ids = store.ablation_ids(study)
            steps = NUM_IMAGES // SHARD
            for done in range(steps):
                shard = made_shard(generator, done * SHARD, len(ids))
                images = np.arange(shard.start, shard.stop)
                writer.write(context, ids, images, shard, study, (done + 1) * len(ids), steps * len(ids))
            writer.set_state(study, "complete", steps * len(ids), steps * len(ids))
    cache.weights.mkdir(exist_ok=True)
    save_file(
        {f"{name}.weight": generator.normal(size=(out, into, 3, 3)).astype(np.float32) for name, out, into in layers()},
        cache.weights / f"{WEIGHTS}.safetensors",
    )
    save_file(
        {name: generator.beta(3, 5, size=(out, into)).astype(np.float32) for name, out, into in layers()},
        cache.weights / f"{WEIGHTS}-multipliers.safetensors",
    )


# ---- the server and its memory


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


# ---- the visits

DRAWN = "key => document.querySelector(`.st-key-${key} .js-plotly-plot .main-svg .subplot`) !== null"
JOBS = "() => document.querySelector('[data-testid=stMain] h1')?.textContent.trim() === 'Jobs'"
TABLE = "() => document.querySelector('[data-testid=stDataFrame] canvas') !== null"
STILL = "() => !document.querySelector('[data-testid=stApp][data-test-script-state=running]')"


@dataclass
class Deed:
    """What a person does on a page: what comes before it, the last click or key, and JavaScript true once answered."""

    name: str
    prepare: Callable[[Page], None]
    act: Callable[[Page], None]
    answered: str


@dataclass
class Visit:
    """A page: its path, the study of its address, what is drawn first, and what a person does there."""

    name: str
    path: str
    address: Callable[[int], dict[str, str]]
    first: str
    deeds: tuple[Deed, ...]


def choose(key: str, text: str) -> Callable[[Page], None]:
    """Type into a select box, so that Enter takes the first that fits."""

    def prepare(page: Page) -> None:
        box = page.locator(f".st-key-{key} input").first
        box.click()
        box.fill(text)

    return prepare


def write(key: str, text: str) -> Callable[[Page], None]:
    """Write into a text field, so that Enter sends it."""
    return lambda page: page.locator(f".st-key-{key} input").fill(text)


def point_at(text: str) -> Callable[[Page], None]:
    """Bring a word into view, and the pointer onto it."""

    def prepare(page: Page) -> None:
        word = page.get_by_text(text, exact=True).first
        word.scroll_into_view_if_needed()
        word.hover()

    return prepare


def point_at_kernel(page: Page) -> None:
    """Bring the pointer onto the first kernel of the tenth layer."""
    left, top = page.evaluate(
        """() => {
            const plot = document.querySelector('.st-key-mosaic .js-plotly-plot'), axes = plot._fullLayout;
            const dots = plot._fullData[1], k = dots.customdata.findIndex(c => c[0] === 'layer1.4.conv1');
            const drag = plot.querySelector('.nsewdrag'), down = axes.yaxis.d2p(dots.y[k]);
            const main = document.querySelector('[data-testid=stMain]');
            main.scrollBy(0, drag.getBoundingClientRect().y + down - innerHeight / 2);
            const box = drag.getBoundingClientRect();
            return [box.x + axes.xaxis.d2p(dots.x[k]), box.y + down];
        }"""
    )
    page.mouse.move(left - 2, top)
    page.mouse.move(left, top)
    page.locator(".st-key-mosaic .hoverlayer .hovertext").wait_for()


def click(page: Page) -> None:
    """Click where the pointer is."""
    page.mouse.down()
    page.mouse.up()


def enter(page: Page) -> None:
    page.keyboard.press("Enter")


def from_menu(title: str, drawn: str) -> Deed:
    """Open a page from the menu of the tab."""
    link = "[data-testid=stSidebarNavLink]"
    return Deed(title, lambda page: page.locator(link, has_text=title).hover(), click, drawn)


def says(text: str) -> str:
    """JavaScript that is true once a paragraph or a heading of the page says so."""
    return f"() => [...document.querySelectorAll('[data-testid=stMain] :is(p, h2, h3)')].some(p => {text})"


def link(number: int) -> str:
    """Return what the address calls the study that was written as the `number`-th, counted from 0."""
    return str(number + 1)


OTHER_LAYER = "layer2.3.conv1"
VISITS = (
    Visit(
        "Overview",
        "/",
        lambda turn: {},
        "",
        (
            Deed(
                "search",
                write("search", "resnet110 made-magnitude-26"),
                enter,
                says("/^1 of [0-9]+ studies/.test(p.textContent)"),
            ),
            Deed(
                "filter",
                lambda page: (write("search", "")(page), enter(page), point_at("magnitude")(page)),
                click,
                says("/^30 of 100 studies/.test(p.textContent)"),
            ),
        ),
    ),
    Visit(
        "Location maps",
        "/location",
        lambda turn: {"study": link(turn)},
        "mosaic",
        (
            Deed(
                "colour shows q",
                point_at("Significance"),
                click,
                "() => document.querySelector('.st-key-mosaic .cbtitle')?.textContent.trim() === 'q'",
            ),
            Deed("click on a cell", point_at_kernel, click, f"() => ({DRAWN})('weights')"),
        ),
    ),
    Visit(
        "Magnitude",
        "/magnitude",
        lambda turn: {"study": link(10 * turn + 6)},
        "curve",
        (
            Deed(
                "another layer",
                choose("layer", OTHER_LAYER),
                enter,
                says(f"p.textContent.startsWith('Weights of {OTHER_LAYER}')"),
            ),
        ),
    ),
    Visit(
        "Multipliers",
        "/multipliers",
        lambda turn: {"study": link(10 * turn + 9)},
        "rank-curve",
        (
            Deed(
                "another layer",
                choose("layer", OTHER_LAYER),
                enter,
                says(f"p.textContent.startsWith('Map of {OTHER_LAYER}')"),
            ),
        ),
    ),
    Visit(
        "Compare",
        "/compare",
        lambda turn: {"first": link(10 * turn + 10), "second": link(10 * turn + 11)},
        "mosaic-1",
        (
            Deed(
                "a kernel's images",
                choose("kernel-layer", OTHER_LAYER),
                enter,
                says("p.textContent.includes('Images whose prediction changed')"),
            ),
            Deed(
                "hide what is no difference",
                point_at("Only significant differences (q ≤ 0.05)"),
                click,
                says("p.textContent.includes('the others are grey')"),
            ),
        ),
    ),
)


@contextmanager
def visiting(browser: BrowserContext, url: str, first: str) -> Iterator[tuple[Page, float]]:
    """Open `url` in a new tab; yield the page and the seconds until its first figure is drawn."""
    page = browser.new_page()
    page.set_default_timeout(60_000)
    begun = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.wait_for_function(DRAWN if first else TABLE, arg=first, polling="raf")
    seconds = time.perf_counter() - begun
    page.wait_for_function(STILL)
    yield page, seconds
    page.close()


def seconds_of(deed: Deed, page: Page) -> float:
    """Do it; return the seconds from the last click or key to the frame that shows the answer."""
    page.wait_for_function(STILL)
    deed.prepare(page)
    page.wait_for_function(STILL)
    begun = time.perf_counter()
    deed.act(page)
    page.wait_for_function(deed.answered, polling="raf")
    return time.perf_counter() - begun


def measure(browser: BrowserContext, address: str, server: psutil.Process, rounds: int) -> pd.DataFrame:
    """Return a row a page and deed with the seconds of each round, and the server's memory after it."""
    rows = []
    for visit in VISITS:
        with visiting(browser, f"{address}{visit.path}?{urlencode(visit.address(0))}", visit.first) as (page, _):
            for deed in visit.deeds:  # what imports a library the first time, or reads the images
                seconds_of(deed, page)
        opened = ("opened, first", "opened, again", "opened from the menu")
        taken: dict[str, list[float]] = {name: [] for name in (*opened, *(deed.name for deed in visit.deeds))}
        for turn in range(1, rounds + 1):
            url = f"{address}{visit.path}?{urlencode(visit.address(turn))}"
            with visiting(browser, url, visit.first) as (_, seconds):
                taken[opened[0]].append(seconds)
            with visiting(browser, url, visit.first) as (page, seconds):
                taken[opened[1]].append(seconds)
                for deed in visit.deeds:
                    taken[deed.name].append(seconds_of(deed, page))
                seconds_of(from_menu("Jobs", JOBS), page)
                drawn = f"() => ({DRAWN})({visit.first!r})" if visit.first else TABLE
                taken[opened[2]].append(seconds_of(from_menu(visit.name, drawn), page))
        for name, seconds_each in taken.items():
            limit = PAGE_SECONDS if name in opened else INTERACTION_SECONDS
            rows.append(
                {
                    "page": visit.name,
                    "what": name,
                    "median_s": statistics.median(seconds_each),
                    "longest_s": max(seconds_each),
                    "limit_s": limit,
                    "server_gb": memory_gb(server),
                }
            )
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
            with visiting(browser, address, "figure") as (_, seconds):
                taken.append(seconds)
    return taken[1:]


def main() -> None:
    """Make the store where it is missing, drive the browser, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no chromium on the PATH; apt-get install chromium")
    folder = given.cache or Path(tempfile.mkdtemp(prefix="weanalysis-benchmark-"))
    cache = Cache(folder.resolve()).ready()
    try:
        if not cache.results.is_file():
            begun = time.perf_counter()
            make_store(cache)
            print(
                f"made {NUM_STUDIES} studies, {NUM_ROWS:,} ablations in {time.perf_counter() - begun:.0f} s, "
                f"{cache.results.stat().st_size / 1e6:,.0f} MB"
            )
        command = ["weanalysis", "dashboard", "--no-open", "--cache", str(cache.root), "--port"]
        with sync_playwright() as driver, tempfile.TemporaryDirectory(prefix="weanalysis-browser-") as profile:
            browser = driver.chromium.launch_persistent_context(
                profile, executable_path=chromium, args=FLAGS, viewport={"width": 1440, "height": 1000}
            )
            alone = bare(browser, Path(profile), given.rounds)
            with serving(command, cache.root / "server.log") as (address, server):
                table = measure(browser, address, server, given.rounds)
            browser.close()
    finally:
        if given.cache is None:
            shutil.rmtree(folder)
    print(
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; median "
        f"and longest of {given.rounds}; server, browser (without a GPU) and driver share these cores"
    )
    print(table.to_string(index=False, float_format=lambda value: f"{value:.2f}"))
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
