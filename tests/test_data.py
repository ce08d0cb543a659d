"""Images: the transform against torchvision's and timm's, the sources, order, fingerprint, classes and bad folders."""

from __future__ import annotations

import io
import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

import weanalysis._torchvision  # noqa: F401

# isort: split
from torchvision import datasets as torchvision_datasets
from torchvision.datasets import ImageFolder
from torchvision.models._meta import _IMAGENET_CATEGORIES
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from weanalysis.cache import Cache
from weanalysis.data import SOURCES, Transform, fit_classes, list_sources, load_data
from weanalysis.errors import DataError

HALF = (0.5, 0.5, 0.5)


def picture(seed: int, size: tuple[int, int] = (12, 12)) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_folder(root: Path, classes: dict[str, int], size: tuple[int, int] = (12, 12)) -> Path:
    seed = 0
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            picture(seed, size).save(root / name / f"{number}.png")
            seed += 1
    return root


def network(num_classes: int, classes: tuple[str, ...] | None = None, **more: object) -> SimpleNamespace:
    return SimpleNamespace(num_classes=num_classes, classes=classes, transform=None, net=None, **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "pets", {"cat": 3, "dog": 4})


# --- the transform


@pytest.mark.parametrize("size", [(300, 200), (200, 333), (224, 224), (64, 64), (256, 256)])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_transform_equals_torchvisions_preset_bit_for_bit(size, mode):
    preset = ImageClassification(crop_size=224, resize_size=232, interpolation=InterpolationMode(mode))
    transform = Transform.from_torchvision(preset)
    assert (transform.image_size, transform.resize_size, transform.interpolation) == (224, 232, mode)
    image = picture(1, size)
    assert torch.equal(transform(image), preset(image))


@pytest.mark.parametrize("crop_mode, crop_pct", [("center", 0.875), ("center", 1.0), ("squash", 0.9), ("squash", 1.0)])
def test_transform_equals_timms_evaluation_transform(crop_mode, crop_pct):
    from timm.data import create_transform

    config = {
        "input_size": (3, 96, 96),
        "interpolation": "bicubic",
        "mean": (0.4, 0.5, 0.6),
        "std": (0.2, 0.3, 0.4),
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
    }
    for size in [(150, 100), (96, 96)]:
        image = picture(2, size)
        assert torch.equal(Transform.from_timm(config)(image), create_transform(**config, is_training=False)(image))


@pytest.mark.parametrize("changed", [{"input_size": (1, 96, 96)}, {"input_size": (3, 96, 64)}, {"crop_mode": "border"}])
def test_timm_configurations_that_cannot_be_carried_out_are_refused(changed):
    config = {"input_size": (3, 96, 96), "mean": HALF, "std": HALF, "crop_pct": 1.0, **changed}
    with pytest.raises(DataError, match="supported"):
        Transform.from_timm(config)


def test_a_picture_of_the_right_size_is_not_resampled():
    image = picture(3, (32, 32))
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    transform = Transform(32, (0.0, 0.25, 0.5), (1.0, 0.5, 0.25))
    assert torch.equal(transform.pixels(image), pixels)
    expected = (pixels.float() / 255 - torch.tensor([0, 0.25, 0.5])[:, None, None]) / torch.tensor([1, 0.5, 0.25])[
        :, None, None
    ]
    assert torch.equal(transform(image), expected)


def test_a_description_makes_the_same_transform_again():
    transform = Transform(64, HALF, (0.1, 0.2, 0.3), resize_size=70, interpolation="bicubic", squash=True)
    assert Transform.from_description(transform.describe()) == transform
    with pytest.raises(DataError, match="image_size"):
        Transform.from_description({"mean": HALF, "std": HALF})
    with pytest.raises(DataError, match="describes no transform"):
        Transform.from_description({**transform.describe(), "rotate": 90})


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"image_size": 0}, "image_size"),
        ({"image_size": 3.5}, "image_size"),
        ({"resize_size": 0}, "resize_size"),
        ({"mean": (0.5, 0.5)}, "mean"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean"),
        ({"mean": "0.5,0.5,0.5"}, "mean"),
        ({"std": (0.5, 0.5, 0.0)}, "greater than 0"),
        ({"interpolation": "bilinaer"}, "bilinear"),
    ],
)
def test_values_that_make_no_transform_are_refused(wrong, said):
    with pytest.raises(DataError, match=said):
        Transform(**{"image_size": 32, "mean": HALF, "std": HALF, **wrong})


def test_another_image_size_keeps_the_share_that_is_cut_off():
    assert Transform(224, HALF, HALF, resize_size=256).with_image_size(112).resize_size == 128
    assert Transform(224, HALF, HALF).with_image_size(112) == Transform(112, HALF, HALF)


# --- digits, order, batches


def test_digits_have_a_fixed_stratified_split():
    from sklearn.datasets import load_digits

    everything = load_digits()
    train, test = load_data("digits", split="train"), load_data("digits")
    assert (len(train), len(test)) == (1078, 719)
    numbers = [{int(data.label(i).removeprefix("digits #")) for i in range(len(data))} for data in (train, test)]
    assert numbers[0] | numbers[1] == set(range(1797)) and not numbers[0] & numbers[1]
    shares = np.bincount(test.targets) / np.bincount(everything.target)
    assert np.all(np.abs(shares - 0.4) < 0.01)
    for i in (0, 100, 718):
        number = int(test.label(i).removeprefix("digits #"))
        assert test[i][1] == test.targets[i] == everything.target[number]
        assert np.array_equal(np.asarray(test.picture(i))[..., 0], np.round(everything.images[number] * 255 / 16))
    assert test.classes == tuple("0123456789") and test[0][0].shape == (3, 32, 32)
    assert load_data("digits", image_size=48)[0][0].shape == (3, 48, 48)


def test_digits_transform_has_the_mean_and_std_of_the_training_pictures():
    train = load_data("digits", split="train")
    pixels = np.stack([np.asarray(train.picture(i)) for i in range(len(train))]) / 255
    assert np.allclose(pixels.mean((0, 1, 2)), train.transform.mean, atol=5e-5)
    assert np.allclose(pixels.std((0, 1, 2)), train.transform.std, atol=5e-5)


def test_the_served_order_is_a_permutation_of_the_seed_and_num_images_a_prefix_of_it():
    whole, few, other = load_data("digits"), load_data("digits", num_images=50), load_data("digits", seed=1)
    assert sorted(whole.ids) == list(range(719)) and list(whole.ids) != list(range(719))
    assert len(few) == 50 and np.array_equal(few.ids, whole.ids[:50])
    assert np.array_equal(few.targets, whole.targets[:50])
    assert torch.equal(few[49][0], whole[49][0]) and few.label(49) == whole.label(49)
    assert not np.array_equal(other.ids, whole.ids) and sorted(other.ids) == list(range(719))
    assert whole.fingerprint == few.fingerprint == other.fingerprint
    places = {whole.ids[i]: whole.label(i) for i in range(719)}
    assert [places[other.ids[i]] for i in range(719)] == [other.label(i) for i in range(719)]


def test_more_images_than_there_are_are_noted_and_fewer_than_one_refused():
    data = load_data("digits", num_images=1000)
    assert len(data) == 719 and "719" in data.notes[0] and "1,000" in data.notes[0]
    with pytest.raises(DataError, match="give 1 or more"):
        load_data("digits", num_images=0)
    with pytest.raises(DataError, match="seed"):
        load_data("digits", seed=-1)
    with pytest.raises(DataError, match="unknown split"):
        load_data("digits", split="tset")


@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_batch_equals_its_images(folder, num_threads):
    data = load_data(f"imagefolder:{folder}", image_size=8)
    images, targets = data.batch(2, 100, num_threads)
    assert images.shape == (5, 3, 8, 8) and targets.dtype == torch.int64
    for position in range(5):
        image, target = data[2 + position]
        assert torch.equal(images[position], image) and targets[position] == target
    assert [len(x) for x in data.batch(7, 9)] == [0, 0]


def test_images_work_as_a_map_style_dataset_and_travel_small(folder):
    data = load_data(f"imagefolder:{folder}")
    loader = torch.utils.data.DataLoader(data, batch_size=7)
    images, targets = next(iter(loader))
    assert torch.equal(images, data.batch(0, 7)[0]) and targets.tolist() == data.targets.tolist()
    assert len(list(data)) == 7 and data[-1][1] == data[6][1]
    with pytest.raises(IndexError):
        data[7]
    travelled = pickle.dumps(data)
    assert len(travelled) < 4000
    assert torch.equal(pickle.loads(travelled)[3][0], data[3][0])
    image, target = data.raw(3)
    assert (image.mode, image.size, target) == ("RGB", (12, 12), data.targets[3])


# --- the transform that is chosen


def test_the_models_transform_is_used_and_flags_override_single_fields(folder):
    transform = Transform(16, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), resize_size=20, interpolation="bicubic")
    model = network(2)
    model.transform = transform
    spec = f"imagefolder:{folder}"
    assert load_data(spec, model=model).transform == transform
    changed = load_data(spec, model=model, mean=HALF, image_size=8).transform
    assert changed == Transform(8, HALF, (0.4, 0.5, 0.6), resize_size=10, interpolation="bicubic")
    with pytest.raises(DataError, match="std"):
        load_data(spec, std=())


def test_folders_without_a_transform_keep_their_size_if_square_else_are_treated_as_imagenet(tmp_path):
    square = make_folder(tmp_path / "square", {"a": 1, "b": 1}, (20, 20))
    wide = make_folder(tmp_path / "wide", {"a": 1, "b": 1}, (30, 20))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    data = load_data(f"imagefolder:{square}")
    assert data.transform == Transform(20, mean, std) and not data.notes
    data = load_data(f"imagefolder:{wide}")
    assert data.transform == Transform(224, mean, std, resize_size=256) and "--image-size" in data.notes[0]
    assert not load_data(f"imagefolder:{wide}", image_size=32).notes


# --- folders


def test_a_folder_is_read_by_torchvisions_rules(tmp_path):
    root = make_folder(tmp_path / "pets", {"dog": 2, "Cat": 2, "bird": 1})
    make_folder(root / "dog" / "puppies", {"deep": 1})
    (root / "dog" / "notes.txt").write_text("not a picture, by its name")
    picture(9).convert("L").save(root / "Cat" / "grey.JPG")
    expected = ImageFolder(str(root))
    data = load_data(f"imagefolder:{root}")
    assert data.classes == tuple(expected.classes) == ("Cat", "bird", "dog")
    assert len(data) == len(expected) == 7
    for position, index in enumerate(data.ids):
        path, target = expected.samples[index]
        assert (root / data.label(position), data.targets[position]) == (Path(path), target)
        assert np.array_equal(np.asarray(data.picture(position)), np.asarray(expected[index][0]))


def test_split_folders_are_picked_from(tmp_path):
    make_folder(tmp_path / "train", {"a": 3, "b": 3})
    make_folder(tmp_path / "val", {"a": 1, "b": 1})
    (tmp_path / "meta").mkdir()
    assert [len(load_data(f"imagefolder:{tmp_path}", split=split)) for split in ("train", "test")] == [6, 2]
    make_folder(tmp_path / "test", {"a": 2, "b": 2})
    assert len(load_data(f"imagefolder:{tmp_path}")) == 4
    whole = load_data(f"imagefolder:{tmp_path / 'val'}", split="train")
    assert len(whole) == 2 and "all of it" in whole.notes[0]


def test_a_test_folder_without_classes_is_not_taken_for_a_class(tmp_path):
    make_folder(tmp_path / "train", {"a": 2, "b": 2})
    (tmp_path / "test").mkdir()
    picture(0).save(tmp_path / "test" / "0.png")
    with pytest.raises(DataError, match=r"none in test/.*imagefolder:.*train"):
        load_data(f"imagefolder:{tmp_path}")


def test_classes_called_train_and_test_are_classes(tmp_path):
    make_folder(tmp_path, {"train": 1, "test": 1, "bus": 1})
    assert load_data(f"imagefolder:{tmp_path}").classes == ("bus", "test", "train")


def test_imagenet_is_found_with_and_without_its_split_folders(tmp_path):
    wnids = {"n01440764": 1, "n01443537": 2}
    make_folder(tmp_path / "a" / "val", wnids)
    make_folder(tmp_path / "a" / "train", {name: 3 for name in wnids})
    make_folder(tmp_path / "b", wnids)
    data = load_data(f"imagenet:{tmp_path / 'a'}")
    assert len(data) == len(load_data(f"imagenet:{tmp_path / 'b'}")) == 3
    assert len(load_data(f"imagenet:{tmp_path / 'a'}", split="train")) == 6
    assert (data.transform.image_size, data.transform.resize_size) == (224, 256)
    assert data.classes == tuple(wnids)
    with pytest.raises(DataError, match="train/"):
        load_data(f"imagenet:{tmp_path / 'b'}", split="train")
    make_folder(tmp_path / "b", {"cat": 1})
    with pytest.raises(DataError, match=r"'cat'.*imagefolder:DIR"):
        load_data(f"imagenet:{tmp_path / 'b'}")


# --- bad input


def test_unknown_data_offers_the_nearest_names():
    with pytest.raises(DataError, match="did you mean digits"):
        load_data("digit")
    with pytest.raises(DataError, match="imagefolder:DIR"):
        load_data("/some/folder")
    with pytest.raises(DataError, match="nothing after"):
        load_data("digits:3")
    assert [one["name"] for one in list_sources()] == list(SOURCES)
    assert all(one["syntax"].startswith(one["name"]) and one["what"] for one in list_sources())


@pytest.mark.parametrize("source", ["imagefolder", "imagenet", "cifar10"])
def test_a_missing_folder_is_named(source, tmp_path):
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        load_data(f"{source}:{tmp_path / 'nowhere'}")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is no folder"):
        load_data(f"{source}:{tmp_path / 'file'}")


def test_a_folder_needs_to_be_named():
    with pytest.raises(DataError, match="imagefolder:DIR"):
        load_data("imagefolder:")


def test_folders_without_pictures_or_with_one_class_are_refused(tmp_path):
    with pytest.raises(DataError, match="no class folders"):
        load_data(f"imagefolder:{tmp_path}")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "readme.txt").touch()
    with pytest.raises(DataError, match="no pictures in its class folders"):
        load_data(f"imagefolder:{tmp_path}")
    picture(0).save(tmp_path / "cat" / "0.png")
    with pytest.raises(DataError, match="has one class \\(cat\\)"):
        load_data(f"imagefolder:{tmp_path}")
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match=r"without pictures .*'dog'"):
        load_data(f"imagefolder:{tmp_path}")


def test_a_file_that_is_no_picture_is_refused_or_left_out_and_noted(folder, tmp_path):
    spec, cache = f"imagefolder:{folder}", Cache(tmp_path / "cache")
    clean = load_data(spec).fingerprint
    (folder / "cat" / "bad.jpg").write_text("<html>404</html>")
    for _ in range(2):  # Found anew, then remembered.
        with pytest.raises(DataError, match=r"cat/bad.jpg \(a web page.*format.*\).*--skip-bad-images"):
            load_data(spec, cache=cache)
        data = load_data(spec, cache=cache, skip_bad_images=True)
        assert len(data) == 7 and any("cat/bad.jpg" in note for note in data.notes)
        assert "cat/bad.jpg" not in [data.label(i) for i in range(7)]
        assert data.fingerprint == clean
        assert all(data[i][1] == (data.label(i).startswith("dog")) for i in range(7))


def test_nothing_but_bad_files_is_refused_even_when_skipping(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").touch()
    with pytest.raises(DataError, match="no picture that can be read"):
        load_data(f"imagefolder:{tmp_path}", skip_bad_images=True)


def test_a_truncated_picture_is_named_when_read_and_can_be_skipped(folder, tmp_path):
    whole = io.BytesIO()
    picture(5, (200, 200)).save(whole, "JPEG")
    (folder / "cat" / "0.png").unlink()
    (folder / "cat" / "cut.jpg").write_bytes(whole.getvalue()[:3000])
    cache = Cache(tmp_path / "cache")
    data = load_data(f"imagefolder:{folder}", image_size=8, cache=cache)
    index = next(i for i in range(7) if data.label(i) == "cat/cut.jpg")
    for read in (lambda: data[index], lambda: data.batch(0, 7, num_threads=2)):
        with pytest.raises(DataError, match=r"cut.jpg cannot be read \(image file is truncated.*--skip-bad-images"):
            read()
    assert len(load_data(f"imagefolder:{folder}", image_size=8, cache=cache, skip_bad_images=True)) == 6


def test_a_picture_that_disappears_is_named(folder):
    data = load_data(f"imagefolder:{folder}")
    (folder / data.label(0)).unlink()
    with pytest.raises(DataError, match="No such file"):
        data[0]


# --- fingerprints


def test_the_fingerprint_follows_contents_names_labels_and_transform(tmp_path):
    first = make_folder(tmp_path / "first", {"cat": 2, "dog": 2})
    second = make_folder(tmp_path / "second", {"cat": 2, "dog": 2})

    def fingerprint(root: Path, **more: object) -> str:
        return load_data(f"imagefolder:{root}", **more).fingerprint

    before = fingerprint(first)
    assert before == fingerprint(second)
    assert len({before, fingerprint(first, mean=HALF), fingerprint(first, image_size=10)}) == 3
    (second / "cat" / "0.png").rename(second / "dog" / "9.png")
    assert fingerprint(second) != before
    (second / "dog" / "9.png").rename(second / "cat" / "0.png")
    assert fingerprint(second) == before
    (second / "cat" / "1.png").rename(second / "cat" / "2.png")
    assert fingerprint(second) != before
    (second / "cat" / "2.png").rename(second / "cat" / "1.png")
    assert fingerprint(second) == before
    picture(77).save(second / "cat" / "0.png")
    assert fingerprint(second) != before


def test_contents_are_hashed_once_until_a_file_changes(folder, tmp_path, monkeypatch):
    from weanalysis.data.pictures import FilePictures

    cache, spec, read = Cache(tmp_path / "cache"), f"imagefolder:{folder}", []
    examine = FilePictures.examine
    monkeypatch.setattr(FilePictures, "examine", lambda self, *a: read.append(self.label(a[0])) or examine(self, *a))

    first = load_data(spec, cache=cache)
    assert sorted(read) == sorted({first.label(i) for i in range(7)})
    read.clear()
    again = load_data(spec, cache=cache, mean=HALF)
    assert not read and again.content == first.content and again.fingerprint != first.fingerprint
    assert again.transform.image_size == 12

    path = folder / "dog" / "1.png"
    state, content = path.stat(), path.read_bytes()
    os.utime(path)
    assert load_data(spec, cache=cache).fingerprint == first.fingerprint and len(read) == 7
    # Same name, size and time of writing, other contents.
    path.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    read.clear()
    with pytest.raises(DataError, match=r"dog/1\.png"):
        load_data(spec, cache=cache)
    assert read

    (cache.data / "fingerprints.json").write_text("{broken")
    path.write_bytes(content)
    assert load_data(spec, cache=cache).fingerprint == first.fingerprint
    read.clear()
    assert load_data(spec).fingerprint == first.fingerprint and len(read) == 7


# --- classes


def test_classes_are_found_by_name_whatever_the_spelling(tmp_path):
    root = make_folder(tmp_path, {"Great_Dane": 1, "tench": 2})
    data = load_data(f"imagefolder:{root}", model=network(1000, tuple(_IMAGENET_CATEGORIES)))
    assert sorted(data.targets) == [0, 0, 246] and data.classes[246] == "Great Dane" and len(data.classes) == 1000
    assert all((data.targets[i] == 246) == data.label(i).startswith("Great") for i in range(3))
    plain = load_data(f"imagefolder:{root}")
    assert plain.fingerprint != data.fingerprint
    assert fit_classes(plain, network(1000, tuple(_IMAGENET_CATEGORIES))).fingerprint == data.fingerprint
    twice = fit_classes(data, network(1000, tuple(_IMAGENET_CATEGORIES)))
    assert twice.fingerprint == data.fingerprint and np.array_equal(twice.targets, data.targets)
    assert twice.notes == data.notes


def test_classes_are_found_by_wordnet_id(tmp_path):
    root = make_folder(tmp_path, {"n3": 1, "n1": 1})
    data = load_data(f"imagefolder:{root}", model=network(4, ("a", "b", "a", "c"), synsets=("n0", "n1", "n2", "n3")))
    assert {data.label(i)[:2]: int(data.targets[i]) for i in range(2)} == {"n1": 1, "n3": 3}
    assert data.classes == ("a", "b", "a", "c")
    nameless = load_data(f"imagefolder:{root}", model=network(4, None, synsets=("n0", "n1", "n2", "n3")))
    assert nameless.classes == ("n0", "n1", "n2", "n3") and nameless.targets.max() == 3


def test_all_names_known_in_another_order_are_mapped_by_name(folder):
    data = load_data(f"imagefolder:{folder}", model=network(2, ("dog", "cat")))
    assert all(data.classes[data.targets[i]] == data.label(i).split("/")[0] for i in range(7))
    same = load_data(f"imagefolder:{folder}", model=network(2, ("cat", "dog")))
    assert same.fingerprint == load_data(f"imagefolder:{folder}").fingerprint != data.fingerprint
    assert not same.notes


def test_as_many_unknown_names_as_outputs_are_taken_in_order_and_noted(folder):
    for names in (None, ("0", "1")):
        data = load_data(f"imagefolder:{folder}", model=network(2, names))
        assert data.classes == ("cat", "dog") and "from 0: cat, dog" in data.notes[0]
        assert all(data.targets[i] == data.label(i).startswith("dog") for i in range(7))


@pytest.mark.parametrize(
    "classes, model, said",
    [
        (("cat", "dog"), network(10), "2 classes, the network 10 outputs without names"),
        (("cat", "dog"), network(3, ("cat", "cow", "hen")), "called 'dog'"),
        (("cat", "dog", "hen"), network(2), "only 2 outputs"),
        (("crane", "tench"), network(3, ("crane", "tench", "Crane")), None),
        (("CRANE", "tench"), network(3, ("crane", "tench", "Crane")), "several of these are called 'CRANE'"),
        (("CAT", "cat", "dog"), network(9, ("cat", "dog", *"1234567")), "'CAT', 'cat' are the same output"),
        (("a", "b"), network(2, ("b", "c")), "called 'a'"),
    ],
)
def test_classes_that_cannot_be_placed_are_refused(tmp_path, classes, model, said):
    root = make_folder(tmp_path, {name: 1 for name in classes})
    if said is None:
        assert sorted(load_data(f"imagefolder:{root}", model=model).targets) == [0, 1]
        return
    with pytest.raises(DataError, match=said):
        load_data(f"imagefolder:{root}", model=model)


def test_imagenets_lists_of_synonyms_fit_torchvisions_names():
    from timm.data import ImageNetInfo

    from weanalysis.data.classes import match_classes

    info = ImageNetInfo()
    synonyms = [info.index_to_description(index) for index in range(1000)]
    assert synonyms[0] == "tench, Tinca tinca" and synonyms.count("crane") == 2
    match = match_classes(synonyms, 1000, _IMAGENET_CATEGORIES)
    assert np.array_equal(match.outputs, np.arange(1000))
    unique = [index for index in range(1000) if synonyms[index] != "crane"][::37]
    match = match_classes([synonyms[index] for index in unique], 1000, _IMAGENET_CATEGORIES)
    assert match.outputs.tolist() == unique
    with pytest.raises(DataError, match="'crane'"):
        match_classes(["crane", "crane", "tench"], 1000, _IMAGENET_CATEGORIES)


# --- CIFAR and Hugging Face


def write_cifar(root: Path, dataset: type, num_images: int) -> np.ndarray:
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (num_images, 3072), dtype=np.uint8)
    for name, _ in dataset.train_list + dataset.test_list:
        labels = [index % 10 for index in range(num_images)]
        with open(folder / name, "wb") as file:
            pickle.dump({"data": pixels, "labels": labels}, file)
    with open(folder / dataset.meta["filename"], "wb") as file:
        pickle.dump({dataset.meta["key"]: list("abcdefghij")}, file)
    return pixels


def test_cifar_is_read_from_its_unpacked_archive(tmp_path, monkeypatch):
    pixels = write_cifar(tmp_path, torchvision_datasets.CIFAR10, 12)
    with pytest.raises(DataError, match="no complete cifar10"):  # Checksums are held to before a pickle is opened.
        load_data(f"cifar10:{tmp_path}")
    monkeypatch.setattr(torchvision_datasets.cifar, "check_integrity", lambda *_: True)
    for place in (tmp_path, tmp_path / "cifar-10-batches-py"):
        data = load_data(f"cifar10:{place}")
        assert len(data) == 12 and data.classes == tuple("abcdefghij")
        assert data.transform.image_size == 32
        for position, index in enumerate(data.ids):
            assert np.array_equal(
                np.asarray(data.picture(position)), pixels[index].reshape(3, 32, 32).transpose(1, 2, 0)
            )
            assert data.targets[position] == index % 10
    assert len(load_data(f"cifar10:{tmp_path}", split="train")) == 60


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_failed_download_is_one_line_and_leaves_standard_output_alone(name, tmp_path, monkeypatch, capsys):
    def fail(*args: object, **options: object) -> None:
        print("Downloading")
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision_datasets.cifar, "download_and_extract_archive", fail)
    with pytest.raises(DataError, match=f"(?s)no route to host.*{name}:DIR") as raised:
        load_data(name, cache=Cache(tmp_path))
    assert "\n" not in str(raised.value) and capsys.readouterr().out == ""


@pytest.fixture
def offline_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    return datasets


def write_parquet(datasets, path: Path, count: int, label, names=("cat", "dog"), bad: int | None = None) -> list[bytes]:
    contents = []
    for number in range(count):
        file = io.BytesIO()
        picture(number).save(file, "PNG")
        contents.append(b"no picture" if number == bad else file.getvalue())
    feature = (
        datasets.ClassLabel(names=list(names))
        if names
        else datasets.Value("string" if isinstance(label(0), str) else "int64")
    )
    rows = {
        "photo": [{"bytes": content, "path": f"{number}.png"} for number, content in enumerate(contents)],
        "label": [label(number) for number in range(count)],
        "width": [12] * count,
    }
    features = datasets.Features({"photo": datasets.Image(), "label": feature, "width": datasets.Value("int64")})
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
    return contents


def test_a_hugging_face_folder_of_parquet_files(offline_hub, tmp_path):
    contents = write_parquet(offline_hub, tmp_path / "pets" / "data" / "test-0.parquet", 9, lambda n: n % 2)
    write_parquet(offline_hub, tmp_path / "pets" / "data" / "train-0.parquet", 5, lambda n: n % 2)
    spec, cache = f"hf:{tmp_path / 'pets'}", Cache(tmp_path / "cache")
    data = load_data(spec, cache=cache)
    assert len(data) == 9 and data.classes == ("cat", "dog") and data.transform.image_size == 12
    for position, index in enumerate(data.ids):
        assert data.label(position) == f"row {index}" and data.targets[position] == index % 2
        expected = np.asarray(Image.open(io.BytesIO(contents[index])))
        assert np.array_equal(np.asarray(data.picture(position)), expected)
    assert torch.equal(pickle.loads(pickle.dumps(data)).batch(0, 9, 2)[0], data.batch(0, 9)[0])
    assert len(load_data(spec, cache=cache, split="train")) == 5
    assert (cache.data / "fingerprints.json").exists()
    assert load_data(spec, cache=cache).fingerprint == load_data(spec).fingerprint == data.fingerprint
    assert load_data(spec, cache=cache, model=network(2, ("dog", "cat"))).targets[0] == 1 - data.targets[0]


def test_hugging_face_labels_may_be_words_or_numbers_and_splits_may_be_missing(offline_hub, tmp_path):
    write_parquet(offline_hub, tmp_path / "words" / "0.parquet", 4, lambda n: ("dog", "ant")[n % 2], names=None)
    write_parquet(offline_hub, tmp_path / "numbers" / "0.parquet", 4, lambda n: n % 2 + 1, names=None)
    write_parquet(offline_hub, tmp_path / "hidden" / "0.parquet", 4, lambda n: -1, names=None)
    cache = Cache(tmp_path / "cache")
    words = load_data(f"hf:{tmp_path / 'words'}", cache=cache)
    assert words.classes == ("ant", "dog") and "train split" in words.notes[0]
    assert all(words.targets[i] == 1 - words.ids[i] % 2 for i in range(4))
    numbers = load_data(f"hf:{tmp_path / 'numbers'}", cache=cache)
    assert numbers.classes == ("0", "1", "2") and sorted(numbers.targets) == [1, 1, 2, 2]
    with pytest.raises(DataError, match="without a label"):
        load_data(f"hf:{tmp_path / 'hidden'}", cache=cache)


def test_labels_are_part_of_the_fingerprint(offline_hub, tmp_path):
    fingerprints = []
    for name, swapped in (("first", 0), ("second", 0), ("third", 1)):
        write_parquet(offline_hub, tmp_path / name / "test.parquet", 4, lambda n, swapped=swapped: (n + swapped) % 2)
        fingerprints.append(load_data(f"hf:{tmp_path / name}", cache=Cache(tmp_path / "cache")).fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_a_hugging_face_folder_of_pictures(offline_hub, tmp_path):
    root = make_folder(tmp_path / "pets" / "test", {"cat": 3, "dog": 2}).parent
    data = load_data(f"hf:{root}", cache=Cache(tmp_path / "cache"))
    assert len(data) == 5 and data.classes == ("cat", "dog") and sorted(data.targets) == [0, 0, 0, 1, 1]
    before, path = data.fingerprint, root / "test" / "cat" / "0.png"
    written = path.stat().st_mtime_ns
    picture(99).save(path)
    os.utime(path, ns=(written, written))
    assert load_data(f"hf:{root}", cache=Cache(tmp_path / "cache")).fingerprint != before


def test_hugging_face_pictures_are_upright_as_the_library_shows_them(offline_hub, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    for name in ("cat", "dog"):
        (tmp_path / "pets" / "test" / name).mkdir(parents=True)
        exif = {"exif": turned} if name == "cat" else {}
        picture(5, (12, 8)).save(tmp_path / "pets" / "test" / name / "0.png", **exif)
    data = load_data(f"hf:{tmp_path / 'pets'}", cache=Cache(tmp_path / "cache"))
    assert any("1 picture (row 0) has an EXIF orientation, which is applied" in note for note in data.notes)
    library = offline_hub.load_dataset(str(tmp_path / "pets"), cache_dir=str(tmp_path / "other"))["test"]
    for served, row in enumerate(data.ids):
        assert np.array_equal(np.asarray(data.picture(served)), np.asarray(library[int(row)]["image"].convert("RGB")))
    folder = load_data(f"imagefolder:{tmp_path / 'pets'}")
    assert {folder.picture(i).size for i in range(2)} == {(12, 8)} and folder.content != data.content


def test_numbers_that_are_no_class_index_are_refused(offline_hub, tmp_path):
    write_parquet(offline_hub, tmp_path / "ids" / "0.parquet", 4, lambda n: 10**9 + n, names=None)
    with pytest.raises(DataError, match="1,000,000,003 in column 'label', which is no class index"):
        load_data(f"hf:{tmp_path / 'ids'}", cache=Cache(tmp_path / "cache"))


def test_bad_rows_of_a_hugging_face_dataset_are_named_and_skipped(offline_hub, tmp_path):
    write_parquet(offline_hub, tmp_path / "pets" / "test.parquet", 6, lambda n: n % 2, bad=3)
    spec = f"hf:{tmp_path / 'pets'}"
    with pytest.raises(DataError, match=r"row 3 \(not a picture"):
        load_data(spec, cache=Cache(tmp_path / "cache"))
    data = load_data(spec, cache=Cache(tmp_path / "cache"), skip_bad_images=True)
    assert sorted(data.label(i) for i in range(5)) == [f"row {i}" for i in (0, 1, 2, 4, 5)]
    assert all(data.targets[i] == int(data.label(i)[-1]) % 2 for i in range(5))


def test_hugging_face_datasets_that_cannot_be_used_are_refused(offline_hub, tmp_path, monkeypatch):
    table = offline_hub.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    (tmp_path / "texts").mkdir()
    table.to_parquet(str(tmp_path / "texts" / "test.parquet"))
    with pytest.raises(DataError, match="no picture column among text, label"):
        load_data(f"hf:{tmp_path / 'texts'}", cache=Cache(tmp_path / "cache"))
    with pytest.raises(DataError, match="hf:no/such-data cannot be loaded") as raised:
        load_data("hf:no/such-data")
    assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match="hf:NAME"):
        load_data("hf:")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        load_data("hf:mnist")
