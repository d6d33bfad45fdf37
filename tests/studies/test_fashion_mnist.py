"""The reader against files whose bytes are written here, one field after the other."""

import gzip
import math
import struct
from pathlib import Path

import pytest
import torch

from studies.data import fashion_mnist

PIXELS = bytes(range(2 * 3 * 4))


def idx(numbers: bytes, *shape: int, kind: int = 0x08) -> bytes:
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, kind, len(shape), *shape) + numbers


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content))
    return path


def write_data_set(folder: Path, pictures: int, labels: int) -> Path:
    """Two parts of 2 x 2 pictures; the test part is the training part in reverse."""
    pixels = bytes(51 * (i % 6) for i in range(4 * pictures))
    classes = bytes(i % 10 for i in range(labels))
    for part, step in (("train", 1), ("t10k", -1)):
        images = idx(pixels[::step], pictures, 2, 2)
        write(folder / f"{part}-images-idx3-ubyte.gz", images)
        write(folder / f"{part}-labels-idx1-ubyte.gz", idx(classes[::step], labels))
    return folder


@pytest.mark.parametrize("shape", [(24,), (6, 4), (2, 3, 4)])
def test_a_file_is_read_in_the_shape_that_it_states(tmp_path: Path, shape: tuple[int, ...]) -> None:
    read = fashion_mnist.read_idx(write(tmp_path / "a.gz", idx(PIXELS, *shape)))
    assert read.dtype == torch.uint8
    assert read.tolist() == torch.arange(24).reshape(shape).tolist()


def test_pictures_become_rows_of_grey_values_beside_their_classes(tmp_path: Path) -> None:
    train, test = fashion_mnist.read(write_data_set(tmp_path, pictures=3, labels=3))
    grey = torch.tensor([[0.0, 0.2, 0.4, 0.6], [0.8, 1.0, 0.0, 0.2], [0.4, 0.6, 0.8, 1.0]])
    torch.testing.assert_close(train.x, grey)
    torch.testing.assert_close(test.x, grey.flip(0, 1))
    assert train.y.dtype == test.y.dtype == torch.int64
    assert train.y.tolist() == [0, 1, 2]
    assert test.y.tolist() == [2, 1, 0]


def test_pictures_without_their_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one label for each.*\(3, 2, 2\).*\(2,\)"):
        fashion_mnist.read(write_data_set(tmp_path, pictures=3, labels=2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(idx(PIXELS[:-1], 2, 3, 4), "24 bytes of shape", id="too short"),
        pytest.param(idx(PIXELS + b"\0", 2, 3, 4), "24 bytes of shape", id="too long"),
        pytest.param(idx(PIXELS, 2, 3, 4)[:9], "it has 9 bytes in all", id="cut in the header"),
        pytest.param(idx(PIXELS, 2, 3, 4, kind=0x0D), "0x0d", id="floats"),
        pytest.param(b"\x89PNG" + PIXELS, "two zero bytes", id="another format"),
        pytest.param(b"", "two zero bytes", id="empty"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fashion_mnist.read_idx(write(tmp_path / "a.gz", content))


@pytest.mark.parametrize("damaged", [b"no gzip at all", gzip.compress(idx(PIXELS, 24))[:-9], b""])
def test_a_file_that_does_not_unpack_is_refused(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"a\.gz"):
        fashion_mnist.read_idx(path)


def test_a_file_with_flipped_bytes_is_refused(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(idx(PIXELS, 24)))
    packed[-6] ^= 0xFF  # in the checksum
    path = tmp_path / "a.gz"
    path.write_bytes(packed)
    with pytest.raises(ValueError, match="whole gzip file"):
        fashion_mnist.read_idx(path)


def test_a_missing_file_is_named_with_the_way_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train-images.*dataset-fashion-mnist"):
        fashion_mnist.read(tmp_path)


@pytest.mark.skipif(not fashion_mnist.DEBIAN.is_dir(), reason="needs dataset-fashion-mnist")
def test_debians_files_hold_the_data_set_of_the_paper() -> None:
    for part, size in zip(fashion_mnist.read(), (60_000, 10_000), strict=True):
        assert part.x.shape == (size, 784)
        assert torch.bincount(part.y).tolist() == [size // 10] * 10
        assert part.x.min().item() == 0.0
        assert part.x.max().item() == 1.0
        # The mean that is used everywhere to standardise the data set, to the digits it is given.
        assert math.isclose(part.x.mean().item(), 0.286, abs_tol=0.001)
