"""Studies with nothing in them: one shard, no flip, a network that is always wrong, images that few have in common."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run
from made_studies import only
from PIL import Image
from torch import nn

from weanalysis.ablation import ablate
from weanalysis.cache import Cache
from weanalysis.comparison import compare
from weanalysis.data import load_data
from weanalysis.errors import StudyError
from weanalysis.models import build, save_checkpoint
from weanalysis.pruning import prune
from weanalysis.report import write_report
from weanalysis.results import Store, find_improvements
from weanalysis.results.statistics import agreement_table, plan_images
from weanalysis.saliency import saliency_maps, scored_study

NUM_IMAGES = 24


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache").ready()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in "abcd":
        (root / "test" / name).mkdir(parents=True)
        for number in range(NUM_IMAGES // 4):
            pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(root / "test" / name / f"{number}.png")
    return root


class Small(nn.Module):
    """A convolution and a head; `bias` makes one class win however the kernels are."""

    def __init__(self, seed: int, bias: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 4)
        with torch.no_grad():
            self.head.bias -= self(torch.randn(100, 3, 8, 8)).mean(0)
            self.head.bias[0] += bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def noise(target=lambda index: index % 4) -> list[tuple[torch.Tensor, int]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(3, 8, 8, generator=generator), target(index)) for index in range(NUM_IMAGES)]


def always_wrong(net: nn.Module) -> list[tuple[torch.Tensor, int]]:
    """Images whose label is another class than the network's answer."""
    with torch.no_grad():
        answers = net.eval()(torch.stack([image for image, _ in noise()])).argmax(1)
    return noise(lambda index: int(answers[index] + 1) % 4)


def conclude(cache: Cache, first: str, second: str, capsys: pytest.CaptureFixture) -> dict:
    """Draw every conclusion about two studies that there is a command for, and return what `compare --json` says."""
    capsys.readouterr()
    assert run("compare", first, second, "--cache", str(cache.root), "--json", "-q") == 0
    printed = json.loads(capsys.readouterr().out)
    assert run("compare", first, second, "--cache", str(cache.root)) == 0
    assert "nan" not in capsys.readouterr().out
    page = write_report([first, second], cache.root / "report.html", cache=cache)
    text = page.path.read_text(encoding="utf-8").rpartition("</script>")[2]
    assert ">nan" not in text and " nan" not in text and len(page.comparisons) == 1
    assert run("export", first, "-o", str(cache.root / "table.csv"), "--cache", str(cache.root)) == 0
    return printed


def test_where_nothing_flips_every_conclusion_is_that_nothing_was_seen(cache: Cache, capsys) -> None:
    tables = [
        ablate(Small(seed, bias=1e4), noise(), "location", grid="all", cache=cache, name=f"silent{seed}")
        for seed in (0, 1)
    ]
    for table in tables:
        assert (table["num_flipped"] == 0).all() and (table["drop"] == 0).all() and (table["q_value"] == 1).all()
        z2 = 1.959964**2
        assert np.allclose(table["drop_high"], 100 * z2 / (NUM_IMAGES + z2), atol=1e-3), "no flip is no certainty"
        assert np.allclose(table["drop_low"], -table["drop_high"])
        plan = plan_images(table, 1.0)
        assert plan.num_undecided == len(table) and plan.median > NUM_IMAGES
    printed = conclude(cache, "silent0", "silent1", capsys)
    assert printed["difference"] == 0 and printed["p_value"] == 1
    assert printed["difference_low"] < 0 < printed["difference_high"]
    comparison = compare("silent0", "silent1", cache=cache)
    assert np.isnan(comparison.agreement.value) and comparison.images.empty
    assert (comparison.places["difference_low"] < 0).all() and (comparison.places["difference_high"] > 0).all()
    with Store.open(cache.results) as store:
        improvements = find_improvements(store, store.find("silent0"))
        assert improvements.num_confirmed == len(improvements.table) == 0 and improvements.largest_missed > 0
        measured = saliency_maps(Small(0, bias=1e4), noise(), "l1,taylor", cache=cache)
        scored = scored_study(measured, Small(0, bias=1e4), store, store.find("silent0"))
    agreement = agreement_table(scored, ["l1", "taylor"])
    said = agreement[["spearman", "kendall", "top_overlap"]]
    assert said.isna().all(axis=None), "no order, so no agreement: NaN, not 0"


def test_a_network_that_is_always_wrong_has_nothing_to_lose(cache: Cache, capsys) -> None:
    nets = [Small(seed) for seed in (0, 1)]
    labelled = always_wrong(nets[0])
    for number, net in enumerate(nets):
        ablate(net, labelled, "location", grid="all", cache=cache, name=f"net{number}")
    with Store.open(cache.results) as store:
        study = store.find("net0")
        table = store.table(study)
        assert (table["intact"] == 0).all() and (table["drop"] <= 0).all() and (table["drop"] < 0).any()
        assert (table["drop_low"] >= -100).all() and np.allclose(table["ablated"], -table["drop"])
        improvements = find_improvements(store, study)
        assert improvements.num_tested == 12 and np.isfinite(improvements.largest_missed)
    printed = conclude(cache, "net0", "net1", capsys)
    assert None not in printed.values()
    pruned = prune(nets[0], labelled, "l1", 0.5, cache=cache)
    assert (pruned.table["intact"] == 0).all() and (pruned.table["drop"] <= 0).all()


def test_a_study_of_one_shard_draws_every_conclusion_that_one_of_many_does(cache: Cache, capsys) -> None:
    """What is concluded hangs on the images, not on how many shards they came in."""
    conclusions = {}
    for shard_size in (NUM_IMAGES, 5):
        for seed in (0, 1):
            ablate(
                Small(seed),
                noise(),
                "location",
                grid="all",
                cache=cache,
                name=f"net{seed}-{shard_size}",
                shard_size=shard_size,
            )
        printed = conclude(cache, f"net0-{shard_size}", f"net1-{shard_size}", capsys)
        with Store.open(cache.results) as store:
            number = store.find(f"net0-{shard_size}")
            compared = [printed[name] for name in ("difference", "difference_low", "difference_high", "p_value")]
            conclusions[shard_size] = store.table(number), find_improvements(store, number).summary(), compared
    one, many = conclusions.values()
    assert one[0].equals(many[0]) and one[1] == many[1] and one[2] == pytest.approx(many[2])


def test_studies_on_partly_other_images_are_paired_on_those_in_common(cache: Cache, folder: Path) -> None:
    spec, nets = f"imagefolder:{folder}", [Small(0), Small(1)]
    datasets = [load_data(spec, image_size=8, num_images=number, seed=seed) for number, seed in ((10, 0), (14, 1))]
    for net, data, name in zip(nets, datasets, ("few", "more"), strict=True):
        ablate(net, data, "location", grid="all", cache=cache, name=name)
    common = np.intersect1d(datasets[0].ids, datasets[1].ids)
    assert 0 < len(common) < 10
    comparison = compare("few", "more", cache=cache)
    assert comparison.num_images == len(common)
    left_out = 24 - 2 * len(common)
    assert any(note.startswith(f"{left_out} images that one study alone has measured") for note in comparison.notes)
    # By hand: zero each kernel, and count on the images in common alone.
    whole = load_data(spec, image_size=8, seed=0)
    place = {int(image_id): index for index, image_id in enumerate(whole.ids)}
    images, targets = zip(*(whole[place[int(image_id)]] for image_id in common), strict=True)
    images, targets = torch.stack(images), torch.tensor(targets)
    for net, column in zip(nets, ("first", "second"), strict=True):
        drops = []
        with torch.no_grad():
            right = net.eval()(images).argmax(1) == targets
            for out_channel in range(4):
                for in_channel in range(3):
                    kept = net.conv.weight[out_channel, in_channel].clone()
                    net.conv.weight[out_channel, in_channel] = 0
                    now = net(images).argmax(1) == targets
                    net.conv.weight[out_channel, in_channel] = kept
                    drops.append(100 * float(right.float().mean() - now.float().mean()))
        np.testing.assert_allclose(comparison.places[column], drops, atol=1e-4)


def test_studies_without_a_common_image_are_refused(cache: Cache, folder: Path) -> None:
    spec = f"imagefolder:{folder}"
    first = load_data(spec, image_size=8, num_images=3, seed=0)
    seed = next(
        seed
        for seed in range(1, 100)
        if not set(load_data(spec, image_size=8, num_images=3, seed=seed).ids) & set(first.ids)
    )
    ablate(Small(0), first, "layer", cache=cache, name="here")
    ablate(Small(1), load_data(spec, image_size=8, num_images=3, seed=seed), "layer", cache=cache, name="there")
    with pytest.raises(StudyError, match=r"no image in common \(3 and 3 images\)"):
        compare("here", "there", cache=cache)
    written = write_report(["here", "there"], cache.root / "report.html", cache=cache)
    assert written.comparisons == [] and "no image in common" in written.notes[0]


def test_one_command_writes_the_page_of_agreement(
    cache: Cache, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = {"source": "builtin", "name": "resnet20", "num_classes": 4, "options": {"shortcut": "A"}}
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "net.safetensors", build(architecture), architecture, {"name": "resnet20"})
    program = Path(__file__).resolve().parents[1] / "benchmarks" / "agreement.py"
    monkeypatch.setattr(
        sys,
        "argv",
        [
            program.name,
            "--weights",
            str(tmp_path / "net.safetensors"),
            "--data",
            f"imagefolder:{folder}",
            "--mean",
            "0.5,0.5,0.5",
            "--std",
            "0.2,0.2,0.2",
            "--grid",
            "2x2",
            "--cache",
            str(cache.root),
            "-o",
            str(tmp_path / "page.md"),
        ],
    )
    runpy.run_path(str(program), run_name="__main__")
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    with Store.open(cache.results) as store:
        table = store.table(only(store))
    assert len(table) == 19 * 4 and str(tmp_path) not in page
    for row in table.itertuples():
        where = f"{row.layer}[{row.out_channel:.0f}, {row.in_channel:.0f}]"
        interval = f"{row.drop_low:+.2f} to {row.drop_high:+.2f}"
        assert f"| {where} | {row.drop:+.2f} | {interval} | {row.q_value:.2g} |" in page
    for criterion in ("taylor", "fisher", "obd", "l1", "bn-gamma"):
        assert f"| `{criterion}` |" in page
    assert "lwe-multiplier: the selected layers have no LWE" in page


def test_an_error_is_one_line_and_with_debug_also_where_it_comes_from(tmp_path, capsys):
    command = ["export", "nothing", "--output", str(tmp_path / "x.csv"), "--cache", str(tmp_path)]
    assert run(*command) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert run(*command, "--debug") == 1
    said = capsys.readouterr().err
    assert "Traceback" in said and "error: " in said.splitlines()[-1]
