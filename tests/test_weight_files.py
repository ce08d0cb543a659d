"""Files of weights as people have them: what is folded, left out or chosen gives the network that wrote the file."""

from __future__ import annotations

import copy
import io
import json
import os
import time
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

from weanalysis.ablation import ablate
from weanalysis.cache import Cache
from weanalysis.cli import cli
from weanalysis.errors import ExcitationError, ModelError, WeanalysisError
from weanalysis.excitation import excitation_of, excite, multipliers
from weanalysis.models import Model, load_network, read_state_dict, save_checkpoint
from weanalysis.models.cifar import BUILTIN
from weanalysis.results import Store


class Tiny(nn.Module):
    """Two convolutions, a norm and a classifier, in modules of modules."""

    def __init__(self, num_classes: int = 10, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.block = nn.Sequential(OrderedDict(conv=nn.Conv2d(width, 8, 3), act=nn.ReLU()))
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(self.norm(self.stem(x)).relu()).mean((2, 3)))


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(BUILTIN, "tiny", Tiny)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(seed: int = 0, **more: Any) -> Tiny:
    torch.manual_seed(seed)
    net = Tiny(**more).train()
    for _ in range(2):
        net(torch.randn(8, 3, 9, 9) + 0.5)  # statistics of its own
    return net.eval()


@torch.no_grad()
def outputs(net: nn.Module) -> Tensor:
    return net.eval()(torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(5)))


def loaded(tmp_path: Path, content: object, name: str = "file.pth", **how: Any) -> Model:
    torch.save(content, tmp_path / name)
    return load_network("tiny", str(tmp_path / name), **how)


def same(model: Model, net: nn.Module, exactly: bool = True) -> None:
    torch.testing.assert_close(outputs(model.net), outputs(net), **({"rtol": 0, "atol": 0} if exactly else {}))


def said(model: Model, *words: str) -> bool:
    return any(all(word in note for word in words) for note in model.notes)


# What stands beside and around the weights ----------------------------------------------------------------------------


def test_counters_beside_the_weights_are_left_out_and_said(tmp_path: Path) -> None:
    net = made()
    state = net.state_dict()
    for module in ("stem.", "block.conv.", ""):
        state |= {f"{module}total_ops": torch.tensor([3.0]), f"{module}total_params": torch.tensor([3.0])}
    for prefix in ("", "module."):
        model = loaded(tmp_path, {prefix + name: value for name, value in state.items()})
        same(model, net)
        assert said(model, "6 counters of operations", "stem.total_ops", "left out")


def test_averages_of_torch_are_read_and_said(tmp_path: Path) -> None:
    net = made()
    model = loaded(tmp_path, AveragedModel(net).state_dict())
    same(model, net)
    assert said(model, "n_averaged", "left out")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"module": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "global_steps": 3},
        lambda state: {"generator": state, "step": 3},
        lambda state: {"state_dict": {f"encoder.{name}": value for name, value in state.items()}},
        lambda state: {f"backbone.net.{name}": value for name, value in state.items()},
        lambda state: {f"_forward_module._fsdp_wrapped_module.{name}": value for name, value in state.items()},
        lambda state: {name.replace("block.", "block._orig_mod."): value for name, value in state.items()},
        lambda state: {"model": OrderedDict(state), "epoch": torch.tensor(3), "args": {"lr": 0.1}},
        lambda state: {
            "state_dict": {f"model.{name}": value for name, value in state.items()},
            "callbacks": {"EMA": {"decay": 0.9}},
            "pytorch-lightning_version": "2.4",
        },
    ],
)
def test_wrappers_around_the_network(tmp_path: Path, wrap: Callable[[dict], dict]) -> None:
    net = made()
    same(loaded(tmp_path, wrap(net.state_dict())), net)


def test_what_stands_beside_the_network_is_named(tmp_path: Path) -> None:
    net = made()
    state = {f"model.{name}": value for name, value in net.state_dict().items()}
    model = loaded(tmp_path, {**state, "normalizer.mean": torch.zeros(3), "normalizer.std": torch.ones(3)})
    same(model, net)
    assert said(model, "2 tensors", "beside model", "normalizer.mean")


def test_entries_that_are_no_tensors_are_named(tmp_path: Path) -> None:
    net = made()
    model = loaded(tmp_path, {**net.state_dict(), "_extra_state": {"scale": 3}, "epoch": 7})
    same(model, net)
    assert said(model, "2 entries", "no tensors", "_extra_state, epoch")


# Several sets of weights ----------------------------------------------------------------------------------------------


def under_keys(raw: dict, averaged: dict) -> dict:
    return {"state_dict": raw, "state_dict_ema": averaged, "epoch": 3}


def under_other_keys(raw: dict, averaged: dict) -> dict:
    return {"model": raw, "model_ema": {f"module.{name}": value for name, value in averaged.items()}}


def behind_prefixes(raw: dict, averaged: dict) -> dict:
    both = {"net.": raw, "ema_net.module.": averaged}
    return {"state_dict": {prefix + name: value for prefix, one in both.items() for name, value in one.items()}}


def student_and_teacher(raw: dict, averaged: dict) -> dict:
    both = {"student.": raw, "teacher.": averaged}
    return {prefix + name: value for prefix, one in both.items() for name, value in one.items()}


def two_encoders(raw: dict, averaged: dict) -> dict:
    both = {"module.encoder_q.": raw, "module.encoder_k.": averaged, "module.": {"queue": {"x": 1} and torch.ones(2)}}
    return {"state_dict": {prefix + name: value for prefix, one in both.items() for name, value in one.items()}}


@pytest.mark.parametrize(
    ("holds", "name"),
    [
        (under_keys, "state_dict_ema"),
        (under_other_keys, "model_ema"),
        (behind_prefixes, "ema_net.module"),
        (student_and_teacher, "teacher"),
        (two_encoders, "module.encoder_k"),
    ],
)
def test_raw_and_averaged_weights_can_be_chosen_and_it_is_said_which_were(
    tmp_path: Path, holds: Callable, name: str
) -> None:
    raw, averaged = made(0), made(1)
    content = holds(raw.state_dict(), averaged.state_dict())
    for which in ("auto", "raw"):
        model = loaded(tmp_path, content, weights_of=which)
        same(model, raw)
        assert said(model, "the raw ones", "were taken", "averaged", "--weights-of averaged")
        assert model.weights == "file.pth"
    for which in ("averaged", name):
        model = loaded(tmp_path, content, weights_of=which)
        same(model, averaged)
        assert said(model, "the averaged ones", "were taken") and model.weights == "file.pth (averaged)"
    with pytest.raises(ModelError, match=r"no weights called 'best'; choose from auto, raw, averaged or .*raw"):
        loaded(tmp_path, content, weights_of="best")


def test_only_averaged_weights_are_taken_and_said(tmp_path: Path) -> None:
    net = made()
    model = loaded(tmp_path, {"ema": net.state_dict(), "step": 4})
    same(model, net)
    assert said(model, "are averaged ones (ema)")
    with pytest.raises(ModelError, match=r"holds no raw weights; it has ema \(averaged\)"):
        loaded(tmp_path, {"ema": net.state_dict()}, weights_of="raw")


def test_where_nothing_tells_sets_apart_it_is_asked(tmp_path: Path) -> None:
    one, other = made(0).state_dict(), made(1).state_dict()
    for content in (
        {"first": one, "second": other},
        {
            f"{prefix}.{name}": value
            for prefix, state in (("first", one), ("second", other))
            for name, value in state.items()
        },
    ):
        with pytest.raises(ModelError, match=r"several sets of weights that fit: first .*, second .*--weights-of NAME"):
            loaded(tmp_path, content)
        same(loaded(tmp_path, content, weights_of="second"), made(1))
    # The same network twice is no choice.
    twice = {f"{prefix}.{name}": value for prefix in ("model", "attacker.model") for name, value in one.items()}
    model = loaded(tmp_path, twice)
    same(model, made(0))


def test_there_is_no_choice_where_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no file is given"):
        load_network("tiny", "none", weights_of="averaged")
    save_checkpoint(tmp_path / "own.safetensors", made(), described())
    with pytest.raises(ModelError, match="holds one set of weights"):
        load_network(str(tmp_path / "own.safetensors"), weights_of="averaged")


def test_the_command_line_says_what_was_taken_and_lets_choose(tmp_path: Path) -> None:
    raw, averaged = made(0), made(1)
    torch.save(under_keys(raw.state_dict(), averaged.state_dict()), tmp_path / "both.pth")
    command = [
        "ablate",
        "--model",
        "tiny",
        "--weights",
        str(tmp_path / "both.pth"),
        "--data",
        "digits",
        "--jobs",
        "1",
        "--images",
        "20",
        "--layers",
        "stem",
        "--grid",
        "1x1",
        "--cache",
        str(tmp_path / "cache"),
    ]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert "the raw ones (state_dict) were taken" in " ".join(done.stderr.split())
    done = CliRunner().invoke(cli, [*command, "--weights-of", "averaged"])
    assert done.exit_code == 0 and "the averaged ones (state_dict_ema) were taken" in " ".join(done.stderr.split())
    with Store.open(Cache(tmp_path / "cache").results) as store:
        assert sorted(store.studies()["weights"]) == ["both.pth", "both.pth (averaged)"]


# Parametrizations -----------------------------------------------------------------------------------------------------


def pruned(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            prune.l1_unstructured(module, "weight", amount=0.4)
    prune.random_unstructured(net.fc, "bias", amount=2)


def weight_normed(net: nn.Module) -> None:
    for module, dim in ((net.stem, 0), (net.block.conv, 1), (net.fc, None)):
        nn.utils.weight_norm(module, dim=dim)


def parametrized(net: nn.Module) -> None:
    for module, dim in ((net.stem, 0), (net.block.conv, 1), (net.fc, None)):
        parametrizations.weight_norm(module, dim=dim)


def spectral(net: nn.Module) -> None:
    for module in (net.stem, net.block.conv, net.fc):
        nn.utils.spectral_norm(module)


def spectral_parametrized(net: nn.Module) -> None:
    for module in (net.stem, net.block.conv, net.fc):
        parametrizations.spectral_norm(module)


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (pruned, "masks"),
        (weight_normed, "weight norm"),
        (parametrized, "weight norm"),
        (spectral, "spectral norm"),
        (spectral_parametrized, "spectral norm"),
    ],
)
def test_parametrizations_of_torch_are_folded(tmp_path: Path, change: Callable, what: str, prefix: str) -> None:
    net = made()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        change(net)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith(("_g", "original0")):
                parameter.mul_(1.5)
    net.train()
    net(torch.randn(4, 3, 9, 9))
    model = loaded(tmp_path, {prefix + name: value for name, value in net.eval().state_dict().items()})
    # torch's spectral norm divides in another order than the parametrization; all else is torch's own arithmetic.
    same(model, net, exactly="spectral" not in what)
    assert not torch.allclose(outputs(model.net), outputs(made()))
    assert said(model, "folded", what) and type(model.net.stem) is nn.Conv2d
    assert set(model.net.state_dict()) == set(Tiny().state_dict())


def test_a_parametrization_that_is_none_of_torchs_is_refused(tmp_path: Path) -> None:
    state = made().state_dict()
    weight = state.pop("stem.weight")
    for more in (
        {"stem.weight_g": torch.ones(2, 2), "stem.weight_v": weight},
        {"stem.weight_orig": weight, "stem.weight_mask": torch.ones(5)},
        {"stem.parametrizations.weight.original0": weight, "stem.parametrizations.weight.original1": weight},
        {"stem.weight_orig": weight, "stem.weight_u": torch.ones(2), "stem.weight_v": torch.ones(3)},
    ):
        with pytest.raises(ModelError, match=r"stem\.\S+ in .* make no weight"):
            loaded(tmp_path, {**state, **more})


@pytest.mark.parametrize("kind", ["wn", "sn", "lwe"])
def test_the_bare_state_dict_of_a_network_excited_here(tmp_path: Path, kind: str) -> None:
    net = excite(made(), kind, reduction=2)
    model = loaded(tmp_path, net.state_dict())
    same(model, net, exactly=kind != "sn")
    if kind == "lwe":
        assert excitation_of(model.net) == model.architecture["excitation"]
        assert multipliers(model.net).keys() == {"stem", "block.conv"}
        assert said(model, "2 layers", "LWE", "taken as lwe")
    else:
        assert said(model, "folded", "norm") and excitation_of(model.net) is None


def test_layers_of_lwe_beside_a_weight_are_taken_as_the_public_implementation_has_them(tmp_path: Path) -> None:
    settings = {"hidden_of": "layer", "unbiased": True}
    net = excite(made(), "lwe", **settings)
    state = {}
    for name, tensor in net.state_dict().items():
        path, _, own = name.partition(".parametrizations.weight.0.")
        name = f"{path}.{own}" if own else name.replace(".parametrizations.weight.original", ".weight")
        state[f"module.{name}"] = tensor[:, :, None, None] if "fc1.weight" in own or "fc2.weight" in own else tensor
    assert "module.stem.fc1.weight" in state and "module.fc.weight" in state
    model = loaded(tmp_path, state)
    same(model, net)
    assert said(model, "2 convolutions", "fc1 and fc2", "public implementation")
    assert excitation_of(model.net).items() >= {"kind": "lwe", **settings}.items()
    asked = {"kind": "lwe+mwe", "constant_maximum": False, **settings}
    model = loaded(tmp_path, state, options={"excitation": asked})
    assert excitation_of(model.net).items() >= asked.items()
    assert multipliers(model.net).keys() == {"stem", "block.conv"}
    del state["module.stem.fc1.bias"]
    with pytest.raises(ModelError):
        loaded(tmp_path, state)


@pytest.mark.parametrize("asked", [{"kind": "mwe", "eps": 0.02}, {"kind": "lwe+mwe", "normalize": False}, "ws"])
def test_an_excitation_without_traces_is_asked_for(tmp_path: Path, asked: Any) -> None:
    settings = {"kind": asked} if isinstance(asked, str) else asked
    net = excite(made(), **settings)
    if settings["kind"] != "lwe+mwe":  # which cannot be told from LWE alone
        with pytest.raises(ModelError, match=r"does not say what computes them; .* --model-option excitation="):
            loaded(tmp_path, net.state_dict())
    model = loaded(tmp_path, net.state_dict(), options={"excitation": asked})
    same(model, net)
    assert excitation_of(model.net)["kind"] == settings["kind"]


def test_an_excitation_is_named_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ExcitationError, match="unknown excitation 'lwx'"):
        load_network("tiny", "none", options={"excitation": "lwx"})
    with pytest.raises(ModelError, match=r"excitation\.strength is no field"):
        load_network("tiny", "none", options={"excitation": {"kind": "lwe", "strength": 3}})
    net = excite(made(), "lwe", reduction=2)
    save_checkpoint(tmp_path / "own.safetensors", net, described(excitation=excitation_of(net)))
    same(load_network(str(tmp_path / "own.safetensors"), options={"excitation": "lwe"}), net)
    with pytest.raises(ModelError, match=r"was made with excitation=.*leave the option out"):
        load_network(str(tmp_path / "own.safetensors"), options={"excitation": "mwe"})


# Tensors of other kinds -----------------------------------------------------------------------------------------------


def test_sparse_tensors_become_dense(tmp_path: Path) -> None:
    net = made()
    state = net.state_dict()
    state["fc.weight"] = state["fc.weight"].to_sparse()
    state["block.conv.weight"] = state["block.conv.weight"].to_sparse_coo()
    model = loaded(tmp_path, state)
    same(model, net)
    assert said(model, "2 sparse tensors", "made dense")


def test_sparse_tensors_whose_indices_lie_outside_are_refused(tmp_path: Path) -> None:
    state = made().state_dict()
    outside = torch.tensor([[0, 1], [2, 10**11]])
    rows, columns = torch.arange(11), torch.full((10,), 8)
    for wrong in (
        torch.sparse_coo_tensor(outside, torch.ones(2), (10, 8), check_invariants=False),
        torch.sparse_csr_tensor(rows, columns, torch.ones(10), (10, 8), check_invariants=False),
    ):
        with pytest.raises(ModelError, match=r"damaged or no checkpoint .*(size is inconsistent with|col_indices)"):
            loaded(tmp_path, {**state, "fc.weight": wrong})


def test_nested_tensors_are_refused_by_name(tmp_path: Path) -> None:
    state = made().state_dict()
    state["stem.weight"] = torch.nested.nested_tensor([torch.ones(3), torch.ones(4)])
    with pytest.raises(ModelError, match=r"stem\.weight in .* is a nested tensor"):
        loaded(tmp_path, state)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_indices_that_one_number_stands_for_are_counted_before_they_are_read(
    tmp_path: Path, layout: torch.layout
) -> None:
    state, many = made().state_dict(), 10**10
    numbers = torch.ones(1).expand(many)
    index = torch.zeros(1, dtype=torch.long).expand(many)
    ends = torch.tensor([0, *[many] * (10 if layout is torch.sparse_csr else 8)])
    state["fc.weight"] = (
        torch.sparse_coo_tensor(index.expand(2, many), numbers, (10, 8), check_invariants=False)
        if layout is torch.sparse_coo
        else torch.sparse_compressed_tensor(ends, index, numbers, (10, 8), layout=layout, check_invariants=False)
    )
    with pytest.raises(ModelError, match=r"its tensors would take [0-9,]+, most of them fc\.weight"):
        loaded(tmp_path, state)


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_whole_numbers_are_no_weights(tmp_path: Path, kind: torch.dtype) -> None:
    state = made().state_dict()
    state["stem.weight"] = state["stem.weight"].to(kind)
    with pytest.raises(ModelError, match=rf"stem\.weight in .* holds {str(kind)[6:]} where floating-point"):
        loaded(tmp_path, state)


def test_quantized_weights_are_refused_by_name(tmp_path: Path) -> None:
    state = made().state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state["stem.weight"] = torch.quantize_per_tensor(state["stem.weight"], 0.1, 0, torch.qint8)
        with pytest.raises(ModelError, match=r"holds quantized weights \(stem\.weight\)"):
            loaded(tmp_path, state)
        dynamic = torch.ao.quantization.quantize_dynamic(made(), {nn.Linear})
    with pytest.raises(ModelError, match=r"holds quantized weights \(fc\._packed_params"):
        loaded(tmp_path, dynamic.state_dict())


def test_numbers_of_lower_precision_are_read(tmp_path: Path) -> None:
    for kind in (torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2):
        net = made()
        model = loaded(
            tmp_path,
            {name: value.to(kind) if value.is_floating_point() else value for name, value in net.state_dict().items()},
        )
        torch.testing.assert_close(model.net.stem.weight, net.stem.weight.to(kind).float(), rtol=0, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["block.conv.weight", "norm.running_var", "fc.bias"])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, value: float, where: str) -> None:
    net = made()
    state = net.state_dict()
    state[where].view(-1)[:3] = value
    with pytest.raises(ModelError, match=rf"{where} in .* has 3 values of [\d,]+ that are NaN or infinite"):
        loaded(tmp_path, state)
    save_checkpoint(tmp_path / "own.safetensors", net, described())
    with pytest.raises(ModelError, match="NaN or infinite"):
        load_network(str(tmp_path / "own.safetensors"))


def test_large_weights_whose_sum_overflows_are_numbers(tmp_path: Path) -> None:
    net = made()
    with torch.no_grad():
        net.fc.weight.fill_(3e38)
    torch.testing.assert_close(loaded(tmp_path, net.state_dict()).net.fc.weight, net.fc.weight, rtol=0, atol=0)


def test_layers_of_other_people_s_networks_have_a_hash(tmp_path: Path) -> None:
    class WithState(nn.Conv2d):
        def __init__(self, width: int, *, state: object) -> None:  # another signature than Conv2d's
            super().__init__(3, width, 3)
            self.state = state

        def get_extra_state(self) -> object:
            return self.state

        def set_extra_state(self, state: object) -> None:
            self.state = state

    def hashed(net: nn.Module) -> str:
        return Model("x", net, {"source": "module", "name": "x"}, "as given", 2).weights_hash

    torch.manual_seed(0)
    one = nn.Sequential(WithState(4, state={"scale": torch.ones(2), "calls": 3}))
    other = copy.deepcopy(one)
    assert hashed(one) == hashed(other)
    other[0].state["calls"] = 4
    assert hashed(one) != hashed(other)
    with pytest.raises(ModelError, match=r"the state '0\._extra_state' of the network cannot be kept"):
        hashed(nn.Sequential(WithState(4, state=lambda: 3)))
    with pytest.raises(ModelError, match=r"cannot hold 0\._extra_state"):
        save_checkpoint(tmp_path / "x.safetensors", one, described())
    save_checkpoint(tmp_path / "x.safetensors", one, {"source": "module", "name": "x", "structure": "1"})
    assert set(read_state_dict(tmp_path / "x.safetensors")[0]) == {"0.weight", "0.bias"}
    with pytest.raises(ModelError, match=r"not understood here: architecture\.num_classes is missing"):
        load_network(str(tmp_path / "x.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = torch.ao.quantization.quantize_dynamic(made(), {nn.Linear})
    assert hashed(dynamic) == hashed(copy.deepcopy(dynamic)) != hashed(made())
    sparse = nn.Sequential(nn.Conv2d(3, 4, 3))
    sparse.register_buffer("mask", torch.eye(3).to_sparse())
    assert hashed(sparse) == hashed(copy.deepcopy(sparse))


@pytest.mark.parametrize("quantized", [False, True])
def test_a_network_with_state_that_is_no_tensor_is_measured(tmp_path: Path, quantized: bool) -> None:
    class Noted(nn.Conv2d):
        def __init__(self, width: int, *, note: str) -> None:
            super().__init__(3, width, 3)
            self.note = note

        def get_extra_state(self) -> dict[str, str]:
            return {"note": self.note}

        def set_extra_state(self, state: dict[str, str]) -> None:
            self.note = state["note"]

    torch.manual_seed(0)
    layers = [Noted(2, note="x"), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)]
    net = nn.Sequential(*layers).eval()
    if quantized:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
    images = [(torch.randn(3, 8, 8), index % 3) for index in range(12)]
    # Dynamic quantization takes its scale from all images of a batch.
    table = ablate(net, images, "location", grid="all", cache=tmp_path, jobs=1, batch_size=6 if quantized else None)
    assert len(table) == 6
    assert net[0].note == "x"


# Formats --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("net.onnx", "ONNX"),
        ("net.npz", "NumPy"),
        ("net.pt2", r"torch\.export"),
        ("net.h5", "HDF5"),
        ("NET.H5", "HDF5"),
        ("net.tflite", "TensorFlow Lite"),
        ("net.keras", "Keras"),
        ("model.ckpt.index", "TensorFlow"),
        ("net.msgpack", "Flax"),
        ("net.gguf", "GGUF"),
        ("net.json", "JSON"),
    ],
)
def test_formats_that_are_not_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, wanted: str
) -> None:
    (tmp_path / name).write_bytes(b"\x08\x07whatever")
    monkeypatch.chdir(tmp_path)
    for model, weights in (("tiny", name), ("resnet18", name), (name, "default")):
        with pytest.raises(ModelError, match=f"{name} is an? .*{wanted}.*not read here; in the program that made it"):
            load_network(model, weights)
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        load_network("tiny", f"missing-{name}")


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.ones(3))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
        (npz(), "an archive of NumPy arrays"),
        (b"\x93NUMPY" + bytes(99), "a NumPy array"),
        (b"\x00\x00\x00\x00TFL3" + bytes(99), "TensorFlow Lite"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x1f\x8b\x08" + bytes(99), "compressed; unpack|unpack it first"),
        (b"GGUF" + bytes(99), "a GGUF file"),
    ],
)
def test_formats_under_the_name_of_a_checkpoint_are_named(tmp_path: Path, content: bytes, wanted: str) -> None:
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(ModelError, match=wanted):
        load_network("tiny", str(tmp_path / "net.pth"))


@pytest.mark.parametrize("name", ["NET.PTH", "net.Pt", "net.SafeTensors", "net.pkl"])
def test_endings_in_capitals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    net = made()
    save = save_file if name.lower().endswith("safetensors") else torch.save
    save(net.state_dict(), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    same(load_network("tiny", name), net)


# Strangers' files -----------------------------------------------------------------------------------------------------


def described(**more: Any) -> dict[str, Any]:
    return {"source": "builtin", "name": "tiny", "num_classes": 10, "options": {}, **more}


def own(tmp_path: Path, metadata: Any, net: nn.Module | None = None) -> str:
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    save_file((net or made()).state_dict(), tmp_path / "own.safetensors", metadata={"weanalysis": text})
    return str(tmp_path / "own.safetensors")


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({"norm": 3}, "architecture.norm is 3"),
        ({"norm": ["gn"]}, "architecture.norm is a list"),
        ({"attention": {"se": 1}}, "architecture.attention is a mapping"),
        ({"num_classes": "ten"}, "architecture.num_classes is 'ten'"),
        ({"num_classes": True}, "architecture.num_classes is True"),
        ({"num_classes": 10**12}, "num_classes is 1000000000000, not a whole number from 1 to 1,000,000"),
        ({"num_classes": 10**60}, "a number of more than 30 digits"),
        ({"name": ["tiny"]}, "architecture.name is a list"),
        ({"source": None}, "architecture.source is null"),
        ({"options": [1]}, "architecture.options is a list"),
        ({"options": {"width": [10**9]}}, "architecture.options.width is a list"),
        ({"options": {"width": 10**9}}, "architecture.options.width is 1000000000"),
        ({"options": {"x": {"y": {"z": {"a": {"b": 1}}}}}}, r"architecture.options.x is a mapping"),
        ({"excitation": "lwe"}, "architecture.excitation is 'lwe'"),
        ({"excitation": {"kind": 3}}, "architecture.excitation.kind is 3"),
        ({"excitation": {"kind": "lwe", "reduction": "many"}}, "excitation.reduction is 'many'"),
        ({"excitation": {"kind": "lwe", "layers": [3]}}, "architecture.excitation.layers is a list"),
        ({"pruned": [1]}, "architecture.pruned is a list"),
        ({"pruned": {"stem": 3}}, "architecture.pruned.stem is 3"),
        ({"pruned": {"stem": {"attributes": {"out_channels": "x"}, "shapes": {}}}}, "out_channels is 'x'"),
        ({"pruned": {"stem": {"attributes": {}}}}, "architecture.pruned.stem.shapes is missing"),
        ({"future": 1}, "architecture.future is no field"),
    ],
)
def test_a_description_of_other_types_is_one_line(tmp_path: Path, more: dict, wanted: str) -> None:
    with pytest.raises(ModelError, match=f"describes its network in a way that is not understood here: .*{wanted}"):
        load_network(own(tmp_path, {"architecture": described(**more)}))


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [
        ({"classes": "abc"}, "classes is 'abc'"),
        ({"classes": [1, 2]}, r"classes\[0\] is 1"),
        ({"classes": {"a": 1}}, "classes is a mapping"),
        ({"synsets": 3}, "synsets is 3"),
        ({"transform": "resize"}, "transform is 'resize'"),
        ({"transform": {"image_size": 10**9, "mean": [0, 0, 0], "std": [1, 1, 1]}}, "transform.image_size"),
        ({"transform": {"image_size": 32, "mean": "abc", "std": [1, 1, 1]}}, "transform.mean is 'abc'"),
        ({"transform": {"image_size": 32, "mean": [0, 0, 0], "std": [1, 1]}}, "transform.std is a list of 2"),
        ({"weights": ["a"]}, "weights is a list"),
        ({"notes": "note"}, "notes is 'note'"),
        ({"notes": [{}]}, r"notes\[0\] is a mapping"),
        ({"data": 7}, "data is 7"),
    ],
)
def test_what_is_said_beside_the_network_has_types_too(tmp_path: Path, extra: dict, wanted: str) -> None:
    with pytest.raises(ModelError, match=wanted):
        load_network(own(tmp_path, {"architecture": described(), **extra}))


@pytest.mark.parametrize(
    "text",
    [
        '{"architecture": ' + "[" * 1000 + "]" * 1000 + "}",
        '{"x": ' + '{"y": ' * 100 + "1" + "}" * 101,
        '{"architecture": {"num_classes": ' + "9" * 100_000 + "}}",
        '{"architecture": ',
        "[]",
        "\ud800",
        "nan",
    ],
    ids=["thousand deep", "hundred deep", "100,000 digits", "cut", "list", "surrogate", "word"],
)
def test_metadata_that_is_no_description(tmp_path: Path, text: str) -> None:
    try:
        name = own(tmp_path, text)
    except Exception:  # safetensors writes no surrogates
        assert text == "\ud800"
        return
    with pytest.raises(ModelError, match="damaged metadata"):
        load_network(name)


@pytest.mark.parametrize(
    "architecture",
    [
        {"source": "torchvision", "name": "resnet50", "num_classes": 1_000_000, "options": {}},
        {"source": "timm", "name": "resnet18", "num_classes": 10, "options": {"layers": [100_000, 2, 2, 2]}},
        {"source": "timm", "name": "vit_tiny_patch16_224", "num_classes": 10, "options": {"img_size": 100_000}},
        {"source": "timm", "name": "vit_tiny_patch16_224", "num_classes": 10, "options": {"embed_dim": 99_999}},
        {"source": "torchvision", "name": "wide_resnet50_2", "num_classes": 10, "options": {"width_per_group": 99_999}},
        {"source": "torchvision", "name": "densenet121", "num_classes": 10, "options": {"growth_rate": -3}},
        {"source": "timm", "name": "resnet18", "num_classes": 10, "options": {"layers": "abc"}},
        {"source": "builtin", "name": "tiny", "num_classes": 10, "options": {"width": 0.5}},
    ],
)
def test_networks_far_larger_than_their_file_are_not_built(tmp_path: Path, architecture: dict) -> None:
    name = own(tmp_path, {"architecture": architecture})
    began = time.perf_counter()
    with pytest.raises(ModelError):
        load_network(name)
    with pytest.raises(ModelError):
        load_network(name, "none")
    assert time.perf_counter() - began < 20


def test_names_of_classes_of_another_number_are_left_out(tmp_path: Path) -> None:
    model = load_network(own(tmp_path, {"architecture": described(), "classes": ["a", "b"]}))
    assert model.classes is None and said(model, "names 2 classes for 10 outputs")
    names = [f"\udcff{index}" for index in range(10)]
    model = load_network(own(tmp_path, {"architecture": described(), "classes": names}))
    assert model.classes is not None and model.classes[0] == "\\xff0"


def test_a_state_dict_that_holds_itself_is_searched_once(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content |= {key: content for key in ("state_dict", "model", "net", "network", "module", "ema", "params")}
    began = time.perf_counter()
    with pytest.raises(ModelError, match="holds no state dict"):
        loaded(tmp_path, content)
    level: dict[str, Any] = {"x": 1}
    for _ in range(12):
        level = {key: dict(level) for key in ("state_dict", "model", "net", "network", "module", "ema", "params")}
    with pytest.raises(ModelError):
        loaded(tmp_path, level)
    assert time.perf_counter() - began < 5


def test_a_view_that_repeats_one_row_is_not_expanded(tmp_path: Path) -> None:
    state = made().state_dict()
    state["fc.weight"] = torch.ones(1, 8).expand(15_000_000, 8)
    state["fc.bias"] = torch.ones(1).expand(15_000_000)
    with pytest.raises(ModelError, match=r"its tensors would take [\d,]+, most of them fc\.weight \(15000000x8\)"):
        loaded(tmp_path, state)
    state["fc.weight"], state["fc.bias"] = torch.ones(1, 8).expand(10, 8), torch.ones(10)
    assert loaded(tmp_path, state).net.fc.weight.shape == (10, 8)


def test_an_archive_that_would_fill_the_memory_is_not_unpacked(tmp_path: Path) -> None:
    torch.save({"stem.weight": torch.zeros(30_000_000)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as source,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    (tmp_path / "plain.pth").unlink()
    with pytest.raises(ModelError, match=r"would take 120,\d+,\d+ bytes of memory, and has \d+,\d+; it was not loaded"):
        load_network("tiny", str(tmp_path / "bomb.pth"))


@pytest.mark.parametrize("name", ["a\nb", "x" * 100_000, ".".join("a" * 50_000), "\x1b[31m", ""])
def test_whatever_tensors_are_called_the_answer_is_one_short_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError) as caught:
        loaded(tmp_path, {**{f"{name}{index}": torch.ones(1) for index in range(40)}})
    line = str(caught.value)
    assert line.isprintable() and len(line) < 8000


def test_old_checkpoints_load_as_before(tmp_path: Path) -> None:
    """As the first version wrote them, with every field that it knew."""
    net = excite(made(), "lwe", reduction=2)
    old = {
        "architecture": described(excitation=excitation_of(net)),
        "classes": [str(index) for index in range(10)],
        "synsets": None,
        "weights": "mine",
        "notes": ["a line"],
        "data": "digits",
        "run": "one",
        "epoch": 3.0,
        "top1": 98.5,
        "recipe": {"model": "tiny", "epochs": 10.0},
        "transform": {
            "image_size": 32,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.2, 0.2, 0.2],
            "resize_size": None,
            "interpolation": "bilinear",
            "squash": False,
        },
    }
    model = load_network(own(tmp_path, old, net))
    same(model, net)
    assert (model.weights, model.notes, model.classes) == ("mine", ["a line"], tuple(map(str, range(10))))
    assert read_state_dict(own(tmp_path, old, net))[1] == old


def test_every_refusal_is_ours(tmp_path: Path) -> None:
    """Values of every type in every field of a description: read, or one line."""
    values = [None, True, 0, -1, 2.5, "", "x", [], {}, [1, "a", None], {"a": {}}, 10**30, float("nan"), ["x"] * 70]
    whole = {
        "architecture": described(excitation={"kind": "lwe", "layers": None}, pruned={}, norm=None, attention=None),
        "classes": None,
        "transform": {"image_size": 8, "mean": [0, 0, 0], "std": [1, 1, 1]},
        "weights": "w",
        "notes": [],
    }
    outcomes = []
    for path in (
        ["architecture"],
        *(["architecture", key] for key in whole["architecture"]),
        *(["architecture", "excitation", key] for key in ("kind", "layers", "eps", "reduction")),
        *([key] for key in whole if key != "architecture"),
        *(["transform", key] for key in ("image_size", "mean", "squash", "interpolation")),
    ):
        for value in values:
            changed = copy.deepcopy(whole)
            place: Any = changed
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
            try:
                load_network(own(tmp_path, changed))
                outcomes.append("loaded")
            except WeanalysisError as error:
                assert str(error).isprintable()
                outcomes.append("refused")
    assert outcomes.count("refused") > 150


def test_a_safetensors_file_whose_name_is_no_utf_8_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"n\xff.safetensors")
    path.write_bytes(save({"a": torch.zeros(1)}))
    with pytest.raises(ModelError, match=r"n\\udcff.safetensors is not named in UTF-8, .* rename it"):
        read_state_dict(path)


@pytest.mark.parametrize("name", ["mnasnet0_5", "shufflenet_v2_x0_5", "squeezenet1_1", "resnext29_16x64d"])
def test_weights_are_put_where_load_state_dict_puts_them(tmp_path: Path, name: str) -> None:
    """MNASNet's own loading wants a version that files of weights alone do not say."""
    net = load_network(name, "none", 10).net
    torch.save(net.state_dict(), tmp_path / "file.pth")
    loaded = load_network(name, str(tmp_path / "file.pth")).net
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in net.state_dict().items())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(net(images), loaded(images))
