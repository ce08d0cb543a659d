"""Which files hold weights that can be read, and what the others are: by their names, and by how they begin."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import BinaryIO

from weanalysis.errors import ModelError

SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin", ".ckpt", ".tar", ".pkl", ".pyth")

_SAVE = "in the program that made it, save the network's state_dict with torch.save or as safetensors"
#: ending -> what such a file is. None of these is read.
_OTHERS = {
    ".onnx": "an ONNX graph",
    ".npz": "an archive of NumPy arrays",
    ".npy": "a NumPy array",
    ".pt2": "a program of torch.export",
    ".ptl": "a TorchScript program for phones",
    ".h5": "an HDF5 file, as Keras writes them",
    ".hdf5": "an HDF5 file, as Keras writes them",
    ".keras": "a Keras network",
    ".tflite": "a TensorFlow Lite network",
    ".pb": "a TensorFlow graph",
    ".index": "a part of a TensorFlow checkpoint",
    ".meta": "a part of a TensorFlow checkpoint",
    ".msgpack": "a Flax checkpoint",
    ".gguf": "a GGUF file",
    ".mlmodel": "a Core ML network",
    ".mlpackage": "a Core ML network",
    ".caffemodel": "a Caffe network",
    ".params": "an MXNet file",
    ".pdparams": "a Paddle file",
    ".engine": "a TensorRT engine",
    ".joblib": "a joblib pickle",
    ".mat": "a MATLAB file",
    ".json": "a JSON file",
    ".zip": "an archive",
    ".gz": "an archive",
}
# How files begin that come under the name of a checkpoint.
_BEGINNINGS = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes them", _SAVE),
    (b"\x93NUMPY", "a NumPy array", _SAVE),
    (b"GGUF", "a GGUF file", _SAVE),
    (b"\x1f\x8b", "compressed", "unpack it first"),
    (b"version https://git-lfs", "a pointer that Git LFS left in place of the weights", "run 'git lfs pull'"),
    (b"<!doctype html", "a web page", "get the file itself; the address led to a page about it"),
    (b"<html", "a web page", "get the file itself; the address led to a page about it"),
)
# What an archive's member is called, by which the kind of archive is known.
_MEMBERS = (
    (".npy", "an archive of NumPy arrays"),
    ("archive_format", "a program of torch.export"),
    ("model.weights.h5", "a Keras network"),
    ("saved_model.pb", "a TensorFlow network"),
)
# Members of an archive are not compressed by torch.save, and tensors may share memory, but neither stands for so much
# more than the file has, unless it is made to fill the memory.
_MOST_EXPANSION = 4
_ALWAYS_ALLOWED = 2**26


def most_bytes(size: int) -> int:
    """How much memory a file of `size` bytes may take."""
    return _MOST_EXPANSION * size + _ALWAYS_ALLOWED


def is_weights_file(text: str) -> bool:
    """Say whether a name given for a network or weights means a file, read or not, rather than a name in a source."""
    suffix = Path(text).suffix.lower()
    return suffix in SUFFIXES or suffix in _OTHERS or ("/" in text and ":" not in text)


def check_format(path: Path, file: BinaryIO, size: int) -> bytes:
    """Return the first bytes of a file that can be one of weights; raise ModelError, naming what it is, for others."""
    suffix = path.suffix.lower()
    if suffix in _OTHERS:
        raise ModelError(f"{path} is {_OTHERS[suffix]} by its name, which is not read here; {_SAVE}")
    head = file.read(64)
    for beginning, what, advice in _BEGINNINGS:
        if head.lower().startswith(beginning.lower()):
            raise ModelError(f"{path} is {what}, no file of weights; {advice}")
    if head[4:8] == b"TFL3":
        raise ModelError(f"{path} is a TensorFlow Lite network, which is not read here; {_SAVE}")
    if head.startswith(b"PK\x03\x04"):
        _check_archive(path, file, size)
    return head


def _check_archive(path: Path, file: BinaryIO, size: int) -> None:
    """Refuse archives of other programs, and those that would take far more memory than they are large."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except Exception as error:  # zipfile raises half a dozen kinds for what is damaged
        raise ModelError(f"{path} is damaged or no checkpoint ({type(error).__name__}); get it again") from error
    for ending, what in _MEMBERS:
        if any(member.filename.endswith(ending) for member in members):
            raise ModelError(f"{path} is {what}, which is not read here; {_SAVE}")
    unpacked = sum(member.file_size for member in members)
    if unpacked > most_bytes(size):
        raise ModelError(f"{path} would take {unpacked:,} bytes of memory, and has {size:,}; it was not loaded")
