"""Read Fashion-MNIST (Xiao, Rasul and Vollgraf 2017) from its four gzipped IDX files.

An IDX file is two zero bytes, a code for the type of its numbers, the number of its dimensions, the
size of each dimension as a big-endian 32-bit number, and the numbers themselves.
"""

import gzip
import math
import struct
import zlib
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts the files."""
_UNSIGNED_BYTE = 0x08


class Images(NamedTuple):
    """Pictures, each a row of grey values in [0, 1], and their classes.

    ``x`` is an `n x 784` float32 tensor, ``y`` an `n` int64 tensor.
    """

    x: Tensor
    y: Tensor


class FashionMNIST(NamedTuple):
    """The data set as it was published: 60,000 pictures to learn from and 10,000 to test on."""

    train: Images
    test: Images


def read(folder: str | PathLike[str] = DEBIAN) -> FashionMNIST:
    """Read the data set from the folder that holds its four files.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A file is not what its name says.
    """
    folder = Path(folder)
    return FashionMNIST(_images(folder, "train"), _images(folder, "t10k"))


def read_idx(path: Path) -> Tensor:
    """Return the bytes of a gzipped IDX file, a uint8 tensor of the shape that the file states.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not gzip, not IDX, not of bytes, or longer or shorter than it says.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"Fashion-MNIST needs the file {path}, it is not there. Install Debian's package "
            f"dataset-fashion-mnist, or name the folder with the four .gz files."
        )
    try:
        content = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} must be a whole gzip file: {error}. Fetch it again.") from error
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError(
            f"{path} must be an IDX file and start with two zero bytes, it starts with "
            f"{content[:4]!r}. Fetch it again."
        )
    kind, dimensions = content[2], content[3]
    if kind != _UNSIGNED_BYTE:
        raise ValueError(f"{path} must hold unsigned bytes (0x08), its type is 0x{kind:02x}.")
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:start].ljust(4 * dimensions, b"\0"))
    if len(content) != start + math.prod(shape):
        raise ValueError(
            f"{path} must hold {math.prod(shape)} bytes of shape {shape} after {start} bytes of "
            f"header, it has {len(content)} bytes in all. Fetch it again."
        )
    # A copy, because a tensor over immutable bytes could write where nobody may.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:].reshape(shape)


def _images(folder: Path, part: str) -> Images:
    pixels = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
    if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels):
        raise ValueError(
            f"{folder} must have one label for each picture of {part}, got pictures of shape "
            f"{tuple(pixels.shape)} and labels of shape {tuple(labels.shape)}."
        )
    return Images(pixels.flatten(1).float() / 255, labels.long())
