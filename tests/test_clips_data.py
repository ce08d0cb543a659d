"""Inputs that are no pictures: arrays, signals, clips in memory, and clips on a disk in their data sets' layouts."""

from __future__ import annotations

import builtins
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run
from PIL import Image

from weanalysis.data import ArrayTransform, ClipTransform, Transform, load_data, transform_of
from weanalysis.data.clips import places_of
from weanalysis.data.sources import SOURCES
from weanalysis.errors import DataError
from weanalysis.training.images import AUGMENTATIONS, TrainingImages

SIZE = (16, 12)  # width, height


def frame(moment: int, shade: int = 0) -> Image.Image:
    """A frame that tells which one it is, and in which half it is dark."""
    pixels = np.full((SIZE[1], SIZE[0], 3), 20 * moment + 10, np.uint8)
    pixels[:, : SIZE[0] // 2, 2] = shade
    return Image.fromarray(pixels)


def write_frames(folder: Path, count: int, pattern: str = "{:05d}.jpg") -> None:
    folder.mkdir(parents=True)
    for moment in range(count):
        frame(moment).save(folder / pattern.format(moment + 1), quality=95)


def write_video(path: Path, count: int) -> None:
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for moment in range(count):
            for packet in stream.encode(av.VideoFrame.from_image(frame(moment))):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def moments(clip: torch.Tensor) -> list[int]:
    """Which frame each of a clip's (T, 3, H, W) is, by its shade."""
    return [round((float(one[0].float().mean()) - 10) / 20) for one in clip]


# Which frames are seen --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "count, wanted, sampling, places",
    [
        (10, 4, "dense", [3, 4, 5, 6]),
        (4, 4, "dense", [0, 1, 2, 3]),
        (2, 4, "dense", [0, 1, 1, 1]),
        (1, 3, "dense", [0, 0, 0]),
        (8, 4, "strided", [1, 3, 5, 7]),
        (37, 8, "strided", [2, 6, 11, 16, 20, 25, 30, 34]),
        (4, 4, "strided", [0, 1, 2, 3]),
        (2, 4, "strided", [0, 0, 1, 1]),
        (1, 3, "strided", [0, 0, 0]),
    ],
)
def test_places_of_the_middle(count: int, wanted: int, sampling: str, places: list[int]) -> None:
    assert places_of(count, wanted, sampling) == places


@pytest.mark.parametrize("count", [1, 3, 4, 9, 40])
def test_drawn_places_are_neighbours_or_one_of_each_part(count: int) -> None:
    torch.manual_seed(count)
    firsts = set()
    for _ in range(300):
        drawn = torch.rand(4)
        dense, strided = places_of(count, 4, "dense", drawn), places_of(count, 4, "strided", drawn)
        firsts.add(dense[0])
        assert dense == [min(dense[0] + k, count - 1) for k in range(4)]
        assert all(int(k * count / 4) <= place <= (k + 1) * count / 4 for k, place in enumerate(strided))
        assert max(dense + strided) < count
    assert firsts == set(range(max(1, count - 3)))


def test_a_clips_transform_does_to_each_frame_what_the_one_of_pictures_does() -> None:
    clips = load_data("moving-digits", num_images=3)
    assert isinstance(clips.transform, ClipTransform) and clips.transform.num_frames == 8
    plain = Transform(32, clips.transform.mean, clips.transform.std)
    images, targets = clips.batch(0, 3, num_threads=2)
    assert images.shape == (3, 3, 8, 32, 32) and targets.tolist() == clips.targets.tolist()
    frames = clips.picture(1).frames(range(8))
    assert torch.equal(images[1], torch.stack([plain(one) for one in frames], 1))
    assert torch.equal(clips[1][0], images[1])
    assert transform_of(clips.transform.describe()) == clips.transform
    fewer = load_data("moving-digits", num_images=3, frames=3, sampling="strided", image_size=20)
    assert fewer[0][0].shape == (3, 3, 20, 20) and fewer.fingerprint != clips.fingerprint
    assert len(pickle.loads(pickle.dumps(clips))) == 3


@pytest.mark.parametrize(
    "given, said",
    [
        ({"frames": 0}, "the number of frames is 0"),
        ({"frames": 99_999}, "1 to 4,096"),
        ({"sampling": "sparse"}, "unknown sampling 'sparse'"),
    ],
)
def test_a_choice_of_frames_that_cannot_be(given: dict, said: str) -> None:
    with pytest.raises(DataError, match=said):
        load_data("moving-digits", **given)


def test_pictures_have_no_frames_to_choose() -> None:
    with pytest.raises(DataError, match="pictures have no frames"):
        load_data("digits", frames=4)


# Digits that move, and digits as signals ------------------------------------------------------------------------------


def test_moving_digits_differ_in_the_order_of_their_frames_alone() -> None:
    moving = SOURCES["moving-digits"].find("", "test", None)
    clips, opposite = moving.pictures.array, [1, 0, 3, 2]
    assert clips.shape == (719, 8, 16, 16) and moving.classes == ("left", "right", "up", "down")
    for label in range(4):
        own = clips[moving.labels == label].astype(float)
        where = (own.sum(axis=2 if label < 2 else 3) * np.arange(16)).sum(-1) / own.sum((2, 3))
        steps = np.diff(where, axis=1)
        assert np.allclose(steps, 1 if label in (1, 3) else -1)
    # Shown backwards, the frames of a direction are spread over the canvas as those of the opposite one.
    for label in range(4):
        ours, theirs = clips[moving.labels == label], clips[moving.labels == opposite[label]]
        assert np.abs(ours[:, ::-1].mean((0, 2, 3)) - theirs.mean((0, 2, 3))).max() < 2
    again = SOURCES["moving-digits"].find("", "test", None)
    assert np.array_equal(again.pictures.array, clips) and np.bincount(moving.labels).min() > 140
    both = SOURCES["moving-digits"].find("digit", "test", None)
    assert len(both.classes) == 40 and np.array_equal(both.labels // 10, moving.labels)
    digits = SOURCES["digits"].find("", "test", None)
    assert np.array_equal(both.labels % 10, digits.labels) and both.classes[both.labels[0]].endswith(
        moving.classes[moving.labels[0]]
    )


def test_digit_signals_are_the_rows() -> None:
    signals, digits = (SOURCES[name].find("", "train", None) for name in ("digit-signals", "digits"))
    assert signals.pictures.array.shape == (1078, 1, 64)
    rows = np.round((signals.pictures.array.reshape(-1, 8, 8) + 1) * 8 * (255 / 16))
    assert np.array_equal(rows, digits.pictures.array) and np.array_equal(signals.labels, digits.labels)
    data = load_data("digit-signals", num_images=5)
    assert data.batch(1, 9)[0].shape == (4, 1, 64) and data.transform == ArrayTransform((1, 64))


@pytest.mark.parametrize("spec", ["moving-digits:digits", "digit-signals:8"])
def test_what_stands_behind_an_embedded_set(spec: str) -> None:
    with pytest.raises(DataError, match="is no data"):
        load_data(spec)


# Arrays ---------------------------------------------------------------------------------------------------------------


def write_arrays(path: Path, **arrays: object) -> str:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return f"arrays:{path}"


@pytest.mark.parametrize("shape", [(2, 9), (1, 6, 5), (3, 4, 6, 5)])
@pytest.mark.parametrize("kind", ["float64", "float16", "uint8", "int16", "bool"])
def test_arrays_are_taken_as_they_are(tmp_path: Path, shape: tuple[int, ...], kind: str) -> None:
    x = (np.random.default_rng(0).random((7, *shape)) * 5).astype(kind)
    y = np.array([0, 1, 2, 0, 1, 2, 1])
    data = load_data(write_arrays(tmp_path / "x.npz", x=x, y=y), seed=3)
    assert data.classes == ("0", "1", "2") and data.transform == ArrayTransform(shape)
    images, targets = data.batch(0, 7)
    assert torch.equal(images, torch.from_numpy(x[data.ids].astype(np.float32)))
    assert targets.tolist() == y[data.ids].tolist()
    assert transform_of(data.transform.describe()) == data.transform


def test_arrays_of_two_splits_with_names(tmp_path: Path) -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    spec = write_arrays(
        tmp_path / "x.npz", x_train=x, y_train=["b", "a", "b", "c"], x_test=x[:2] + 1, y_test=np.array(["a", "b"])
    )
    train, test = (load_data(spec, split=split) for split in ("train", "test"))
    assert train.classes == test.classes == ("a", "b", "c") and (len(train), len(test)) == (4, 2)
    assert train.batch(0, 1)[0].shape == (1, 1, 6) and "no side for channels" in train.notes[0]
    named = write_arrays(tmp_path / "n.npz", x=x, y=[0, 1, 0, 1], classes=["no", "yes", "perhaps"])
    assert load_data(named).classes == ("no", "yes", "perhaps")
    assert "for testing too" in load_data(named, split="train").notes[1]


@pytest.mark.parametrize(
    "arrays, said",
    [
        ({"x": np.zeros((3, 1, 4))}, "has no y"),
        ({"y": [0, 1]}, "has no x"),
        ({"x": np.zeros((3, 1, 4)), "y": [0, 1]}, "3 inputs and 2 classes"),
        ({"x": np.zeros((2, 1, 4)), "y": [0, -1]}, "runs from -1 to 0"),
        ({"x": np.zeros((2, 1, 4)), "y": [0, 10**8]}, "below 1,000,000"),
        ({"x": np.zeros((2, 1, 4)), "y": [0.0, 1.0]}, "y of .* is float64"),
        ({"x": np.zeros((2, 1, 4), complex), "y": [0, 1]}, "complex128"),
        ({"x": np.array([["a", "b"]] * 2), "y": [0, 1]}, "x of .* is <U1"),
        ({"x": np.array([{}, {}]), "y": [0, 1]}, "object values"),
        ({"x": np.zeros(2), "y": [0, 1]}, "x of .* is float64 of 2"),
        ({"x": np.zeros((2, 1, 2, 2, 2, 2)), "y": [0, 1]}, "1 to 3 sides behind C"),
        ({"x": np.zeros((0, 1, 4)), "y": np.zeros(0, int)}, "0 x 1 x 4"),
        ({"x": np.zeros((2, 1, 4)), "y": ["a", "b"], "classes": ["a", "c"]}, "'b', which classes does not name"),
        ({"x": np.zeros((2, 1, 4)), "y": [0, 3], "classes": ["a", "c"]}, "names 2, and y goes up to 3"),
        ({"x": np.zeros((2, 1, 4)), "y": [0, 1], "classes": ["a", "a"]}, "each once"),
        ({"x": np.full((2, 1, 4), np.nan), "y": [0, 1]}, "no picture that can be read"),
        ({"x": np.array([[[1e300]], [[1.0]]]), "y": [0, 1]}, "beyond float32"),
    ],
)
def test_arrays_that_are_no_data(tmp_path: Path, arrays: dict, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        load_data(write_arrays(tmp_path / "x.npz", **arrays))
    assert "\n" not in str(caught.value)


def test_files_that_hold_no_arrays(tmp_path: Path) -> None:
    good = tmp_path / "good.npz"
    np.savez(good, x=np.zeros((2, 1, 4), np.float32), y=[0, 1])
    cut, text, other = tmp_path / "cut.npz", tmp_path / "text.npz", tmp_path / "other.npz"
    cut.write_bytes(good.read_bytes()[:200])
    text.write_text("x")
    huge = tmp_path / "huge.npz"
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("x.npy", b"no array")
        file.writestr("y.npy", b"no array")
    with zipfile.ZipFile(huge, "w") as file:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"
        file.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        file.writestr("y.npy", b"")
    for place, said in (
        (cut, "cannot be read"),
        (text, "cannot be read"),
        (tmp_path / "none.npz", "No such file"),
        (other, "x of other.npz|no array"),
        (huge, "half of the free memory"),
        ("", "arrays needs a file"),
    ):
        with pytest.raises(DataError, match=said):
            load_data(f"arrays:{place}")
    with pytest.raises(DataError, match="arrays are taken as they are, so that --mean cannot be"):
        load_data(f"arrays:{good}", mean=(0.5, 0.5, 0.5))


# Clips on a disk ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jester(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Jester's layout: frames from 00001.jpg on, files of labels without a header, the classes in one of their own."""
    root = tmp_path_factory.mktemp("jester")
    for clip, count in (("11", 6), ("7", 3), ("23", 12), ("5", 1)):
        write_frames(root / "20bn-jester-v1" / clip, count)
    (root / "jester-v1-train.csv").write_text("11;Swiping Left\n7;No gesture\n")
    (root / "jester-v1-validation.csv").write_text("23;No gesture\n5;Swiping Left\n11;Stop Sign\n")
    (root / "jester-v1-test.csv").write_text("99\n")
    (root / "jester-v1-labels.csv").write_text("Swiping Left\nNo gesture\nStop Sign\n")
    return root


def test_frames_in_jesters_layout(jester: Path) -> None:
    data = load_data(f"frames:{jester}", frames=4, image_size=8)
    assert data.classes == ("Swiping Left", "No gesture", "Stop Sign") and len(data) == 3
    seen = {data.label(k): (moments(data.transform.pixels(data.picture(k))), data.targets[k]) for k in range(3)}
    assert seen == {"23": ([1, 4, 7, 10], 1), "5": ([0, 0, 0, 0], 0), "11": ([0, 2, 3, 5], 2)}
    (note,) = [note for note in data.notes if "fewer than" in note]
    assert "1 of the clips" in note and "the shortest 1" in note and "repeated in their order" in note
    dense = load_data(f"frames:{jester}", frames=8, sampling="dense", image_size=8)
    places = {dense.label(k): moments(dense.transform.pixels(dense.picture(k))) for k in range(3)}
    assert places["23"] == [2, 3, 4, 5, 6, 7, 8, 9] and places["11"] == [0, 1, 2, 3, 4, 5, 5, 5]
    assert any("2 of the clips" in note and "the last frame is repeated" in note for note in dense.notes)
    assert len(load_data(f"frames:{jester}", split="train")) == 2


def test_frames_of_ten_come_after_those_of_nine(tmp_path: Path) -> None:
    for label in "ab":
        write_frames(tmp_path / "val" / label / "clip", 11, "frame{}.png")
    data = load_data(f"kinetics:{tmp_path}", frames=11, image_size=8)
    assert moments(data.transform.pixels(data.picture(0))) == list(range(11))


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("v-validation.csv", "23;Stop\n5;\n", "line 2 of .* is '5;'"),
        ("v-validation.csv", "23 Stop\n", "line 1 of .* give CLIP;LABEL"),
        ("v-validation.csv", "../23;Stop\n", "give the name of a folder"),
        ("v-validation.csv", "23;Stop\n23;Go\n", "again"),
        ("v-validation.csv", "\n", "names no clips"),
        ("v-validation.csv", "23;Stop\n5;Go\n99;Go\n", "99 .the folder of its frames is not there"),
        ("other.csv", "23;Stop\n", "no file of labels for test .of .csv files it has: other.csv"),
    ],
)
def test_labels_of_frames_that_do_not_fit(tmp_path: Path, jester: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    for clip in ("23", "5"):
        (tmp_path / clip).symlink_to(jester / "20bn-jester-v1" / clip)
    with pytest.raises(DataError, match=said):
        load_data(f"frames:{tmp_path}")


def test_a_label_that_is_none_of_the_classes(tmp_path: Path) -> None:
    write_frames(tmp_path / "1", 1)
    (tmp_path / "a-validation.csv").write_text("1;Stop\n")
    (tmp_path / "a-labels.csv").write_text("Go\nStay\n")
    with pytest.raises(DataError, match=r"gives the clip 1 the label 'Stop', which a-labels\.csv does not name"):
        load_data(f"frames:{tmp_path}")


@pytest.fixture
def kinetics(tmp_path: Path) -> Path:
    """Kinetics' layout: a folder for each split and class, with videos."""
    for split, label, name, count in (
        ("train", "archery", "a", 9),
        ("train", "juggling", "b", 9),
        ("val", "archery", "c", 9),
        ("val", "juggling", "d", 3),
    ):
        write_video(tmp_path / split / label / f"{name}.mp4", count)
    return tmp_path


def test_videos_in_kinetics_layout(kinetics: Path, tmp_path: Path) -> None:
    write_frames(kinetics / "val" / "juggling" / "e", 5)
    (kinetics / "val" / "archery" / "readme.txt").write_text("no video")
    data = load_data(f"kinetics:{kinetics}", frames=4, image_size=8)
    assert data.classes == ("archery", "juggling") and len(data) == 3
    seen = {data.label(k): moments(data.transform.pixels(data.picture(k))) for k in range(3)}
    assert seen == {"archery/c.mp4": [2, 3, 4, 5], "juggling/d.mp4": [0, 1, 2, 2], "juggling/e": [0, 1, 2, 3]}
    assert any("1 of the clips" in note and "the shortest 3" in note for note in data.notes)
    assert any("archery/readme.txt" in note for note in data.notes)
    assert load_data(f"kinetics:{kinetics}", frames=4, image_size=8).fingerprint == data.fingerprint
    write_video(kinetics / "val" / "archery" / "c.mp4", 8)
    assert load_data(f"kinetics:{kinetics}", frames=4, image_size=8).fingerprint != data.fingerprint


def test_videos_that_cannot_be_read(kinetics: Path) -> None:
    av = pytest.importorskip("av")
    whole = (kinetics / "val" / "archery" / "c.mp4").read_bytes()
    bad = kinetics / "val" / "archery" / "bad.mp4"
    playlist = f"#EXTM3U\n#EXTINF:1,\nfile://{kinetics}/val/archery/c.mp4\n#EXT-X-ENDLIST\n"
    sound = kinetics / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        for packet in (*stream.encode(silence), *stream.encode()):
            container.mux(packet)
    write_video(kinetics / "other.mkv", 3)
    unknown = (kinetics / "other.mkv").read_bytes().replace(b"V_MPEG4", b"V_NOONE")
    for content in (b"", b"no video", whole[: len(whole) // 2], playlist.encode(), sound.read_bytes(), unknown):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=r"archery/bad.mp4 \(.*--skip-bad-images"):
            load_data(f"kinetics:{kinetics}")
        with_rest = load_data(f"kinetics:{kinetics}", skip_bad_images=True)
        assert len(with_rest) == 2 and any("left out" in note and "bad.mp4" in note for note in with_rest.notes)


def test_videos_without_pyav(kinetics: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name == "av":
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match="pip install av, or extract the frames"):
        load_data(f"kinetics:{kinetics}")


def test_folders_of_clips_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no class folders"):
        load_data(f"kinetics:{tmp_path}")
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="holds no clips"):
        load_data(f"kinetics:{tmp_path}")
    write_frames(tmp_path / "a" / "one", 2)
    write_frames(tmp_path / "b" / "two", 2)
    frame(0).resize((5, 5)).save(tmp_path / "b" / "two" / "00003.jpg")
    with pytest.raises(DataError, match=r"frames of several sizes .5 x 5, 16 x 12"):
        load_data(f"kinetics:{tmp_path}")
    (tmp_path / "b" / "two" / "00003.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"00003\.jpg: not a picture"):
        load_data(f"kinetics:{tmp_path}")


# Training clips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", sorted(AUGMENTATIONS))
def test_augmentation_does_the_same_to_all_frames_of_a_clip(tmp_path: Path, augmentation: str) -> None:
    for label in "ab":
        (tmp_path / "train" / label / "clip").mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
        for moment in range(6):
            Image.fromarray(pixels).save(tmp_path / "train" / label / "clip" / f"{moment}.png")
    data = load_data(f"kinetics:{tmp_path}", split="train", frames=3, image_size=16)
    images = TrainingImages(data, AUGMENTATIONS[augmentation])
    clips = [images[0, seed][0] for seed in range(4)]
    assert all(clip.shape == (3, 3, 16, 16) and clip.dtype is torch.uint8 for clip in clips)
    assert all(torch.equal(clip[0], clip[moment]) for clip in clips for moment in (1, 2))
    assert torch.equal(images[0, 2][0], clips[2])
    assert (augmentation == "none") == all(torch.equal(clips[0], clip) for clip in clips)


def test_the_frames_of_training_clips_are_drawn(jester: Path) -> None:
    data = load_data(f"frames:{jester}", split="test", frames=4, sampling="dense", image_size=8)
    place = next(k for k in range(3) if data.label(k) == "23")
    seen = {tuple(moments(TrainingImages(data, AUGMENTATIONS["clip-crop"])[place, seed][0])) for seed in range(60)}
    assert seen == {tuple(range(first, first + 4)) for first in range(9)}
    assert moments(TrainingImages(data, AUGMENTATIONS["none"])[place, 0][0]) == [4, 5, 6, 7]


def test_one_line_for_clips_and_networks_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arrays = tmp_path / "two.npz"
    np.savez(arrays, x=np.zeros((64, 2, 8), np.float32), y=np.arange(64) % 2)
    cases: list[tuple[str, Callable[[str], bool]]] = [
        ("ablate --model resnet18 --weights none --num-classes 4 --data moving-digits", lambda line: "r3d_18" in line),
        ("ablate --model r3d_18 --weights none --num-classes 10 --data digits", lambda line: "pictures" in line),
        ("ablate --model cnn1d --weights none --data digits", lambda line: "reads signals" in line),
        ("train --model resnet20 --data moving-digits", lambda line: "resnet20 reads pictures" in line),
        ("train --model cnn3d --data digit-signals", lambda line: "cnn1d" in line),
        ("train --model cnn1d --data digit-signals --recipe digits", lambda line: "--recipe signals" in line),
        (
            f"train --model cnn1d --data arrays:{arrays} --model-option in_channels=3",
            lambda line: "cnn1d does not run on inputs of 2 x 8" in line,
        ),
        (
            "train --model tsm_resnet18 --model-option segments=4 --data moving-digits",
            lambda line: "--frames 4" in line and "segments=8" in line,
        ),
    ]
    for command, fits in cases:
        assert run(*command.split(), "--cache", str(tmp_path)) == 1
        said = capsys.readouterr().err
        assert fits(said) and "Traceback" not in said and len(said.strip().splitlines()) == 1, said


# What changes in the middle -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["a frame changes", "a frame comes", "a frame goes", "a video changes"])
def test_a_clip_that_changes_after_it_was_loaded_is_named(what: str, tmp_path: Path) -> None:
    for label, name in enumerate(("falling", "rising")):
        write_frames(tmp_path / "val" / name / "1", 3 + label)
        write_video(tmp_path / "val" / name / "2.mp4", 3 + label)
    data = load_data(f"kinetics:{tmp_path}", frames=2, image_size=8)
    before = data.batch(0, 4)[0]
    clip = tmp_path / "val" / "rising" / ("2.mp4" if "video" in what else "1")
    file = clip if "video" in what else clip / "00002.jpg"
    content, state = file.read_bytes(), file.stat()
    if what.endswith("comes"):
        (clip / "00009.jpg").write_bytes(content)
    elif what.endswith("goes"):
        file.unlink()
    else:
        other = tmp_path / "val" / "falling" / file.relative_to(tmp_path / "val" / "rising")
        file.write_bytes(other.read_bytes() + b"more")
    with pytest.raises(DataError, match=f"{clip} has changed since the data was loaded") as caught:
        data.batch(0, 4)
    assert "\n" not in str(caught.value)
    if what.endswith("comes"):
        (clip / "00009.jpg").unlink()
    file.write_bytes(content)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert torch.equal(data.batch(0, 4)[0], before)
    if clip.is_dir():
        shutil.rmtree(clip)
    else:
        clip.unlink()
    with pytest.raises(DataError, match=f"the clip {clip} cannot be read"):
        data.batch(0, 4)


def test_arrays_stay_what_they_were_when_they_were_loaded(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(6, 2, 5)).astype(np.float32), np.arange(6) % 2
    data = load_data(write_arrays(tmp_path / "signals.npz", x=x, y=y))
    before = data.batch(0, 6)[0]
    write_arrays(tmp_path / "signals.npz", x=-x, y=y)
    assert torch.equal(data.batch(0, 6)[0], before) and before.abs().sum() > 0
