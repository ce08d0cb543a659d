"""What a person does on each page of the dashboard, and by what is seen that the page has answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from playwright.sync_api import Page

from benchmarks.dashboard.store import KINDS

INTERACTION_SECONDS, CLICK_SECONDS = 1.0, 0.3
OTHER_LAYER = "layer2.3.conv1"

# JavaScript, without arguments, that is true or false.
TABLE = "() => document.querySelector('[data-testid=stDataFrame] canvas') !== null"
CARD = "() => document.querySelector('[data-testid=stMain] [data-testid=stMetricValue]') !== null"
JOBS = "() => document.querySelector('[data-testid=stMain] h1')?.textContent.trim() === 'Jobs'"


def drawn(key: str) -> str:
    """JavaScript that is true once the figure under a key is drawn."""
    return f"() => document.querySelector('.st-key-{key} .js-plotly-plot .main-svg .subplot') !== null"


def drawn_of(key: str, what: str) -> str:
    """JavaScript that is true once the figure under a key is one of `what`: pages say so to Plotly."""
    plot = f"document.querySelector('.st-key-{key} .js-plotly-plot')"
    return f"() => Boolean({plot}?._fullLayout?.uirevision?.includes('{what}'))"


def says(test: str) -> str:
    """JavaScript that is true once a test of a paragraph or a heading `p` of the page is."""
    return f"() => [...document.querySelectorAll('[data-testid=stMain] :is(p, h2, h3)')].some(p => {test})"


@dataclass(frozen=True)
class Deed:
    """What a person does on a page: what comes before it, the last click or key, and JavaScript true once answered."""

    name: str
    prepare: Callable[[Page], None]
    act: Callable[[Page], None]
    answered: str
    limit: float = INTERACTION_SECONDS


@dataclass(frozen=True)
class Visit:
    """A page: its title and path, what its address says in a round, when it is open, and what a person does there.

    `opened` is JavaScript that is true once the figure is drawn that the page is for. Where the page shows another
    study without an address, and so another figure, that is `opened_from_menu`.
    """

    name: str
    path: str
    address: Callable[[int], dict[str, str]]
    opened: str
    deeds: tuple[Deed, ...]
    opened_from_menu: str = ""


# ---- what comes before a deed, and how it is done


def choose(key: str, text: str) -> Callable[[Page], None]:
    """Type into a select box, so that Enter takes the first that fits."""

    def prepare(page: Page) -> None:
        box = page.locator(f".st-key-{key} input").first
        box.click()
        box.fill(text)

    return prepare


def search(text: str, answered: str) -> Callable[[Page], None]:
    """Write into the search, which looks while one types, and wait for what it says then."""

    def prepare(page: Page) -> None:
        page.locator(".st-key-search input").fill(text)
        page.wait_for_function(answered)

    return prepare


def point_at(text: str) -> Callable[[Page], None]:
    """Bring a word into view, and the pointer onto it."""

    def prepare(page: Page) -> None:
        word = page.get_by_test_id("stMain").get_by_text(text, exact=True).first
        word.scroll_into_view_if_needed()
        word.hover()

    return prepare


def point_at_first(selector: str) -> Callable[[Page], None]:
    """Bring the first element that a selector fits into view, and the pointer onto it."""

    def prepare(page: Page) -> None:
        element = page.locator(selector).first
        element.scroll_into_view_if_needed()
        element.hover()

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


def press(key: str) -> Callable[[Page], None]:
    return lambda page: page.keyboard.press(key)


def from_menu(title: str, answered: str) -> Deed:
    """Open a page from the menu of the tab."""
    link = "[data-testid=stSidebarNavLink]"
    return Deed(title, lambda page: page.locator(link, has_text=title).hover(), click, answered)


# ---- the pages


def link(turn: int, kind: str, place: int = 0) -> str:
    """Return what addresses call the study of a kind that nothing but round `turn` opens; some kinds have several."""
    return str(1 + len(KINDS) * turn + KINDS.index(kind) + place)


# How many cells of a mosaic have a colour.
COLOURED = """
    document.querySelector('.st-key-mosaic-difference .js-plotly-plot')
        ._fullData[0].z.reduce((sum, row) => sum + Array.from(row).filter(Number.isFinite).length, 0)
"""


def point_at_hide(page: Page) -> None:
    page.evaluate(f"() => {{ window.colouredBefore = {COLOURED}; }}")
    point_at("Only significant differences (q ≤ 0.05)")(page)


ALL_STUDIES = says("/^100 of 100 studies/.test(p.textContent)")
THREE_STUDIES = says("/^3 of 100 studies/.test(p.textContent)")

VISITS = (
    Visit(
        "Overview",
        "/",
        lambda turn: {},
        TABLE,
        (
            Deed(
                "search",
                search("resnet110 made-magnitude-2", THREE_STUDIES),
                press("6"),
                says("/^1 of 100 studies/.test(p.textContent)"),
            ),
            Deed(
                "filter",
                lambda page: (search("", ALL_STUDIES)(page), point_at("magnitude")(page)),
                click,
                says("/^30 of 100 studies/.test(p.textContent)"),
            ),
        ),
    ),
    Visit(
        "Location maps",
        "/location",
        lambda turn: {"study": link(turn, "location")},
        drawn("mosaic"),
        (
            Deed(
                "colour shows q",
                point_at("Significance"),
                click,
                "() => document.querySelector('.st-key-mosaic .cbtitle')?.textContent.trim() === 'q'",
            ),
            Deed("click on a cell", point_at_kernel, click, drawn("weights"), CLICK_SECONDS),
        ),
    ),
    Visit(
        "Channels and layers",
        "/channels",
        lambda turn: {"study": link(turn, "channel")},
        drawn("strips"),
        (
            Deed(
                "another side", point_at("Input channels"), click, says("p.textContent.includes('One input channel')")
            ),
            Deed("order by D", point_at("D"), click, drawn_of("strips", "drop")),
            Deed("a layer's channels", choose("unit-layer", OTHER_LAYER), press("Enter"), drawn("intervals")),
        ),
    ),
    Visit(
        "Images",
        "/images",
        lambda turn: {"study": link(turn, "location", 3)},
        drawn("images"),
        (
            Deed("one image", point_at_first("[class*=st-key-link-image-] button"), click, drawn("image-layers")),
            Deed(
                "without one kernel",
                choose("without", "layer"),
                press("Enter"),
                f"() => ({drawn('confusion')})() && !({drawn_of('confusion', '-all ')})()",
            ),
        ),
    ),
    Visit(
        "Saliency",
        "/saliency",
        lambda turn: {"study": link(turn, "location", 4)},
        drawn("criterion-map"),
        (
            Deed(
                "another criterion",
                choose("criterion", "fisher"),
                press("Enter"),
                f"() => ({drawn_of('criterion-map', 'fisher')})() && ({drawn_of('scatter', 'fisher')})()",
            ),
            Deed(
                "against D",
                lambda page: page.locator(".st-key-against").get_by_text("D", exact=True).hover(),
                click,
                says("p.textContent.includes('fisher against D')"),
            ),
        ),
    ),
    Visit(
        "Magnitude",
        "/magnitude",
        lambda turn: {"study": link(turn, "magnitude")},
        drawn("curve"),
        (Deed("another layer", choose("layer", OTHER_LAYER), press("Enter"), drawn_of("curve", OTHER_LAYER)),),
    ),
    Visit(
        "Pruning",
        "/pruning",
        lambda turn: {},
        drawn("pruning"),
        (
            Deed(
                "the loss",
                point_at("loss"),
                click,
                "() => document.querySelector('.st-key-pruning .ytitle')?.textContent.startsWith('loss')",
            ),
        ),
    ),
    Visit(
        "Compare",
        "/compare",
        lambda turn: {"first": link(turn, "location", 1), "second": link(turn, "location", 2)},
        drawn("mosaic-1"),
        (
            Deed(
                "a kernel's images",
                choose("kernel-layer", OTHER_LAYER),
                press("Enter"),
                says("p.textContent.includes('Images whose prediction changed')"),
            ),
            Deed("hide what is no difference", point_at_hide, click, f"() => {COLOURED} !== window.colouredBefore"),
        ),
        drawn("distributions"),  # the newest two studies that can be compared are of multipliers, and have no maps
    ),
    Visit(
        "Baseline against LWE",
        "/ways",
        lambda turn: {},
        CARD,
        (),
    ),
    Visit(
        "Training runs",
        "/runs",
        lambda turn: {},
        drawn("curves"),
        (Deed("another curve", choose("metric", "loss"), press("Enter"), drawn_of("curves", "runs-loss")),),
    ),
    Visit(
        "Multipliers",
        "/multipliers",
        lambda turn: {"study": link(turn, "multiplier")},
        drawn("rank-curve"),
        (Deed("another layer", choose("layer", OTHER_LAYER), press("Enter"), drawn_of("map", OTHER_LAYER)),),
    ),
    Visit(
        "Excitation",
        "/excitation",
        lambda turn: {"study": link(turn, "magnitude", 1)},
        drawn("layer-weights"),
        (Deed("another layer", choose("layer", OTHER_LAYER), press("Enter"), drawn_of("layer-weights", OTHER_LAYER)),),
    ),
)
