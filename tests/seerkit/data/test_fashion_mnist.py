"""Files that are not Fashion-MNIST, or not all of it."""

import gzip

import numpy as np
import pytest

from seerkit.data.fashion_mnist import load_fashion_mnist


def idx(values: np.ndarray) -> bytes:
    return gzip.compress(
        b"\0\0\x08" + bytes([values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()
    )


IMAGES, LABELS = np.zeros((2, 28, 28), np.uint8), np.array([3, 9], np.uint8)


def test_a_whole_set(tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(idx(IMAGES))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(idx(LABELS))
    images, labels = load_fashion_mnist("train", tmp_path)
    assert (tuple(images.shape), labels.tolist()) == ((2, 1, 32, 32), [3, 9])


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (b"no gzip", idx(LABELS)),
        (idx(IMAGES)[:-20], idx(LABELS)),
        (gzip.compress(b"\0\0\x08\xff"), idx(LABELS)),
        (gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12), idx(LABELS)),
        (idx(IMAGES), idx(LABELS.reshape(1, 2))),
        (idx(IMAGES), idx(LABELS + 1)),
        (idx(IMAGES), idx(np.array(3, np.uint8))),
        (idx(IMAGES[:, :5]), idx(LABELS)),
    ],
    ids=["no gzip", "cut", "no header", "no size", "labels in rows", "label 10", "one label", "no squares"],
)
def test_other_files_are_refused(tmp_path, images, labels):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(images)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(labels)
    with pytest.raises(ValueError, match=r"fetch (it|the files) again"):
        load_fashion_mnist("train", tmp_path)
