"""The report: one page that needs nothing else, says what the intervals allow, and shows any name as a name."""

from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import run
from made_studies import (
    finished,
    location_plan,
    magnitude_plan,
    multiplier_plan,
    resnet20_layers,
    write_multipliers,
    write_run,
    write_runs,
    write_study,
)

from weanalysis import figures
from weanalysis.cache import Cache
from weanalysis.errors import StoreError, StudyError
from weanalysis.report import write_report
from weanalysis.report.entry import Written
from weanalysis.results import Store
from weanalysis.results.findings import find
from weanalysis.results.statistics import adjust_holm, mcnemar_exact, selected_intervals

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
NASTY = "<img src=x onerror=alert(1)>\"'&<b>{{ 7*7 }}</script>"
LAYERS = [name for name, _, _ in resnet20_layers()]


class Words(HTMLParser):
    """The text of a page outside of scripts and styles, its elements, and what they point to."""

    def __init__(self, page: str):
        super().__init__()
        self.text, self.tags, self.targets, self._hidden = "", [], [], False
        self.feed(page)
        self.text = " ".join(self.text.replace("\u00a0", " ").split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._hidden = tag in ("script", "style")
        self.targets += [value for name, value in attributes if name in ("src", "href", "action", "srcset", "poster")]

    def handle_endtag(self, tag):
        self._hidden = False

    def handle_data(self, data):
        if not self._hidden:
            self.text += f" {data}"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache").ready()


def read(written: Written) -> Words:
    return Words(written.path.read_text(encoding="utf-8"))


def report(cache: Cache, *named: str | int, **more) -> Written:
    return write_report(named, cache.root / "report.html", cache=cache, **more)


def filters() -> pd.DataFrame:
    plan = location_plan(grid=16)
    return plan[plan["in_channel"] == 0].assign(selection="filter", in_channel=None)


def layers(loses: float = 0.2) -> pd.DataFrame:
    return location_plan(grid=1).assign(selection="layer", out_channel=None, in_channel=None, loses=loses, gains=0.0)


PLANS = {
    "location": lambda: location_plan(grid=3),
    "magnitude": lambda: magnitude_plan(repeats=2),
    "magnitude by layer": lambda: magnitude_plan(LAYERS[:3]),
    "multiplier": lambda: multiplier_plan(LAYERS[:4]),
    "channel": filters,
    "layer": layers,
}


@pytest.mark.parametrize("kind", PLANS)
def test_every_kind_of_study_has_its_chapter(kind: str, cache: Cache) -> None:
    number = write_study(
        cache.results,
        kind.split()[0],
        PLANS[kind](),
        "mine",
        num_images=500,
        weights_hash="abcd1234",
        versions={"torch": "9.9"},
        options={"scope": "layer"} if kind == "magnitude by layer" else {},
    )
    written = report(cache, "mine")
    page, (numbers,) = read(written), written.studies
    with Store.open(cache.results) as store:
        table = store.table(number)
    worse = int(((table["q_value"] <= 0.05) & (table["drop"] > 0)).sum())
    assert (numbers["num_ablations"], numbers["num_worse"]) == (len(table), worse)
    assert f"of {len(table):,} ablations" in page.text
    top = table.loc[table["drop"].idxmax()]
    # Ten rows are shown for their D, of all: that is counted with. What differs from 0 has a star.
    chosen = selected_intervals(table.nlargest(10, "drop", keep="first"), len(table)).loc[top.name]
    words = f"[{figures.points(chosen['selected_low'])}, {figures.points(chosen['selected_high'])}]"
    if worse <= 10:
        assert f"{top['drop']:+.2f} {words}" in page.text
        assert f"10 of {len(table):,}, with intervals adjusted for that choice" in page.text
    assert (f"{top['q_value']:.2g}*" in page.text) == (top["q_value"] <= 0.05)
    first = selected_intervals(table.loc[[top.name]], len(table)).iloc[0]
    words = figures.interval(first["selected_low"], first["selected_high"])
    assert f"{figures.points(top['drop'])} points, {words}" in page.text
    for fact in ("abcd1234", "f0f0", "weanalysis ablate --study", "torch 9.9", "seed 0", "top-1", "digits"):
        assert fact in page.text, fact
    assert "this one network" in page.text and "What this does not say" in page.text
    assert page.tags.count("figure") >= 1 and page.tags.count("h2") == 1
    assert (kind == "magnitude by layer") == ("zeroes weights of one layer" in page.text)


def test_a_study_of_an_unknown_kind_is_shown_by_what_all_have(cache: Cache) -> None:
    write_study(cache.results, "novel", location_plan(grid=1), "mine")
    assert report(cache, "mine").studies[0]["num_ablations"] == 19


# What the intervals allow -------------------------------------------------------------------------------------------


def with_counts(lost: list[int], gained: list[int], num_images: int) -> pd.DataFrame:
    """A finished table with these counts."""
    plan = pd.DataFrame({"selection": "layer", "loses": 0.0, "gains": 0.0}, index=range(len(lost)))
    plan["layer"] = [f"layer{place}" for place in range(len(lost))]
    table = finished(plan, num_images)
    from weanalysis.results.statistics import drop_table

    counts = pd.DataFrame({"lost": lost, "gained": gained, "num_images": num_images})
    counted = drop_table(counts)
    for column in ("drop", "drop_low", "drop_high", "p_value", "q_value"):
        table[column] = counted[column]
    table["num_flipped"] = np.add(lost, gained)
    return table


@pytest.mark.parametrize("num_images", [100, 1000])
def test_the_smallest_finding_is_found_and_one_image_fewer_is_not(num_images: int) -> None:
    """Put beside real findings: with that many images lost a row is found, with one fewer it is not."""
    first = [40, 40, 0, 0, 0, 0, 0, 0]
    findings = find(with_counts(first, [0] * 8, num_images))
    fewest = round(findings.smallest_finding / 100 * num_images)
    assert findings.num_worse == 2
    for lost, expected in ((fewest, 3), (fewest - 1, 2)):
        assert find(with_counts([40, 40, lost, *[0] * 5], [0] * 8, num_images)).num_worse == expected


def test_findings_count_either_direction_and_silence() -> None:
    findings = find(with_counts([30, 0, 5, 0], [0, 30, 5, 0], 500))
    assert (findings.num_worse, findings.num_better, findings.num_silent, findings.num_found) == (1, 1, 1, 2)
    z = 1.959964
    assert findings.silent_reach == pytest.approx(100 * z**2 / (500 + z**2), rel=1e-5)


def test_five_images_can_show_nothing(cache: Cache) -> None:
    assert float(mcnemar_exact(5, 0)) > 0.05
    write_study(cache.results, "layer", layers(1.0), "few", num_images=5)
    written = report(cache, "few")
    assert written.studies[0]["smallest_finding"] is None
    assert "no D could have been found at all" in read(written).text


def test_nothing_found_is_not_called_nothing_there(cache: Cache) -> None:
    write_study(cache.results, "layer", layers(0.0), "silent", num_images=250)
    page = read(report(cache, "silent"))
    assert "None of 19 ablations differs from 0 after correction" in page.text
    assert "That does not mean that every D is 0" in page.text
    assert "19 ablations flip no image; the interval of D is still ±1.51 points" in page.text
    assert "improves the network by at most" in page.text and "the other half had none to confirm" in page.text


def test_an_all_wrong_network_loses_nothing(cache: Cache) -> None:
    """Nothing can be lost: D is 0 or below, and every sentence still holds."""
    write_study(cache.results, "layer", layers(0.3), "wrong", num_images=250, right=0.0)
    written = report(cache, "wrong")
    assert written.studies[0]["intact"] == 0 and written.studies[0]["num_worse"] == 0
    assert "The intact network has 0.00 % of 250 images right" in read(written).text


def test_a_stopping_rule_has_its_own_words_and_no_search_for_improvements(cache: Cache) -> None:
    write_study(
        cache.results,
        "location",
        location_plan(grid=2),
        "until",
        num_images=2000,
        stopping="until-ci 3",
        options={"until_ci": 3.0},
    )
    written = report(cache, "until")
    page = read(written)
    assert "settled (--until-ci 3)" in page.text and "anytime-valid" in page.text
    assert "detrimental" not in written.studies[0] and written.studies[0]["detectable"] is None
    assert "spread, noise off" not in page.text, "its places were not looked at on the same images"


@pytest.mark.parametrize(
    ("state", "words"),
    [("running", "still running"), ("stopped", "stopped before its end"), ("failed", "failed before its end")],
)
def test_a_study_that_is_not_whole_says_so_first(state: str, words: str, cache: Cache) -> None:
    write_study(cache.results, "location", location_plan(grid=2), "begun", num_images=1000, num_shards=1, state=state)
    page = read(report(cache, "begun"))
    assert words in page.text and "on 250 of 1,000 images (1 of 4 measurements)" in page.text
    assert page.text.index(words) < page.text.index("What was found")
    assert "promise too much" in page.text


def test_a_study_without_a_result_yet_is_a_page_without_figures(cache: Cache) -> None:
    write_study(cache.results, "layer", layers(), "empty", num_images=500, num_shards=0, state="running")
    written = report(cache, "empty")
    page = read(written)
    assert "Nothing has been measured yet" in page.text and "figure" not in page.tags
    assert written.studies[0]["intact"] is None and written.path.stat().st_size < 100_000, "plotly.js is not needed"


def test_a_screened_study_shows_both_intervals(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(cache.results, "location", location_plan(grid=1), "mine")
    assert "on these images" not in read(report(cache, "mine")).text
    whole = Store.table

    def screened(self, *given, **more):
        table = whole(self, *given, **more)
        return table.assign(evaluate="screened", screen_low=table["drop"] - 0.125, screen_high=table["drop"] + 0.125)

    monkeypatch.setattr(Store, "table", screened)
    written = report(cache, "mine")
    page = read(written)
    with Store.open(cache.results) as store:
        top = store.table(store.find("mine")).nlargest(1, "drop").iloc[0]
    bounds = f"[{figures.points(top['screen_low'])}, {figures.points(top['screen_high'])}]"
    assert "on these images" in page.text and bounds in page.text
    assert "two intervals, which must not be mixed" in page.text


def test_multipliers_are_drawn_and_d_high_is_set_against_d_low(cache: Cache) -> None:
    write_multipliers(cache.root, "abcd")
    number = write_study(cache.results, "multiplier", multiplier_plan(LAYERS), "mine", weights_hash="abcd")
    written = report(cache, "mine")
    with Store.open(cache.results) as store:
        contrast = store.compare(number, 0, 1)
    assert written.studies[0]["d_high_minus_d_low"] == pytest.approx(contrast.difference)
    page = read(written)
    assert page.tags.count("figure") == 3 and "the input channels of high multiplier are needed more" in page.text


def test_the_trend_over_percentiles_needs_an_interval_that_leaves_0_out(cache: Cache) -> None:
    flat = magnitude_plan().assign(loses=0.01, gains=0.01)
    write_study(cache.results, "magnitude", magnitude_plan(), "rising", num_images=2000)
    write_study(cache.results, "magnitude", flat, "flat", num_images=2000)
    rising = report(cache, "rising")
    assert rising.studies[0]["rank_correlation_with_percentile_interval"][0] > 0
    assert "D rises with the percentile b:" in read(rising).text
    level = read(report(cache, "flat")).text
    assert "Whether D rises or falls with the percentile b cannot be told" in level
    assert "D rises with the percentile b:" not in level


# Several studies, and runs -------------------------------------------------------------------------------------------


def test_two_studies_of_a_kind_are_compared_and_others_are_not(cache: Cache) -> None:
    numbers = [
        write_study(cache.results, "location", location_plan(grid=2, seed=seed), name, seed=seed, weights_hash=name)
        for name, seed in (("one", 1), ("two", 2))
    ]
    write_study(cache.results, "layer", layers(), "other")
    written = report(cache, "one", "two", "other")
    from weanalysis.comparison import compare_studies

    expected = compare_studies(*numbers, cache)
    (compared,) = written.comparisons
    assert compared["difference"] == pytest.approx(expected.difference)
    assert compared["num_more_in_second"] == int(
        ((expected.places["q_value"] <= 0.05) & (expected.places["difference"] > 0)).sum()
    )
    page = read(written)
    assert page.tags.count("h2") == 1 + 4 and "Compared: one (1) and two (2)" in page.text
    assert "This speaks of these two networks only" in page.text


def test_studies_that_cannot_be_paired_are_noted_with_the_reason(cache: Cache) -> None:
    write_study(cache.results, "location", location_plan(grid=1), "here")
    write_study(cache.results, "location", location_plan(grid=1), "there", data="imagefolder:elsewhere")
    written = report(cache, "here", "there")
    (note,) = written.notes
    assert written.comparisons == [] and "studies 1 and 2 are not compared" in note and "elsewhere" in note
    assert "Studies 1 and 2 are not compared" in read(written).text


def test_runs_are_told_with_their_seeds(cache: Cache) -> None:
    write_runs(cache.root)
    written = report(cache, *(f"{name}-{seed}" for name in ("baseline", "lwe") for seed in range(3)))
    page = read(written)
    one, two = written.runs["groups"]
    assert (one["num_runs"], two["num_runs"]) == (3, 2), "a run that is not finished does not count"
    (difference,) = written.runs["differences"]
    assert difference["difference"] == pytest.approx(two["top1"] - one["top1"])
    assert difference["difference_low"] < difference["difference"] < difference["difference_high"]
    assert "Not finished when the report was made: lwe-2" in page.text
    assert "excitation none none none lwe lwe lwe" in page.text
    assert page.tags.count("figure") == 2


def test_pairs_of_recipes_are_corrected_for_their_number(cache: Cache) -> None:
    """Seven recipes make 21 tests; of recipes that do not differ, some pair seems to now and then."""
    names = [
        write_run(cache.root, f"{recipe}-{seed}", seed=seed + 3 * place, reduction=place).name
        for place, recipe in enumerate("abcdefg")
        for seed in range(3)
    ]
    written = report(cache, *names)
    text, pairs = read(written).text, written.runs["differences"]
    assert len(pairs) == 21 and "21 pairs of groups are compared below" in text and "Holm" in text
    expected = adjust_holm([one["p_value"] for one in pairs])
    assert [one["p_value_holm"] for one in pairs] == pytest.approx(list(expected))
    assert min(one["p_value"] for one in pairs) < 0.05 < min(expected), "a pair that would have been called better"
    assert "” is better. " not in text and text.count("which is better cannot be told") == 21
    better = [write_run(cache.root, f"h-{seed}", seed=40 + seed, lift=30, reduction=9).name for seed in range(3)]
    (apart,) = report(cache, *names[:3], *better).runs["differences"]
    assert apart["p_value_holm"] == pytest.approx(apart["p_value"]) and apart["p_value"] < 0.05, "one pair is one test"
    assert "“reduction 9” is better" in read(report(cache, *names[:3], *better)).text


def test_comparisons_of_studies_are_corrected_for_their_number(cache: Cache) -> None:
    for seed in range(3):
        plan = location_plan(grid=2, seed=seed)
        write_study(cache.results, "location", plan, f"s{seed}", seed=seed, weights_hash=str(seed))
    written = report(cache, "s0", "s1", "s2")
    p_values = [one["p_value"] for one in written.comparisons]
    assert [one["p_value_holm"] for one in written.comparisons] == pytest.approx(list(adjust_holm(p_values)))
    text = read(written).text
    assert text.count("after Holm's correction for the 3 comparisons of this page") == 3
    sure = sum(one["p_value_holm"] <= 0.05 for one in written.comparisons)
    assert text.count("network needs these weights more") == sure


def test_two_single_runs_have_no_interval_and_the_page_says_so(cache: Cache) -> None:
    folder = write_run(cache.root, "a")
    write_run(cache.root, "b", seed=1, lift=1.0, excitation="lwe")
    written = report(cache, str(folder), "b", "a")
    assert len(written.runs["runs"]) == 2, "named twice is meant once"
    assert written.runs["differences"] == []
    assert "takes two finished runs or more of either recipe" in read(written).text


def test_a_run_and_a_study_on_one_page(cache: Cache) -> None:
    write_run(cache.root, "mine", epochs=0, finished=False)
    write_study(cache.results, "layer", layers(), "mine")
    written = report(cache, "study:mine", "run:mine")
    assert written.studies[0]["name"] == "mine" and written.runs["runs"][0]["top1"] is None
    with pytest.raises(StoreError, match="2 runs and studies match 'mine'"):
        report(cache, "mine")


# One page, and nothing else -----------------------------------------------------------------------------------------


def nasty_cache(cache: Cache) -> Cache:
    """Fill a cache whose every name is made to break a page."""
    plan = location_plan(layers=[(f"{NASTY}.{place}", 4, 4) for place in range(6)], grid=2)
    settings = {
        "model": NASTY,
        "data": NASTY,
        "weights": NASTY,
        "command": NASTY,
        "layers": [NASTY],
        "skipped": [["a", NASTY]],
        "notes": [NASTY],
        "classes": [NASTY] * 10,
        "transform": {NASTY: NASTY},
        "architecture": {"name": NASTY},
        "options": {NASTY: NASTY},
        "versions": {NASTY: NASTY},
    }
    for seed in (1, 2):
        settings["weights_hash"] = NASTY * seed
        write_study(cache.results, "location", plan, f"{NASTY} {seed}", seed=seed, **settings)
    channel = filters().assign(layer=NASTY, selection=NASTY)
    write_study(cache.results, "channel", channel, f"{NASTY} channel", **settings)
    write_run(cache.root, "mine", excitation=NASTY)
    write_run(cache.root, "other", seed=1, model=NASTY)
    return cache


def test_every_name_is_shown_as_a_name(cache: Cache) -> None:
    written = report(nasty_cache(cache), 1, 2, 3, "run:mine", "run:other", title=NASTY)
    source = written.path.read_text(encoding="utf-8")
    page = Words(source)
    assert "img" not in page.tags and "b" not in page.tags
    assert page.text.count("{{ 7*7 }}") > 10 and "49</script>" not in source
    # One script has plotly.js, and each figure has its own.
    assert page.tags.count("script") == 1 + page.tags.count("figure") == source.count("</script>")


def test_the_page_points_nowhere_and_has_plotly_once(cache: Cache) -> None:
    for name in ("one", "two"):
        write_study(cache.results, "location", location_plan(grid=2), name, weights_hash=name)
    written = report(cache, "one", "two")
    source = written.path.read_text(encoding="utf-8")
    assert [target for target in Words(source).targets if not target.startswith(("#", "data:"))] == []
    assert source.count(figures.plotly_script()) == 1
    assert "default-src 'none'" in source
    drawn = source.replace(figures.plotly_script(), "").replace(" ", "")
    assert drawn.count('"showSendToCloud":false') == Words(source).tags.count("figure") > 3


def test_the_page_is_the_same_wherever_it_lies(cache: Cache, tmp_path: Path) -> None:
    write_study(cache.results, "layer", layers(), "mine")
    pages = [write_report([1], tmp_path / place / "report.html", cache=cache).path for place in ("here", "there")]
    one, two = (re.sub("made [^<]*", "", page.read_text(encoding="utf-8")) for page in pages)
    assert one == two


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="no chromium on the PATH")
def test_a_browser_shows_every_figure_from_a_file_and_asks_nobody(cache: Cache) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    written = report(nasty_cache(cache), 1, 2, 3, "run:mine", "run:other", title=NASTY)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 390, "height": 800})
        asked, said = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append("a dialog"))
        page.goto(written.path.as_uri())
        num_figures = page.locator("figure").count()
        page.wait_for_function(
            f"document.querySelectorAll('figure .main-svg').length >= 2 * {num_figures}", timeout=90_000
        )
        assert num_figures > 8
        assert page.locator("img[onerror]").count() == 0
        assert page.title() == NASTY
        buttons = page.locator(".modebar-btn").evaluate_all("all => all.map(one => one.dataset.title)")
        assert "Download plot as a PNG" in buttons
        assert not re.search("cloud|studio|share|edit", str(buttons), re.IGNORECASE)
        with page.expect_download() as saved:
            page.locator('.modebar-btn[data-title^="Download"]').first.evaluate("button => button.click()")
        assert Path(saved.value.path()).read_bytes().startswith(b"\x89PNG")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, "a phone scrolls in one direction"
        browser.close()
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert said == []


# Pictures ------------------------------------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.skipif(
    not (CHROMIUM and find_spec("kaleido")) and not os.environ.get("CI"), reason="chromium or kaleido is missing"
)
def test_figures_are_written_as_files(cache: Cache, tmp_path: Path) -> None:
    write_study(cache.results, "layer", layers(), f"{NASTY}/../mine")
    written = report(cache, 1, pictures=tmp_path / "pictures")
    assert sorted(path.name for path in written.figures) == [f"study-1-layers.{kind}" for kind in ("pdf", "png", "svg")]
    for path, begins in zip(sorted(written.figures), (b"%PDF", b"\x89PNG", b"<svg"), strict=True):
        content = path.read_bytes()
        assert content.startswith(begins) and len(content) > 5_000
    assert NASTY not in sorted(written.figures)[2].read_text(encoding="utf-8")


def test_without_kaleido_or_chromium_one_line_says_what_to_install(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from weanalysis.figures import files

    write_study(cache.results, "layer", layers(), "mine")
    words = [
        "report",
        "1",
        "-o",
        str(tmp_path / "out.html"),
        "--figures",
        str(tmp_path / "pictures"),
        "--cache",
        str(cache.root),
    ]
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    assert run(*words) == 1
    line = capsys.readouterr().err
    assert "pip install 'weanalysis[images]'" in line and line.count("\n") == 1
    assert not (tmp_path / "out.html").exists() and not (tmp_path / "pictures").exists()
    if not find_spec("kaleido"):
        return
    monkeypatch.undo()
    from choreographer.browsers.chromium import Chromium

    monkeypatch.setattr(Chromium, "find_browser", classmethod(lambda cls, **given: None))
    assert run(*words) == 1
    line = capsys.readouterr().err
    assert "apt-get install chromium" in line and line.count("\n") == 1
    assert not (tmp_path / "out.html").exists()


# The command ---------------------------------------------------------------------------------------------------------


def test_the_command_prints_where_the_page_is_and_its_numbers(cache: Cache, tmp_path: Path, capsys) -> None:
    write_study(cache.results, "layer", layers(), "mine")
    page = tmp_path / "deep" / "out.html"
    assert run("report", "mine", "-o", str(page), "--cache", str(cache.root), "--json", "--title", "Mine & yours") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["report"] == str(page) and printed["studies"][0]["num_worse"] == 19
    assert set(printed) == {"report", "studies", "comparisons", "runs", "figures", "notes"}
    assert "<title>Mine &amp; yours</title>" in page.read_text(encoding="utf-8")
    assert run("report", "mine", "-o", str(page), "--cache", str(cache.root)) == 0
    assert str(page) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nothing", "-o", "out.html"], "unknown run or study 'nothing'"),
        (["1", "-o", "out.pdf"], "must end in .html"),
        (["1", "-o", "out.html", "--metric", "top3"], "unknown metric 'top3'"),
        (["1", "-o", "out.html", "--figures", "pictures", "--formats", "gif"], "unknown picture format 'gif'"),
        (["1", "-o", "results.sqlite/out.html"], "cannot be written"),
        (["runs", "-o", "out.html"], "holds no training run"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    words: list[str], expected: str, cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_study(cache.results, "layer", layers(), "mine")
    cache.runs.mkdir()
    monkeypatch.chdir(cache.root)
    assert run("report", *words, "--cache", str(cache.root)) == 1
    line = capsys.readouterr().err
    assert expected in line and line.count("\n") == 1
    assert not list(cache.root.glob("*.html")) and not list(cache.root.rglob("*.part"))


def test_an_empty_list_and_another_metric(cache: Cache) -> None:
    with pytest.raises(StoreError, match="name at least one"):
        report(cache)
    write_study(cache.results, "layer", layers(), "mine")
    written = report(cache, 1, metric="top5")
    assert written.studies[0]["metric"] == "top5" and written.studies[0]["intact"] == 100
    with pytest.raises(StudyError, match="unknown metric"):
        report(cache, 1, metric="auc")
