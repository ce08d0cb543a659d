"""The network as a picture: what is kept of it, and where a click leads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_studies import label, location_plan, resnet20_layers, table, write_study
from pages import click, is_well, network_of, open_page, words

import weanalysis as wa
from weanalysis.results import Store
from weanalysis.results.outlines import Outline


class TwoBlocks(torch.nn.Module):
    """Two convolutions with a sum behind the second, then two branches that are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("first", "second", "left", "right"):
            setattr(self, name, torch.nn.Conv2d(3, 3, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        x = self.second(x) + x
        return torch.cat([self.left(x), self.right(x)], 1).mean((2, 3))


def test_a_study_keeps_what_leads_to_what_in_its_network(cache: Path) -> None:
    torch.manual_seed(0)
    images = [(torch.rand(3, 4, 4), k % 6) for k in range(6)]
    wa.ablate(TwoBlocks(), images, "layer", name="two", cache=str(cache))
    with Store.open(cache / "results.sqlite") as store:
        outline = Outline.of(store.describe(1))
    assert outline.is_traced and outline.names == ("first", "second", "+", "left", "right", "concatenated")
    assert outline.edges == ((0, 1), (0, 2), (1, 2), (2, 3), (2, 4), (3, 5), (4, 5))
    assert [name for name, is_layer in zip(outline.names, outline.are_layers, strict=True) if not is_layer] == [
        "+",
        "concatenated",
    ]


@pytest.mark.parametrize(
    "kept",
    [
        None,
        "text",
        {"nodes": [], "edges": []},
        {"nodes": [["a", "layer"]], "edges": [[0, 0]]},
        {"nodes": [["a", "layer"], ["b", "layer"]], "edges": [[1, 0]]},
        {"nodes": [["a", 1]], "edges": []},
        {"nodes": [["a", "layer"]], "edges": [[0, True]]},
    ],
)
def test_what_is_no_outline_is_the_order_of_the_layers(kept: object) -> None:
    outline = Outline.of({"outline": kept, "layers": ["x", "y"]})
    assert not outline.is_traced and outline.names == ("x", "y") and outline.edges == ((0, 1),)


def test_a_click_on_a_layer_opens_its_most_important_kernel(cache: Path) -> None:
    names = [name for name, _, _ in resnet20_layers()]
    nodes = [[name, "layer"] for name in names]
    edges = [[place, place + 1] for place in range(len(names) - 1)] + [[1, 3]]
    path = cache / "results.sqlite"
    traced = {"nodes": nodes, "edges": edges}
    write_study(path, "location", location_plan(), "traced", layers=names, outline=traced, num_images=500)
    write_study(path, "location", location_plan(), "old", layers=names, num_images=500)
    app = open_page("location", study=label(cache, "old"))
    assert "no record of what leads to what" in words(app)
    app = open_page("location", study=label(cache, "traced"))
    is_well(app)
    assert "no record of what leads to what" not in words(app)
    drawn = network_of(app)["data"][-1]
    measured = table(cache, "traced")
    assert [one[0] for one in drawn["customdata"]] == names
    certain = measured[measured["q_value"] <= 0.05]
    for name, text in zip(names, drawn["text"], strict=True):
        own = certain[certain["layer"] == name]
        assert (f"{len(own)} of" in text) if len(own) else ("none of" in text)
    click(app, "network", ["layer2.0.conv1"])
    is_well(app)
    own = measured[measured["layer"] == "layer2.0.conv1"]
    top = own.loc[own["drop"].idxmax()]
    assert app.query_params["kernel"] == f"layer2.0.conv1:{top['out_channel']:.0f}:{top['in_channel']:.0f}"
    app.segmented_control(key="network-colour").set_value("How many differ from 0").run()
    is_well(app)
