"""Networks that classify each pixel: torchvision's and our own, their excitation, and how they are trained."""

import math

import numpy as np
import pytest
import torch
from command_line import run as command
from torch.nn import functional as F

import weanalysis as wa
from weanalysis.ablation.studies import make_study
from weanalysis.cache import Cache
from weanalysis.data import MaskData
from weanalysis.data.masks import VOID, ArrayMasks
from weanalysis.data.pictures import ArrayPictures
from weanalysis.errors import ModelError, TrainingError
from weanalysis.excitation import excite, fold
from weanalysis.models import build, list_models, load_network
from weanalysis.training import Recipe, train
from weanalysis.training.masks import MASK_AUGMENTATIONS, TrainingMasks
from weanalysis.training.optimization import learning_rate
from weanalysis.training.scores import ClassScore, PixelScore

TORCHVISION = (
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet101",
    "deeplabv3_resnet50",
    "fcn_resnet101",
    "fcn_resnet50",
    "lraspp_mobilenet_v3_large",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three steps on scenes of digits, at half their size, with LWE; and the cache that it lies in."""
    cache = Cache(tmp_path_factory.mktemp("cache"))
    recipe = Recipe.from_preset(
        "scenes",
        model="fcn_resnet20",
        data="digit-scenes",
        image_size=16,
        epochs=0.1,
        warmup_epochs=0,
        excitation="lwe",
    )
    return train(recipe, cache, device="cpu"), cache


def test_torchvision_s_networks_are_listed_and_built_by_their_names():
    names = {one["name"]: one for one in list_models()}
    assert set(TORCHVISION) <= set(names) and names["deeplabv3_resnet50"]["source"] == "segmentation"
    with torch.device("meta"):
        for name in TORCHVISION:
            options = {} if name.startswith("lraspp") else {"aux_loss": True}
            net = build({"source": "segmentation", "name": name, "num_classes": 5, "options": options})
            assert any(key.startswith("aux_classifier") for key in net.state_dict()) == bool(options)
    with pytest.raises(ModelError, match="deeplabv3_resnet50"):
        load_network("deeplabv3_resnet5", "none")


@pytest.mark.parametrize("name", ["fcn_resnet20", "lraspp_mobilenet_v3_large"])
@pytest.mark.parametrize("kind", ["lwe", "mwe"])
def test_excited_and_folded_they_give_equal_outputs(name, kind):
    torch.manual_seed(0)
    net = load_network(name, "none", num_classes=5).net
    images = torch.randn(2, 3, 32, 32)
    excite(net, "we" if (name, kind) == ("lraspp_mobilenet_v3_large", "lwe") else kind)
    outputs = [net(images), fold(net)(images)]
    one, other = (each["out"] if isinstance(each, dict) else each for each in outputs)
    assert one.shape == (2, 5, 32, 32) and torch.equal(one, other)


def test_an_auxiliary_head_is_no_layer_of_a_study():
    net = load_network("fcn_resnet50", "none", num_classes=3, options={"aux_loss": True}).net
    study = make_study("layer", net)
    assert not any(layer.startswith("aux_classifier") for layer in study.layers)
    of_head = [why for layer, why in study.skipped if layer.startswith("aux_classifier")]
    assert len(of_head) == 2 and set(of_head) == {"of an auxiliary head, which helps to train and gives no answer"}


# Scores ---------------------------------------------------------------------------------------------------------------


def test_the_score_of_pixels_by_hand():
    torch.manual_seed(0)
    score = PixelScore(4)
    logits, targets = torch.randn(6, 4, 5, 5), torch.randint(3, (6, 5, 5))
    targets[:, 0] = VOID
    labelled = targets != VOID
    assert float(score.loss(logits, targets)) == pytest.approx(
        float(F.cross_entropy(logits, targets, ignore_index=VOID)), rel=1e-6
    )
    sums = sum(
        score.sums(score.total_loss(*part), *part) for part in zip(logits.split(2), targets.split(2), strict=True)
    )
    means = score.means(sums.tolist())
    said = logits.argmax(1)
    ious = [
        float(((said == c) & (targets == c)).sum() / (((said == c) & labelled) | (targets == c)).sum())
        for c in range(3)
    ]
    assert means["miou"] == pytest.approx(100 * np.mean(ious)) and sums[3] == 6
    void = torch.full_like(targets, VOID)
    assert float(score.loss(logits, void)) == 0 and math.isnan(
        score.means(score.sums(*[logits.sum(), logits, void]))["miou"]
    )
    assert ClassScore(3).means([2.0, 1.0, 2.0, 2.0])["top1"] == 50


def test_poly_is_the_share_of_steps_left():
    recipe = Recipe(model="fcn_resnet20", schedule="poly", epochs=10, warmup_epochs=1, learning_rate=2.0)
    rates = [learning_rate(recipe, step, 10, 100) for step in range(100)]
    assert rates[10] == 2.0 and rates[55] == pytest.approx(2 * 0.5**0.9) and rates == sorted(rates[:11]) + rates[11:]
    assert min(rates[10:]) == rates[-1] > 0 and all(np.diff(rates[10:]) < 0)


# Augmentation ---------------------------------------------------------------------------------------------------------


def marked(side: int = 24, width: int = 36) -> MaskData:
    """Pictures whose grey value says the class, 40 for each number more: so a mask can be told from its picture."""
    rng = np.random.default_rng(0)
    masks = np.kron(rng.integers(1, 6, (8, 2, 3)), np.ones((12, 12))).astype(np.uint8)[:, :side, :width]
    data = wa.load_data("digit-scenes", num_images=8)
    data.pictures = ArrayPictures("marked", masks * 40, np.arange(8))
    data.masks = ArrayMasks("marked", masks, np.arange(8))
    data.transform = data.transform.with_image_size(16)
    return data


@pytest.mark.parametrize("name", sorted(MASK_AUGMENTATIONS))
def test_a_picture_and_its_mask_are_changed_alike(name):
    data = marked()
    images = TrainingMasks(data, MASK_AUGMENTATIONS[name])
    seen = set()
    for index in range(8):
        picture, mask = images[index, 7 * index]
        again = images[index, 7 * index]
        assert torch.equal(again[0], picture) and torch.equal(again[1], mask)
        assert picture.shape == (3, 16, 16) and mask.shape == (16, 16) and mask.dtype == torch.int64
        assert picture.dtype == torch.uint8 and type(picture) is torch.Tensor
        grey, inside = picture.float().mean(0), mask != VOID
        # Away from edges, where interpolation mixes classes, the grey value is that of the class.
        if name != "crop-jitter-flip":
            near = (grey / 40 - mask).abs() < 0.3
            assert near[inside].float().mean() > 0.6
            assert (grey[~inside] < 200).all()
        seen.add(mask.numpy().tobytes())
    others = {images[0, seed][1].numpy().tobytes() for seed in range(6)}
    assert (len(others) == 1) == (name == "none") and len(seen) == 8


# Runs -----------------------------------------------------------------------------------------------------------------


def test_a_run_tells_the_mean_iou_by_epoch(trained):
    run, cache = trained
    metrics, result = run.metrics(), run.result
    assert metrics["val_miou"].between(0, 100).all() and metrics["val_top1"].isna().all()
    assert metrics["train_miou"].between(0, 100).all()
    assert result["miou"] == pytest.approx(metrics["val_miou"].iloc[-1]) and math.isnan(result["top1"])
    model = wa.load_model(str(run.checkpoint))
    assert model.classes[1] == "0" and model.architecture["excitation"]["kind"] == "lwe"
    data = wa.load_data("digit-scenes", model=model, num_images=6)
    assert data.transform.image_size == 16
    table = wa.ablate(model, data, "layer", layers="layer1*", cache=cache)
    assert (table["metric"] == "miou").all() and table.attrs["doubt"] is None
    # The loss of the last weights on all validation images, computed without the loop.
    whole = wa.load_data("digit-scenes", model=model)
    images, masks = whole.batch(0, 600)
    with torch.no_grad():
        loss = float(F.cross_entropy(model.net(images), masks))
    assert metrics["val_loss"].iloc[-1] == pytest.approx(loss, rel=1e-4)


def test_what_does_not_fit_is_one_line(trained, tmp_path, capsys):
    run, cache = trained
    for model, data, line in (
        ("resnet20", "digit-scenes", "resnet20 gives each image a class, and digit-scenes has masks, .* fcn_resnet20"),
        ("fcn_resnet20", "digits", "fcn_resnet20 gives each pixel a class, and digits has one class for each image"),
        (str(run.checkpoint), "digits", "fcn_resnet20 gives each pixel a class, and digits has"),
    ):
        with pytest.raises(ModelError, match=line):
            loaded = wa.load_model(model, "auto" if "/" in model else "none", data=data, cache=cache)
            wa.load_data(data, model=loaded)
        assert command("ablate", "--model", model, "--data", data, "--cache", str(tmp_path)) == 1
        assert "gives each" in capsys.readouterr().err
    with pytest.raises(ModelError, match="gives each image a class"):
        train(Recipe.from_preset("scenes", model="resnet20", data="digit-scenes"), cache, device="cpu")
    with pytest.raises(TrainingError, match="did you mean scale-crop-flip or crop-jitter-flip"):
        recipe = Recipe(model="fcn_resnet20", data="digit-scenes", augmentation="resized-crop-flip")
        train(recipe, cache, device="cpu")
    given = ("ablate", "--model", str(run.checkpoint), "--data", "digit-scenes", "--cache", str(tmp_path))
    for metric, line in (
        (
            "top1",
            "metric top1 is one of classification, and digit-scenes is data of segmentation: choose from loss, miou",
        ),
        ("iou:dog", "metric iou:dog: no class is called so; choose from background, 0, 1"),
    ):
        assert command(*given, "--images", "4", "--metric", metric) == 1
        assert line in " ".join(capsys.readouterr().err.split())
