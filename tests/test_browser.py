"""The dashboard in a real Chromium: what a person sees, clicks, saves and links to, and what leaves the machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from legible import HEADINGS, PALE_TEXT
from made_studies import channel_plan, label, location_plan, table, write_demo, write_runs, write_study
from processes import CHECKOUT, free_port

from weanalysis.figures import points

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright's Python package is not installed")

# How long to wait for what must come: other processes share the cores.
PATIENCE_MS = 90_000
playwright.expect.set_options(timeout=PATIENCE_MS)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = [
    pytest.mark.browser,
    # A check that nobody sees skipped: with CI set, a missing browser is a failure.
    pytest.mark.skipif(
        CHROMIUM is None and not os.environ.get("CI"), reason="no chromium on the PATH; apt-get install chromium"
    ),
]

START = (
    "import sys; from pathlib import Path; from weanalysis.cache import Cache; from weanalysis.dashboard import launch"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cache")
    write_demo(root)
    write_study(
        root / "results.sqlite", "channel", channel_plan(), "baseline channels", num_images=700, weights_hash="aaaa"
    )
    write_runs(root)
    return root


@pytest.fixture(scope="module")
def address(cache: Path) -> Iterator[str]:
    port = free_port()
    program = f"{START}; sys.exit(launch(Cache(Path(sys.argv[1])), port=int(sys.argv[2])))"
    log = cache / "server.log"
    with open(log, "wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-c", program, str(cache), str(port)],
            cwd=CHECKOUT,
            stdout=output,
            stderr=output,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            for _ in range(360):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2)
                    break
                except OSError:
                    assert server.poll() is None, log.read_text()
                    time.sleep(0.5)
            else:
                pytest.fail("the dashboard did not start:\n" + log.read_text())
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(timeout=60)
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


class Visitor:
    """A fresh browser profile, and all that went wrong or out while it was used."""

    def __init__(self, browser: Any, address: str, cache: Path, **options: Any):
        self.context = browser.new_context(viewport={"width": 1440, "height": 1000}, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.address, self.cache = address, cache
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda websocket: self.requests.append(websocket.url))

    def _hear(self, message: Any) -> None:
        # On a page's own address Streamlit first looks for its server below that address, which is not found.
        probing = "/_stcore/" in str(message.location.get("url", ""))
        if message.type == "error" and not probing:
            self.errors.append(f"{message.text} {message.location.get('url', '')}")

    def visit(self, path: str) -> Any:
        self.page.goto(self.address + path)
        self.page.wait_for_selector("h1")
        return self.page

    def chart(self, key: str) -> Any:
        """Wait until a figure is drawn, the script behind it has ended, and nothing moves any more."""
        plot = self.page.locator(f".st-key-{key} .js-plotly-plot .nsewdrag").first
        plot.wait_for()
        self.page.wait_for_function(
            """key => {
                const still = !document.querySelector('[data-test-script-state=running]');
                const box = document.querySelector(`.st-key-${key} .nsewdrag`)?.getBoundingClientRect();
                const place = JSON.stringify([box?.x, box?.y, box?.width, box?.height]);
                window.since = still && window.place === place ? window.since : performance.now();
                window.place = place;
                return performance.now() - window.since > 300;
            }""",
            arg=key,
            polling=50,
        )
        return plot

    def place_of(self, layer: str, out: int, into: int, key: str = "mosaic") -> tuple[float, float]:
        """Return where the middle of a kernel's cell is on the page."""
        box = self.chart(key).bounding_box()
        x, y = self.page.evaluate(
            """([layer, out, into, key]) => {
                const plot = document.querySelector(`.st-key-${key} .js-plotly-plot`);
                const dots = plot._fullData[1], axes = plot._fullLayout;
                const k = dots.customdata.findIndex(c => c[0] === layer && c[1] === out && c[2] === into);
                return [axes.xaxis.d2p(dots.x[k]), axes.yaxis.d2p(dots.y[k])];
            }""",
            [layer, out, into, key],
        )
        return box["x"] + x, box["y"] + y

    def zoom(self) -> list[list[float]]:
        """Return what part of the mosaic is seen."""
        return self.page.evaluate(
            """() => {
                const axes = document.querySelector('.st-key-mosaic .js-plotly-plot')._fullLayout;
                return [axes.xaxis.range, axes.yaxis.range];
            }"""
        )

    def leave(self) -> None:
        self.context.close()
        local = ("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")
        assert not [url for url in self.requests if not url.startswith(local)]
        assert not self.errors, self.errors


@pytest.fixture
def visitor(browser: Any, address: str, cache: Path) -> Iterator[Visitor]:
    visitor = Visitor(browser, address, cache)
    yield visitor
    visitor.leave()


def test_from_the_overview_to_the_maps(visitor: Visitor) -> None:
    page = visitor.visit("/")
    page.get_by_text("6 of 6 studies").wait_for()
    page.get_by_role("link", name="Location maps").click()
    visitor.chart("mosaic")
    page.get_by_text("layer2.0.conv1").first.wait_for()
    page.get_by_text("465 of 465 kernels measured").wait_for()
    cells_and_veil = page.locator(".st-key-mosaic .hm")
    playwright.expect(cells_and_veil, "one heatmap for all layers, and what is pale").to_have_count(2)


def labels_fit(visitor: Visitor, *keys: str) -> None:
    """Hold figures to the margins that they were given: else Plotly widens these and draws the figure a second time."""
    for key in keys:
        visitor.chart(key)
        taken, given = visitor.page.evaluate(
            """key => {
                const plot = document.querySelector(`.st-key-${key} .js-plotly-plot`);
                return [plot._fullLayout._size, plot.layout.margin];
            }""",
            key,
        )
        for side in "lb":
            assert taken[side] == pytest.approx(given[side], abs=1), (key, side)


def test_hovering_a_cell_tells_its_kernel_and_labels_fit_their_margins(visitor: Visitor) -> None:
    page = visitor.visit("/location")
    mosaic = visitor.chart("mosaic")
    mosaic.scroll_into_view_if_needed()
    box = mosaic.bounding_box()
    page.mouse.move(box["x"] + 30, box["y"] + 70)
    page.mouse.move(box["x"] + 32, box["y"] + 72)
    label = page.locator(".st-key-mosaic .hoverlayer .hovertext")
    playwright.expect(label).to_contain_text("conv1output")
    playwright.expect(label).to_contain_text("95 % interval")
    labels_fit(visitor, "spread")


def test_settings_are_in_the_address_and_open_elsewhere(
    visitor: Visitor, browser: Any, address: str, cache: Path
) -> None:
    page = visitor.visit("/location")
    visitor.chart("mosaic")
    page.get_by_text("Significance", exact=True).click()
    page.get_by_text("Only significant").first.click()
    page.wait_for_url("**hide=true**")
    page.wait_for_url(lambda url: "value=Significance" in url)
    second = Visitor(browser, address, cache)
    second.visit(page.url.removeprefix(address))
    second.chart("mosaic")
    playwright.expect(second.page.locator(".st-key-mosaic .cbtitle")).to_have_text("q")
    playwright.expect(second.page.locator(".st-key-hide input")).to_be_checked()
    second.leave()


def test_a_figure_is_saved_as_picture_drawing_and_table(visitor: Visitor, tmp_path: Path) -> None:
    """All three from a menu that stays; a picture says of what it is, in the page's own font."""
    page = visitor.visit(f"/location?study={label(visitor.cache, 'baseline location')}")
    visitor.chart("mosaic")
    page.locator(".st-key-mosaic-save button").first.click()
    for button, start in (("PNG", b"\x89PNG"), ("SVG", b"<svg"), ("CSV", b"study,layer,depth")):
        with page.expect_download() as download:
            page.get_by_role("button", name=button, exact=True).click()
        target = tmp_path / download.value.suggested_filename
        download.value.save_as(target)
        assert target.name == f"location-baseline-location.{button.lower()}"
        assert target.read_bytes().startswith(start)
    drawing = (tmp_path / "location-baseline-location.svg").read_text()
    assert re.search("@font-face {[^}]*Source Sans[^}]*url[(]data:[^)]{20000}", drawing)
    words = " ".join(re.findall("<text[^>]*>([^<]*)</text>", drawing))
    assert "baseline location · resnet20 · 5×5 · 700 images" in words
    assert "Importance maps of 19 layers: each row is an output channel, each column an input channel" in words
    width, height = (float(re.search(f'{side}="([0-9.]+)"', drawing)[1]) for side in ("width", "height"))
    png = (tmp_path / "location-baseline-location.png").read_bytes()
    assert [int.from_bytes(png[at : at + 4], "big") for at in (16, 20)] == pytest.approx([2 * width, 2 * height], abs=2)


def test_a_click_on_a_cell_opens_the_kernel_and_the_images_it_was_needed_for(
    visitor: Visitor, browser: Any, address: str
) -> None:
    page = visitor.visit(f"/location?study={label(visitor.cache, 'baseline location')}")
    measured = table(visitor.cache, "baseline location")
    worst = measured.loc[measured["drop"].idxmax()]
    x, y = visitor.place_of(worst["layer"], worst["out_channel"], worst["in_channel"])
    page.mouse.move(x, y - 2)
    page.mouse.move(x, y)
    page.locator(".st-key-mosaic .hoverlayer .hovertext").wait_for()
    page.mouse.click(x, y)
    page.get_by_text(points(worst["drop"]), exact=True).first.wait_for()
    page.wait_for_url(f"**kernel={worst['layer']}**")
    page.get_by_text("Images whose prediction changed").wait_for()
    page.locator(".st-key-changed-images img").first.wait_for()
    assert 0 < page.locator(".st-key-changed-images img").count() <= 24
    second = Visitor(browser, address, visitor.cache)
    second.visit(page.url.removeprefix(address))
    second.page.get_by_text(points(worst["drop"]), exact=True).first.wait_for()
    second.page.locator(".st-key-changed-images img").first.wait_for()
    second.leave()


def test_a_running_study_sharpens_and_the_reader_s_zoom_and_kernel_stay(visitor: Visitor) -> None:
    # As in a slow browser: until the figure is drawn, its container has classes of a script that still runs.
    visitor.page.add_init_script(
        """new MutationObserver((_, observer) => {
            const box = document.querySelector(".st-key-mosaic");
            if (box?.querySelector('[data-val="reset"]')) observer.disconnect();
            else if (box && !box.classList.contains("still-running")) box.classList.add("still-running");
        }).observe(document, { attributes: true, childList: true, subtree: true });"""
    )
    page = visitor.visit(f"/location?study={label(visitor.cache, 'begun location')}&kernel=layer1.0.conv1:0:0")
    page.get_by_text("on 250 images").wait_for()
    box, whole = visitor.chart("mosaic").bounding_box(), visitor.zoom()
    page.mouse.move(box["x"] + 40, box["y"] + 90)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 360, steps=4)
    page.mouse.up()
    page.wait_for_function(
        """whole => JSON.stringify(document.querySelector('.st-key-mosaic .js-plotly-plot')._fullLayout.xaxis.range)
            !== JSON.stringify(whole[0])""",
        arg=whole,
    )
    zoomed = visitor.zoom()
    across, down = (abs(end - begin) for begin, end in zoomed)
    shown = page.locator(".st-key-mosaic .nsewdrag").first.bounding_box()
    assert shown["width"] / across == pytest.approx(shown["height"] / down, rel=0.02), "cells are squares"
    named = page.locator(".st-key-mosaic .weanalysis-names span").all_inner_texts()
    assert named and all(name.startswith(("conv1", "layer")) for name in named), "whose own name is out of sight"
    write_study(
        visitor.cache / "results.sqlite",
        "location",
        location_plan(seed=4),
        "begun location",
        num_images=1000,
        num_shards=2,
        state="running",
    )
    page.get_by_text("on 500 images").wait_for()
    visitor.chart("mosaic")
    page.wait_for_function(
        """() => document.querySelector('.st-key-mosaic .js-plotly-plot')._fullData[1].hovertext
            .some(words => words.includes('of 500 images'))"""
    )
    page.wait_for_function(
        """zoomed => {
            const axes = document.querySelector('.st-key-mosaic .js-plotly-plot')._fullLayout;
            return JSON.stringify([axes.xaxis.range, axes.yaxis.range]) === JSON.stringify(zoomed);
        }""",
        arg=zoomed,
    )
    page.wait_for_url(lambda url: "kernel=layer1.0.conv1" in url)
    assert page.locator(".st-key-kernel-layer").get_by_text("layer1.0.conv1").is_visible() or (
        page.locator(".st-key-kernel-layer input").input_value() == "layer1.0.conv1"
    )
    # A browser that is busy takes two clicks that lie far apart for two single ones, as it does with a reader's.
    for _ in range(20):
        place = visitor.chart("mosaic").bounding_box()
        page.mouse.dblclick(place["x"] + 150, place["y"] + 150)
        page.wait_for_timeout(1000)
        if visitor.zoom()[0] == whole[0]:
            break
    assert visitor.zoom()[0] == whole[0]


def test_a_click_on_a_strip_opens_the_channel(visitor: Visitor) -> None:
    page = visitor.visit("/channels")
    place = page.locator(".st-key-strips")
    place.wait_for()
    visitor.chart("strips")
    last = page.evaluate(
        """() => document.querySelector('.st-key-strips .js-plotly-plot')._fullData[1].customdata
            .find(c => c[0] === 'layer2.0.conv1' && c[1] === 5)[2]"""
    )
    page.mouse.click(*visitor.place_of("layer2.0.conv1", 5, last, key="strips"))
    page.get_by_text("Images whose prediction changed").first.wait_for()
    page.wait_for_url(lambda url: "unit=layer2.0.conv1" in url)
    visitor.chart("intervals")
    page.get_by_text("The filters of layer2.0.conv1").wait_for()


def test_two_networks_are_compared(visitor: Visitor) -> None:
    cache = visitor.cache
    page = visitor.visit(f"/compare?first={label(cache, 'baseline location')}&second={label(cache, 'lwe location')}")
    visitor.chart("mosaic-difference")
    labels_fit(visitor, "distributions", "agreement")
    page.get_by_text("Difference (points)").wait_for()
    page.get_by_text("Only significant").first.click()
    page.get_by_text("the others are grey").wait_for()
    page.set_viewport_size({"width": 1440, "height": 3000})
    page.mouse.click(*visitor.place_of("layer2.0.conv1", 16, 8, key="mosaic-2"))
    page.get_by_text("Images whose prediction changed").first.wait_for()
    page.wait_for_url(lambda url: "kernel=layer2.0.conv1" in url)
    page.get_by_text("of 465 differences have q").wait_for()


def test_labels_of_curves_fit_their_margins(visitor: Visitor) -> None:
    visitor.visit("/magnitude")
    labels_fit(visitor, "curve")


def test_curves_of_runs_are_smoothed_and_grouped(visitor: Visitor) -> None:
    page = visitor.visit("/runs")
    visitor.chart("curves")
    page.get_by_text("Mean over seeds", exact=True).click()
    page.locator(".st-key-curves .legendtext", has_text="LWE (mean of 3)").wait_for()


@pytest.mark.slow
def test_a_job_is_started_watched_cancelled_and_resumed(visitor: Visitor, browser: Any, address: str) -> None:
    from weanalysis.models import build, save_checkpoint

    architecture = {"source": "builtin", "name": "resnet20", "num_classes": 10, "options": {}}
    checkpoint = visitor.cache / "random.safetensors"
    save_checkpoint(checkpoint, build(architecture), architecture, {})
    page = visitor.visit("/jobs")
    page.get_by_text("More options").click()
    form = page.locator(".st-key-form-ablate")
    for field, value in (("Model", str(checkpoint)), ("Grid", "3x3"), ("Shard size", "10"), ("Jobs", "1")):
        form.get_by_label(field, exact=True).fill(value)
        page.keyboard.press("Enter")
    form.get_by_text("--grid 3x3 --jobs 1 --shard-size 10").wait_for()
    page.get_by_role("button", name="Start", exact=True).click()
    job = page.locator(".st-key-job-1")
    job.get_by_text("running", exact=True).wait_for()
    page.reload()
    job.get_by_text("measurements", exact=False).first.wait_for(timeout=300_000)
    second = Visitor(browser, address, visitor.cache)
    theirs = second.visit("/jobs").locator(".st-key-job-1")
    theirs.get_by_role("button", name="Cancel").click()
    # A browser that closes at once takes with it what it has not sent yet.
    theirs.get_by_text(re.compile("stopping after the step in hand|cancelled")).first.wait_for()
    second.leave()
    job.get_by_text("cancelled", exact=True).wait_for(timeout=300_000)
    job.get_by_role("button", name="Resume").click()
    again = page.locator(".st-key-job-2")
    again.get_by_text("running", exact=True).wait_for()
    again.get_by_role("button", name="Cancel").click()
    again.get_by_text("cancelled", exact=True).wait_for(timeout=300_000)


@pytest.fixture
def framing(address: str) -> Iterator[str]:
    """Another page of this machine, the same site to a browser, with the dashboard and a page of its own in frames."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            frames = f'<iframe id="ours" src="{address}/jobs"></iframe><iframe id="theirs" src="/inner"></iframe>'
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<h1>an inner page</h1>" if self.path == "/inner" else frames.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def test_a_page_that_frames_the_dashboard_shows_nothing_of_it(browser: Any, address: str, framing: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(address + "/jobs")  # a reader who has the cookie
    page.get_by_role("button", name="Start", exact=True).wait_for()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(framing)
    page.frame_locator("#theirs").get_by_text("an inner page").wait_for()
    page.wait_for_function("() => document.readyState === 'complete'")
    frame = page.locator("#ours").element_handle().content_frame()
    assert frame is None or frame.url.startswith("chrome-error:") or not frame.locator("#root").count()
    assert page.frame_locator("#ours").get_by_role("button").count() == 0
    words = ("frame-ancestors", "X-Frame-Options")
    end = time.monotonic() + PATIENCE_MS / 1000
    while not any(word in line for line in refused for word in words):
        assert time.monotonic() < end, refused
        page.wait_for_timeout(100)  # the browser's messages come meanwhile
    context.close()


def test_another_page_s_script_opens_no_session(browser: Any, address: str, framing: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("h1")
    opens = """address => new Promise(tell => {
        const socket = new WebSocket(address.replace("http", "ws") + "/_stcore/stream");
        socket.onopen = () => tell(true);
        socket.onerror = () => tell(false);
    })"""
    assert page.evaluate(opens, address), "the dashboard's own page does"
    page.goto(framing)
    assert not page.evaluate(opens, address), "with the cookie, which the browser sends along"
    context.close()


def settle(page: Any) -> None:
    """Wait until no script runs, nothing is faded any more, and all pictures are there."""
    page.wait_for_function(
        """() => {
            if ([...document.images].some(picture => !picture.complete)) window.calm = performance.now();
            const busy = "[data-test-script-state=running], [data-testid=stSkeleton], [data-stale=true]";
            window.calm = document.querySelector(busy) ? performance.now() : window.calm ?? performance.now();
            return performance.now() - window.calm > 250;
        }""",
        polling=50,
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_is_read_in_either_theme_and_by_its_headings(
    browser: Any, address: str, cache: Path, theme: str
) -> None:
    """Colours as the browser computes them: 4.5 : 1 for text, 3 : 1 for large text; one h1, and no level left out."""
    from weanalysis.figures import THEMES

    visitor = Visitor(browser, address, cache, color_scheme=theme)
    page = visitor.visit("/magnitude")  # a page opened by its address has the frame
    links = page.locator("[data-testid=stSidebarNavLink]")
    links.nth(10).wait_for()
    faults: dict[str, Any] = {}
    for place, title in enumerate(links.all_inner_texts()):
        name = title.splitlines()[-1]
        links.nth(place).click()
        page.get_by_role("heading", level=1, name=name).wait_for()
        settle(page)
        if pale := page.evaluate(PALE_TEXT):
            faults[name] = pale
        levels = page.evaluate(HEADINGS)
        if levels[0] != 1 or levels.count(1) > 1 or any(b > a + 1 for a, b in pairwise(levels)):
            faults[f"{name}, headings"] = levels
        if name == "Location maps":
            ground = "() => getComputedStyle(document.querySelector('.st-key-mosaic .main-svg')).backgroundColor"
            assert page.evaluate(ground) == "rgb({}, {}, {})".format(*bytes.fromhex(THEMES[theme].page[1:]))
    assert not faults
    page.keyboard.press("Shift+Tab")  # from the link that was clicked last
    style, width, where = page.evaluate(
        """() => {
            const focused = document.activeElement, style = getComputedStyle(focused);
            return [style.outlineStyle, parseFloat(style.outlineWidth), focused.dataset.testid];
        }"""
    )
    assert (style, where) == ("solid", "stSidebarNavLink") and width >= 2
    visitor.leave()
