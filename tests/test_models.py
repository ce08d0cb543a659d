"""Networks from every source, checkpoints of every origin, attention, group norm, and the smallest image."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from weanalysis._torchvision import torchvision
from weanalysis.cache import Cache
from weanalysis.data import Transform
from weanalysis.errors import ModelError
from weanalysis.excitation import excite
from weanalysis.models import (
    build,
    list_models,
    load_network,
    read_state_dict,
    save_checkpoint,
    smallest_image_size,
)
from weanalysis.models.attention import num_groups


def architecture(name: str, source: str = "builtin", num_classes: int = 10, **more: object) -> dict:
    return {"source": source, "name": name, "num_classes": num_classes, "options": {}, **more}


def randomized(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give every tensor, batch statistics too, a value of its own, so that one in the wrong place shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(0.5 + drawn if "running_var" in name else (drawn - 0.5) * 0.2)
    return net.eval()


@torch.no_grad()
def outputs(net: nn.Module, size: int = 32, num_images: int = 2) -> torch.Tensor:
    return net(torch.rand(num_images, 3, size, size, generator=torch.Generator().manual_seed(1)))


def num_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def on_meta(description: dict) -> nn.Module:
    with torch.device("meta"):
        return build(description)


def line_of(error: pytest.ExceptionInfo[ModelError]) -> str:
    line = str(error.value)
    assert "\n" not in line and line
    return line


# Built-in networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_cifar_resnets_have_the_size_in_he_et_al_table_6(depth: int, millions: float) -> None:
    net = on_meta(architecture(f"resnet{depth}"))
    assert num_parameters(net) / 1e6 == pytest.approx(millions, abs=0.03 if depth == 110 else 0.006)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in net.modules()) == depth
    blocks = (depth - 2) // 6
    # Written out once more: stem, three stages of two 3x3 layers a block, two norms a block, classifier.
    widths = [16, 32, 64]
    total = 3 * 9 * 16 + 2 * 16 + 64 * 10 + 10
    for before, width in zip([16, 16, 32], widths, strict=True):
        total += 9 * before * width + (2 * blocks - 1) * 9 * width * width + 2 * blocks * 2 * width
    assert num_parameters(net) == total


@pytest.mark.parametrize(("name", "millions"), [("resnext29_16x64d", 68.1), ("vgg19_cifar", 20.0)])
def test_other_cifar_networks_have_their_published_size(name: str, millions: float) -> None:
    assert num_parameters(on_meta(architecture(name))) / 1e6 == pytest.approx(millions, abs=0.1)


def test_shortcut_a_takes_every_second_pixel_and_pads_channels_with_zeros_on_both_sides() -> None:
    net = build(architecture("resnet20"))
    x = torch.rand(2, 16, 8, 8)
    made = net.get_submodule("layer2.0.downsample")(x).numpy()
    wanted = np.zeros((2, 32, 4, 4), dtype=np.float32)
    wanted[:, 8:24] = x.numpy()[:, :, 0::2, 0::2]
    np.testing.assert_array_equal(made, wanted)


def test_shortcut_b_projects_with_a_1x1_convolution() -> None:
    net = load_network("resnet20", "none", options={"shortcut": "B"}).net
    kinds = [type(module) for module in net.get_submodule("layer3.0.downsample")]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d]
    assert num_parameters(net) == 269722 + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


@pytest.mark.parametrize(
    ("name", "attention"), [("resnet20", None), ("resnet56", "se"), ("resnet20", "bam"), ("vgg19_cifar", None)]
)
def test_builtin_networks_can_be_traced(name: str, attention: str | None) -> None:
    net = randomized(build(architecture(name, **({"attention": attention} if attention else {}))))
    torch.testing.assert_close(outputs(torch.fx.symbolic_trace(net)), outputs(net), rtol=0, atol=0)


# Files of others ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model_state_dict", "model", "net", "nested"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model.", "module.net."])
def test_wrappers_and_prefixes_are_understood(tmp_path: Path, wrap: str, prefix: str) -> None:
    net = randomized(build(architecture("resnet20")))
    state = {prefix + name: tensor for name, tensor in net.state_dict().items()}
    content: object = {
        "plain": state,
        "nested": {"model": {"state_dict": state}, "epoch": 3},
    }.get(wrap, {wrap: state, "best_prec1": torch.tensor(91.2), "epoch": 3})
    torch.save(content, tmp_path / "file.th")
    model = load_network("resnet20", str(tmp_path / "file.th"))
    torch.testing.assert_close(outputs(model.net), outputs(net), rtol=0, atol=0)
    assert model.weights == "file.th" and model.classes is None and model.transform is None


def test_names_of_other_cifar_resnets_are_understood(tmp_path: Path) -> None:
    net = randomized(load_network("resnet20", "none", options={"shortcut": "B"}).net)
    renamed = {
        "module." + name.replace("fc.", "linear.").replace("downsample", "shortcut"): tensor
        for name, tensor in net.state_dict().items()
        if "num_batches_tracked" not in name
    }
    assert "module.layer2.0.shortcut.1.running_var" in renamed and "module.linear.bias" in renamed
    torch.save({"state_dict": renamed}, tmp_path / "b.pth")
    model = load_network("resnet20", str(tmp_path / "b.pth"), options={"shortcut": "B"})
    torch.testing.assert_close(outputs(model.net), outputs(net), rtol=0, atol=0)
    with pytest.raises(ModelError, match=r"unexpected: .*layer2\.0\.shortcut\.0\.weight"):
        load_network("resnet20", str(tmp_path / "b.pth"))


def test_extra_modules_around_the_network_are_named(tmp_path: Path) -> None:
    plain = randomized(build(architecture("resnet20"))).state_dict()
    state = {f"model.{name}": tensor for name, tensor in plain.items()}
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(10)}}, tmp_path / "lightning.ckpt")
    model = load_network("resnet20", str(tmp_path / "lightning.ckpt"))
    assert any("1 tensor" in note and "beside model" in note and "criterion.weight" in note for note in model.notes)
    # Inside the network, or where nothing tells it from what surrounds it, a tensor too many is another network's.
    for state in ({**plain, "criterion.weight": torch.ones(10)}, {**plain, "layer1.0.se.weight": torch.ones(1)}):
        torch.save(state, tmp_path / "other.pt")
        with pytest.raises(ModelError, match=r"1 unexpected: (criterion|layer1\.0\.se)\.weight"):
            load_network("resnet20", str(tmp_path / "other.pt"))


@pytest.mark.parametrize(
    "name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "regnet_y_400mf", "timm:test_resnet"]
)
def test_the_classifier_is_fitted_to_the_file(tmp_path: Path, name: str) -> None:
    net = randomized(load_network(name, "none", num_classes=7).net)
    torch.save(net.state_dict(), tmp_path / "seven.pt")
    model = load_network(name, str(tmp_path / "seven.pt"))
    assert model.num_classes == model.architecture["num_classes"] == 7
    torch.testing.assert_close(outputs(model.net, 64), outputs(net, 64), rtol=0, atol=0)
    with pytest.raises(ModelError, match="has 7 classes, not 5"):
        load_network(name, str(tmp_path / "seven.pt"), num_classes=5)


def test_half_precision_files_become_float32(tmp_path: Path) -> None:
    net = randomized(build(architecture("resnet20"))).half()
    torch.save(net.state_dict(), tmp_path / "half.pt")
    loaded = load_network("resnet20", str(tmp_path / "half.pt")).net
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded.conv1.weight, net.conv1.weight.float(), rtol=0, atol=0)


def test_auxiliary_classifiers_of_a_file_are_left_out_with_a_note(tmp_path: Path) -> None:
    full = randomized(torchvision.models.googlenet(num_classes=5, aux_logits=True, init_weights=False))
    torch.save(full.state_dict(), tmp_path / "google.pth")
    model = load_network("googlenet", str(tmp_path / "google.pth"))
    torch.testing.assert_close(outputs(model.net, 64), outputs(full, 64), rtol=0, atol=0)
    assert any("auxiliary" in note for note in model.notes)


def test_densenet_names_from_before_torch_0_4(tmp_path: Path) -> None:
    net = randomized(torchvision.models.densenet121(num_classes=4))
    old = {}
    for name, tensor in net.state_dict().items():
        for kind in ("norm", "conv"):
            for number in "12":
                if "denselayer" in name:
                    name = name.replace(f".{kind}{number}.", f".{kind}.{number}.")
        old[name] = tensor
    assert any(".norm.1." in name for name in old)
    torch.save(old, tmp_path / "dense.pth")
    model = load_network("densenet121", str(tmp_path / "dense.pth"))
    torch.testing.assert_close(outputs(model.net), outputs(net), rtol=0, atol=0)


def test_a_file_with_1000_classes_is_taken_for_imagenet_and_says_so(tmp_path: Path) -> None:
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "mine.pth")
    model = load_network("squeezenet1_1", str(tmp_path / "mine.pth"))
    assert model.synsets is not None and model.classes is not None
    assert len(model.synsets) == len(set(model.synsets)) == len(model.classes) == 1000
    assert (model.synsets[0], model.synsets[-1]) == ("n01440764", "n15075141")
    assert any("ImageNet" in note for note in model.notes) and model.transform is None


# Published weights ----------------------------------------------------------------------------------------------------


@pytest.fixture
def own_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize("label", ["default", "IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1"])
def test_published_weights_bring_classes_synsets_and_transform(tmp_path: Path, own_hub: Path, label: str) -> None:
    net = randomized(torchvision.models.resnet18())
    cache = Cache(tmp_path / "cache").ready()
    cache.weights.mkdir()
    torch.save(net.state_dict(), cache.weights / "resnet18-f37072fd.pth")
    model = load_network("resnet18", label, cache=cache)
    torch.testing.assert_close(outputs(model.net), outputs(net), rtol=0, atol=0)
    assert model.weights == "IMAGENET1K_V1" and model.num_classes == 1000
    assert model.classes is not None and model.classes[:2] == ("tench", "goldfish")
    assert model.synsets is not None and model.synsets[:2] == ("n01440764", "n01443537")
    assert model.transform == Transform(
        image_size=224, resize_size=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    # The same file by its path is recognized by its name.
    by_path = load_network("resnet18", str(cache.weights / "resnet18-f37072fd.pth"))
    assert by_path.transform == model.transform and by_path.synsets == model.synsets
    with pytest.raises(ModelError, match="1000 classes, not 10"):
        load_network("resnet18", label, num_classes=10, cache=cache)


def test_weights_in_torchs_own_cache_are_used_and_damaged_ones_refused(tmp_path: Path, own_hub: Path) -> None:
    own_hub.mkdir(parents=True)
    net = randomized(torchvision.models.squeezenet1_1())
    file = own_hub / "squeezenet1_1-b8a52dc0.pth"
    torch.save(net.state_dict(), file)
    model = load_network("squeezenet1_1", "default", cache=Cache(tmp_path / "cache"))
    torch.testing.assert_close(outputs(model.net), outputs(net), rtol=0, atol=0)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="damaged"):
        load_network("squeezenet1_1", "default", cache=Cache(tmp_path / "cache"))


def test_published_weights_of_inception_scale_their_input(tmp_path: Path, own_hub: Path) -> None:
    own_hub.mkdir(parents=True)
    full = randomized(torchvision.models.googlenet(aux_logits=True, transform_input=True, init_weights=False))
    torch.save(full.state_dict(), own_hub / "googlenet-1378be20.pth")
    model = load_network("googlenet", "default", cache=Cache(tmp_path))
    torch.testing.assert_close(outputs(model.net, 64), outputs(full, 64), rtol=0, atol=0)
    assert model.architecture["options"] == {"aux_logits": False, "transform_input": True}


def test_published_weights_below_attention_are_kept_and_the_blocks_noted(tmp_path: Path, own_hub: Path) -> None:
    own_hub.mkdir(parents=True)
    net = randomized(torchvision.models.resnet18())
    torch.save(net.state_dict(), own_hub / "resnet18-f37072fd.pth")
    model = load_network("resnet18", "default", options={"attention": "se"}, cache=Cache(tmp_path))
    assert any("not trained" in note for note in model.notes)
    torch.testing.assert_close(model.net.layer1[0].bn2.norm.running_var, net.layer1[0].bn2.running_var)
    with pytest.raises(ModelError, match="batch norm"):
        load_network("resnet18", "default", options={"norm": "gn"}, cache=Cache(tmp_path))


def test_weights_that_cannot_be_downloaded(tmp_path: Path, own_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(ModelError) as error:
        load_network("resnet18", "default", cache=Cache(tmp_path / "cache"))
    assert "cannot be downloaded (no network here)" in line_of(error)
    assert not list((tmp_path / "cache" / "weights").iterdir())


def test_timm_weights_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_address(*args: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", no_address)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: None)
    with pytest.raises(ModelError) as error:
        load_network("timm:test_resnet", "default", cache=Cache(tmp_path))
    assert "cannot be downloaded" in line_of(error)


def test_timm_weights_bring_classes_synsets_and_transform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    trained = randomized(timm.create_model("resnet18.tv_in1k"))
    create = timm.create_model

    def create_model(name: str, pretrained: bool = False, **kwargs: object) -> nn.Module:
        return trained if pretrained else create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", create_model)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: "a file")
    model = load_network("timm:resnet18", "tv_in1k", cache=Cache(tmp_path))
    torch.testing.assert_close(outputs(model.net), outputs(trained), rtol=0, atol=0)
    assert model.name == "timm:resnet18.tv_in1k" and model.weights == "tv_in1k"
    assert model.classes is not None and model.classes[0].startswith("tench")
    assert model.synsets is not None and len(model.synsets) == 1000
    assert model.transform is not None and (model.transform.image_size, model.transform.resize_size) == (224, 256)
    assert load_network(model.name, "default", cache=Cache(tmp_path)).weights_hash == model.weights_hash


# Our own checkpoints --------------------------------------------------------------------------------------------------

TRANSFORM = Transform(image_size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.mark.parametrize(
    "described",
    [
        architecture("resnet20", options={"shortcut": "B"}),
        architecture("resnet20", attention="cbam", norm="gn"),
        architecture("resnet18", "torchvision", 3, attention="se"),
        architecture("mobilenet_v2", "torchvision", 3, attention="bam"),
        architecture("test_resnet", "timm", 3),
    ],
    ids=lambda described: described["name"] + described.get("attention", ""),
)
def test_a_checkpoint_knows_its_own_network(tmp_path: Path, described: dict) -> None:
    net = randomized(build(described))
    path = tmp_path / "last.safetensors"
    classes = [f"class {index}" for index in range(described["num_classes"])]
    save_checkpoint(path, net, described, {"classes": classes, "transform": TRANSFORM.describe(), "epoch": 3})
    model = load_network(str(path))
    assert model.architecture == described and model.classes == tuple(classes) and model.transform == TRANSFORM
    assert not model.net.training and model.weights == "last.safetensors"
    torch.testing.assert_close(outputs(model.net, 64), outputs(net, 64), rtol=0, atol=0)
    again = load_network(model.name, str(path))
    assert again.architecture == described and again.weights_hash == model.weights_hash
    assert read_state_dict(path)[1]["epoch"] == 3
    untrained = load_network(str(path), "none", num_classes=5)
    assert untrained.num_classes == 5 and outputs(untrained.net, 64).shape == (2, 5)


@pytest.mark.parametrize("kind", ["lwe", "lwe+mwe", "wn"])
def test_a_checkpoint_with_an_excitation(tmp_path: Path, kind: str) -> None:
    excitation = {"kind": kind, "normalize": False, "reduction": 4, "eps": 0.05, "layers": ["layer*"]}
    described = architecture("resnet20", excitation=excitation)
    net = build(architecture("resnet20"))
    excite(net, kind, normalize=False, reduction=4, eps=0.05, layers=["layer*"])
    randomized(net)
    save_checkpoint(tmp_path / "we.safetensors", net, described)
    model = load_network(str(tmp_path / "we.safetensors"))
    torch.testing.assert_close(outputs(model.net), outputs(net), rtol=0, atol=0)
    assert any("parametrizations" in name for name in model.net.state_dict())


def test_a_plain_checkpoint_loads_into_stock_torchvision(tmp_path: Path) -> None:
    net = randomized(build(architecture("resnet18", "torchvision", 6)))
    save_checkpoint(tmp_path / "x.safetensors", net, architecture("resnet18", "torchvision", 6))
    state, _ = read_state_dict(tmp_path / "x.safetensors")
    stock = torchvision.models.resnet18(num_classes=6).eval()
    stock.load_state_dict(state, strict=True)
    torch.testing.assert_close(outputs(stock), outputs(net), rtol=0, atol=0)


def test_tied_and_channels_last_weights_are_saved(tmp_path: Path) -> None:
    net = build(architecture("resnet20")).to(memory_format=torch.channels_last)
    net.layer1[1].conv1.weight = net.layer1[0].conv1.weight
    randomized(net)
    save_checkpoint(tmp_path / "tied.safetensors", net, architecture("resnet20"))
    loaded = load_network(str(tmp_path / "tied.safetensors")).net
    torch.testing.assert_close(outputs(loaded), outputs(net))
    torch.testing.assert_close(loaded.layer1[1].conv1.weight, net.layer1[0].conv1.weight, rtol=0, atol=0)


def test_a_checkpoint_is_not_taken_for_another_network(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, build(architecture("resnet20")), architecture("resnet20"))
    with pytest.raises(ModelError, match="holds resnet20, not resnet32"):
        load_network("resnet32", str(path))
    with pytest.raises(ModelError, match="made with attention=none, not se"):
        load_network(str(path), options={"attention": "se"})
    with pytest.raises(ModelError, match="has 10 classes, not 3"):
        load_network(str(path), num_classes=3)


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    net = build(architecture("resnet20"))
    with pytest.raises(ModelError, match=r"name it last\.safetensors"):
        save_checkpoint(tmp_path / "last.pth", net, architecture("resnet20"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "a.safetensors", net, architecture("resnet20"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_hash_of_the_weights_sees_one_bit_and_one_name() -> None:
    model = load_network("resnet20", "none")
    before = model.weights_hash
    assert before == model.weights_hash and len(before) == 64
    with torch.no_grad():
        weight = model.net.layer2[0].conv1.weight
        bits = weight.view(torch.int32)
        bits[0, 0, 0, 0] ^= 1
        assert model.weights_hash != before
        bits[0, 0, 0, 0] ^= 1
        assert model.weights_hash == before
        norm = model.net.bn1
        norm.running_mean.fill_(0.25)
        norm.bias.fill_(0.5)
        one = model.weights_hash
        norm.running_mean.fill_(0.5)
        norm.bias.fill_(0.25)
        assert model.weights_hash != one


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("resnet5O", "resnet50"),
        ("resnet2", "resnet20"),
        ("timm:resnet18x", "resnet18"),
        ("builtin:resnet21", "resnet20"),
        ("torchvision:vgg16bn", "vgg16_bn"),
        ("zzz", "names are known"),
        ("missing.safetensors", "cannot be read: No such file"),
        ("../elsewhere", "cannot be read: No such file"),
    ],
)
def test_unknown_networks(name: str, wanted: str) -> None:
    with pytest.raises(ModelError) as error:
        load_network(name, "none")
    assert wanted in line_of(error)


@pytest.mark.parametrize(
    ("name", "weights", "wanted"),
    [
        ("resnet50", "IMAGENET1K_V9", "IMAGENET1K_V1, IMAGENET1K_V2, default, none, or give a file"),
        ("vgg16", "IMAGENET1K_FEATURES", "IMAGENET1K_V1"),
        ("resnet20", "default", "no published weights"),
        ("timm:resnet18", "a9_in1k", "a1_in1k"),
        ("timm:resnet18.a9_in1k", "none", "a1_in1k"),
        ("resnet20", "nowhere/file.pth", "cannot be read"),
        ("resnet20", "nowhere.safetensors", "cannot be read"),
    ],
)
def test_unknown_weights(name: str, weights: str, wanted: str) -> None:
    with pytest.raises(ModelError) as error:
        load_network(name, weights)
    assert wanted in line_of(error)


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("resnet20", {"shortcat": "B"}, "shortcat"),
        ("resnet20", {"shortcut": "C"}, "must be A"),
        ("resnet18", {"widths": 2}, "zero_init_residual"),
        ("timm:test_resnet", {"no_such": 1}, "no_such"),
        ("timm:test_resnet", {"checkpoint_path": "x.pth"}, "would load weights"),
        ("resnet18", {"attention": "sae"}, "did you mean se"),
        ("resnet18", {"norm": "ln"}, "gn"),
        ("shufflenet_v2_x0_5", {"attention": "se"}, "mobilenet_v2"),
        ("timm:test_vit", {"attention": "bam"}, "takes no attention"),
        ("squeezenet1_1", {"norm": "gn"}, "no batch norm"),
        ("timm:test_efficientnet", {"norm": "gn"}, "BatchNormAct2d"),
    ],
)
def test_unknown_and_impossible_options(name: str, options: dict, wanted: str) -> None:
    with pytest.raises(ModelError) as error:
        load_network(name, "none", options=options)
    assert wanted in line_of(error)


@pytest.mark.parametrize("number", [0, -3])
def test_a_network_needs_classes(number: int) -> None:
    with pytest.raises(ModelError, match="one class or more"):
        load_network("resnet20", "none", num_classes=number)


def test_weights_of_another_network_are_listed_name_by_name(tmp_path: Path) -> None:
    torch.save(build(architecture("resnet32")).state_dict(), tmp_path / "32.pt")
    torch.save(build(architecture("resnet20")).state_dict(), tmp_path / "20.pt")
    torch.save(torchvision.models.resnet34(num_classes=10).state_dict(), tmp_path / "34.pt")
    with pytest.raises(ModelError, match=r"60 unexpected: layer1\.3\.conv1\.weight.*\.\.\."):
        load_network("resnet20", str(tmp_path / "32.pt"))
    with pytest.raises(ModelError, match=r"60 missing: layer1\.3\.conv1\.weight"):
        load_network("resnet32", str(tmp_path / "20.pt"))
    with pytest.raises(ModelError) as error:
        load_network("resnet20", str(tmp_path / "34.pt"))
    assert "of another shape: conv1.weight 64x3x7x7 instead of 16x3x3x3" in line_of(error)


class Attack:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("writer", ["torch.save", "legacy", "pickle"])
def test_a_pickle_that_would_run_code_runs_none(tmp_path: Path, writer: str) -> None:
    path, made = tmp_path / "evil.pth", tmp_path / "made-by-the-file"
    content = {"state_dict": {"conv1.weight": torch.zeros(1)}, "extra": Attack(made)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(Attack(made), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch.save")
    with pytest.raises(ModelError) as error:
        load_network("resnet20", str(path))
    assert "could run code" in line_of(error)
    assert not made.exists()


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / ("cut.safetensors" if kind == "safetensors" else "cut.pth")
    net = build(architecture("resnet20"))
    if kind == "safetensors":
        save_checkpoint(path, net, architecture("resnet20"))
    else:
        torch.save(net.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError) as error:
        load_network("resnet20", str(path))
    assert str(path) in line_of(error)


@pytest.mark.parametrize(
    "content", [b"hello, this is no checkpoint\n", b"\x89PNG\r\n\x1a\n" + bytes(50), bytes(100), b"{}" * 50]
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ModelError) as error:
        load_network("resnet20", str(tmp_path / "x.pt"))
    assert "x.pt" in line_of(error)


def test_pickles_without_a_state_dict_and_folders(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "x.pt")
    with pytest.raises(ModelError, match="holds no state dict"):
        load_network("resnet20", str(tmp_path / "x.pt"))
    torch.save([1, 2, 3], tmp_path / "x.pt")
    with pytest.raises(ModelError, match="holds no state dict"):
        load_network("resnet20", str(tmp_path / "x.pt"))
    with pytest.raises(ModelError, match="cannot be read"):
        load_network("resnet20", f"{tmp_path}/")
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(ModelError, match="TorchScript"):
        load_network("resnet20", str(tmp_path / "script.pt"))


def test_a_file_of_others_is_no_model_by_itself(tmp_path: Path) -> None:
    torch.save(build(architecture("resnet20")).state_dict(), tmp_path / "x.pt")
    with pytest.raises(ModelError, match="does not say which network"):
        load_network(str(tmp_path / "x.pt"))


@pytest.mark.parametrize(
    "described",
    [
        {"name": "resnet20"},
        "resnet20",
        architecture("resnet20", future="yes"),
        architecture("resnet20", source="elsewhere"),
        architecture("resnet20", excitation={"kind": "lwe", "future": 1}),
    ],
)
def test_a_checkpoint_whose_description_makes_no_sense(tmp_path: Path, described: object) -> None:
    import json

    from safetensors.torch import save_file

    metadata = {"weanalysis": json.dumps({"architecture": described})}
    save_file(build(architecture("resnet20")).state_dict(), tmp_path / "x.safetensors", metadata=metadata)
    with pytest.raises(ModelError) as error:
        load_network(str(tmp_path / "x.safetensors"))
    line_of(error)


# Attention and group norm ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "attention", "millions"),
    [
        ("resnet18", "se", 11.8),
        ("resnet50", "se", 28.1),
        ("resnet50", "cbam", 28.1),
        ("resnet50", "bam", 25.9),
        ("resnext50_32x4d", "se", 27.5),
        ("wide_resnet50_2", "se", 71.4),
        ("resnet152", "se", 66.8),
        ("mobilenet_v2", "se", 3.6),
    ],
)
def test_attention_networks_have_the_parameters_of_table_1(name: str, attention: str, millions: float) -> None:
    net = on_meta(architecture(name, "torchvision", 1000, attention=attention))
    assert num_parameters(net) / 1e6 == pytest.approx(millions, abs=0.1)


def attention_blocks(net: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in net.named_modules() if getattr(module, "is_attention", False)}


@pytest.mark.parametrize(
    ("name", "source", "attention", "number"),
    [
        ("resnet18", "torchvision", "se", 8),
        ("resnet50", "torchvision", "cbam", 16),
        ("resnet50", "torchvision", "bam", 3),
        ("mobilenet_v2", "torchvision", "se", 17),
        ("mobilenet_v2", "torchvision", "cbam", 17),
        ("mobilenet_v2", "torchvision", "bam", 4),
        ("resnet20", "builtin", "se", 9),
        ("resnet20", "builtin", "bam", 2),
        ("resnext29_16x64d", "builtin", "cbam", 9),
    ],
)
def test_every_attention_block_is_marked(name: str, source: str, attention: str, number: int) -> None:
    assert len(attention_blocks(on_meta(architecture(name, source, attention=attention)))) == number


def scales_by(attention: nn.Module, kind: str) -> float:
    """Set the last layers of a block to 0, and return by how much it then multiplies its input."""
    with torch.no_grad():
        last = {
            "se": lambda: [attention.fc2],
            "cbam": lambda: [attention.channel.fc2, attention.spatial.conv.conv],
            "bam": lambda: [attention.channel[5], attention.spatial[-1]],
        }[kind]()
        for layer in last:
            layer.weight.zero_()
            if layer.bias is not None:
                layer.bias.zero_()
        if kind == "cbam":
            attention.spatial.conv.bn.running_mean.zero_()
            attention.spatial.conv.bn.bias.zero_()
    return {"se": 0.5, "cbam": 0.25, "bam": 1.5}[kind]


@pytest.mark.parametrize("attention", ["se", "cbam"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_se_and_cbam_scale_what_a_block_adds(name: str, attention: str) -> None:
    net = randomized(build(architecture(name, "torchvision", 4, attention=attention)))
    plain = torchvision.models.get_model(name, num_classes=4).eval()
    named = {key.replace(".norm.", "."): tensor for key, tensor in net.state_dict().items() if "attention" not in key}
    plain.load_state_dict(named)
    assert not torch.allclose(outputs(net, 64), outputs(plain, 64))
    for block in attention_blocks(net).values():
        factor = scales_by(block, attention)
    for module in plain.modules():
        norm = getattr(module, "bn2", None)
        if isinstance(module, torchvision.models.mobilenetv2.InvertedResidual):
            norm = module.conv[-1]
        if norm is not None:
            norm.weight.data *= factor
            norm.bias.data *= factor
    torch.testing.assert_close(outputs(net, 64), outputs(plain, 64), rtol=1e-4, atol=1e-6)


def test_bam_scales_what_a_stage_gives() -> None:
    net = randomized(build(architecture("resnet18", "torchvision", 4, attention="bam")))
    seen = {}
    for name in ("layer1.1", "layer1", "layer3.1", "layer3"):
        net.get_submodule(name).register_forward_hook(
            lambda module, args, result, name=name: seen.__setitem__(name, result)
        )
    blocks = attention_blocks(net)
    assert list(blocks) == ["layer1.attention", "layer2.attention", "layer3.attention"]
    for block in blocks.values():
        factor = scales_by(block, "bam")
    outputs(net, 64)
    torch.testing.assert_close(seen["layer1"], factor * seen["layer1.1"])
    torch.testing.assert_close(seen["layer3"], factor * seen["layer3.1"])


def test_bam_by_hand() -> None:
    """Channel gate 3 and 5, spatial gate 1 at the map's middle pixel: x times 1 + sigmoid of their sum."""
    bam = attention_blocks(build(architecture("resnet20", attention="bam")))["layer1.attention"]
    with torch.no_grad():
        for parameter in bam.parameters():
            parameter.zero_()
        bam.channel[5].bias[0], bam.channel[5].bias[1] = 3.0, 5.0
        bam.spatial[-1].bias.fill_(-2.0)
        x = torch.rand(2, 16, 5, 5)
        made = bam(x)
    gates = torch.full((16,), 1 + 1 / (1 + np.exp(2.0)))
    gates[0], gates[1] = 1 + 1 / (1 + np.exp(-1.0)), 1 + 1 / (1 + np.exp(-3.0))
    torch.testing.assert_close(made, x * gates[None, :, None, None].float())
    dilated = [module for module in bam.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)]
    assert [conv.dilation for conv in dilated] == [(4, 4)] * 2


@pytest.mark.parametrize(
    ("channels", "groups"), [(64, 32), (2048, 32), (32, 16), (16, 8), (24, 12), (96, 32), (144, 24), (7, 1), (1, 1)]
)
def test_the_number_of_groups(channels: int, groups: int) -> None:
    assert num_groups(channels) == groups


@pytest.mark.parametrize(
    ("name", "source"), [("resnet50", "torchvision"), ("mobilenet_v2", "torchvision"), ("vgg19_cifar", "builtin")]
)
def test_group_norm_replaces_every_batch_norm(name: str, source: str) -> None:
    net = on_meta(architecture(name, source, norm="gn"))
    kinds = [type(module) for module in net.modules()]
    plain = on_meta(architecture(name, source))
    assert nn.BatchNorm2d not in kinds
    assert kinds.count(nn.GroupNorm) == [type(module) for module in plain.modules()].count(nn.BatchNorm2d)
    assert num_parameters(net) == num_parameters(plain)


def test_with_group_norm_an_image_does_not_see_its_batch() -> None:
    net = build(architecture("resnet20", norm="gn")).train()
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(images)[:1], net(images[:1]))


# The smallest image ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet20", 32),
        ("vgg19_cifar", 32),
        ("resnet18", 48),
        ("mobilenet_v2", 48),
        ("alexnet", 64),
        ("timm:vit_tiny_patch16_224", 224),
    ],
)
def test_the_smallest_image(name: str, size: int) -> None:
    assert smallest_image_size(load_network(name, "none", num_classes=4).net) == size


def test_the_smallest_image_of_a_resnet50_is_48() -> None:
    assert smallest_image_size(build(architecture("resnet50", "torchvision", 4))) == 48


@pytest.mark.parametrize(
    ("kernel", "stride", "size"), [(1, 32, 32), (3, 32, 48), (3, 64, 75), (3, 96, 112), (3, 128, 160)]
)
def test_the_smallest_image_by_hand(kernel: int, stride: int, size: int) -> None:
    """A strided stem leaves ceil(size / stride) pixels for the next layer, which needs two if it is not 1x1."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1, stride), nn.Conv2d(1, 1, kernel, padding=kernel // 2), nn.Flatten())
    assert smallest_image_size(net) == size


def test_the_smallest_image_leaves_the_network_as_it_was() -> None:
    net = build(architecture("resnet18", "torchvision", 4)).train()
    net.layer1.eval()
    modes = [module.training for module in net.modules()]
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    smallest_image_size(net)
    assert [module.training for module in net.modules()] == modes
    assert not any(module._forward_pre_hooks for module in net.modules())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_network_that_works_on_no_image() -> None:
    with pytest.raises(ModelError, match="works on no square images"):
        smallest_image_size(nn.Linear(3, 4))


# The list -------------------------------------------------------------------------------------------------------------


def test_the_list_of_networks() -> None:
    rows = {row["name"]: row for row in list_models()}
    assert {"resnet20", "resnet110", "vgg19_cifar", "resnext29_16x64d", "resnet50", "vit_b_16"} <= set(rows)
    assert rows["resnet20"] == {"name": "resnet20", "source": "builtin", "num_parameters": 269722, "weights": []}
    assert rows["resnet50"]["weights"] == ["IMAGENET1K_V1", "IMAGENET1K_V2"]
    assert rows["resnet50"]["num_parameters"] == 25557032
    assert not any(row["source"] == "timm" for row in rows.values())
    assert not any(name.startswith(("fasterrcnn", "mvit", "quantized")) for name in rows)
    assert rows["r3d_18"]["source"] == "video" and rows["r3d_18"]["num_parameters"] == 33371472
    assert rows["deeplabv3_resnet50"]["source"] == "segmentation"
    assert "timm:resnet18" in {row["name"] for row in list_models(include_timm=True)}


def test_timm_is_imported_when_it_is_used() -> None:
    code = (
        "import sys; from weanalysis.models import list_models, load_network; list_models(); "
        "load_network('resnet20', 'none'); sys.exit('timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
