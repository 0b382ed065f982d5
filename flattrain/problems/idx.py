"""MNIST and Fashion-MNIST from the four official IDX files.

Looked for in `root`, then in $FLATTRAIN_DATA, then downloaded once into the user's cache; every file is
checked against its SHA-256 before it is read.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import zlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flattrain.core.probes import stream
from flattrain.problems.random_labels import randomised
from flattrain.problems.split import DataSet, Split
from flattrain.ranges import Count, Fraction, Refused, Steps, checked


class Source(NamedTuple):
    folder: str
    url: str
    sha256: tuple[str, ...]  # in the order of FILES


FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
MNIST = Source(
    "mnist",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
)
FASHION_MNIST = Source(
    "fashion_mnist",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
)


def _checksum(source: Source, name: str) -> str:
    return source.sha256[FILES.index(name)]


def read_idx(path: Path) -> np.ndarray:
    """An IDX array: two zero bytes, type 8 (uint8), the number of dimensions, their sizes, the bytes."""
    try:
        raw = gzip.decompress(path.read_bytes())
        zero, kind, ndim = struct.unpack(">HBB", raw[:4])
        shape = struct.unpack(f">{ndim}I", raw[4 : 4 + 4 * ndim])
        if zero or kind != 8:
            raise ValueError("not an IDX file of bytes")
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise Refused(f"{path}: not a readable IDX file ({error}); delete it and run again") from None


def _locate(source: Source, name: str, root: str | None) -> Path:
    for base in (root, os.environ.get("FLATTRAIN_DATA")):
        if base is not None:
            path = Path(base) / source.folder / name
            if not path.is_file():
                raise Refused(
                    f"{path}: no such file; put the four official IDX files of {source.folder} there, or "
                    "unset data.root and FLATTRAIN_DATA to download them"
                )
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            if found != _checksum(source, name):
                raise Refused(
                    f"{path}: wrong checksum (SHA-256 {found[:12]}…, expected "
                    f"{_checksum(source, name)[:12]}…); the file is damaged or another one: fetch it again"
                )
            return path
    return _download(source, name)


def _download(source: Source, name: str) -> Path:
    import pooch

    logger = pooch.get_logger()
    logger.setLevel("WARNING")
    try:
        return Path(
            pooch.retrieve(
                source.url + name,
                known_hash=f"sha256:{_checksum(source, name)}",
                fname=name,
                path=pooch.os_cache("flattrain") / source.folder,
                downloader=pooch.HTTPDownloader(timeout=20),
            )
        )
    except Exception as error:
        raise Refused(
            f"{source.folder}: cannot download {source.url + name} ({type(error).__name__}); put the four "
            f"official IDX files in a folder {source.folder}/ and name its parent with data.root=..."
        ) from None


@lru_cache(maxsize=1)
def _load(source: Source, root: str | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    arrays = [read_idx(_locate(source, name, root)) for name in FILES]
    images = [torch.from_numpy(a.copy()).to(torch.float32)[:, None] / 255 for a in arrays[::2]]
    labels = [torch.from_numpy(a.copy()).to(torch.int64) for a in arrays[1::2]]
    return images[0], labels[0], images[1], labels[1]


def _dataset(
    source: Source, train: int, test: int, validation: int, random_labels: float, root: str | None
) -> DataSet:
    if train + validation > 60_000 or test > 10_000:
        asked = f"{train} + {validation} for validation" if validation else f"{train}"
        raise Refused(
            f"{source.folder}: has 60000 training and 10000 test images, asked for {asked} and {test}"
        )
    train_x, train_y, test_x, test_y = _load(source, root)

    def split(seed: int) -> Split:
        order = torch.randperm(len(train_x), generator=stream(seed, source.folder))
        a, v = order[:train], order[len(order) - validation :]
        labels = randomised(train_y[a], random_labels, 10, stream(seed, source.folder, "random labels"))
        parts = Split(train_x[a], labels, test_x[:test], test_y[:test], 10)
        return parts._replace(validation_x=train_x[v], validation_y=train_y[v]) if validation else parts

    return split


@checked
def mnist(
    *,
    train: Count = 1000,
    test: Count = 10_000,
    validation: Steps = 0,
    random_labels: Fraction = 0.0,
    root: str | None = None,
) -> DataSet:
    """Handwritten digits, (1, 28, 28) in [0, 1]: `train` random images per seed, the first `test` ones.

    validation    : as many further ones of the training images per seed.
    random_labels : the probability with which a training label is replaced by a uniform draw
                    (`problems.random_labels`); those of testing and validation are as they are.
    """
    return _dataset(MNIST, train, test, validation, random_labels, root)


@checked
def fashion_mnist(
    *,
    train: Count = 1000,
    test: Count = 10_000,
    validation: Steps = 0,
    random_labels: Fraction = 0.0,
    root: str | None = None,
) -> DataSet:
    """Zalando's articles, (1, 28, 28) in [0, 1]; parameters as of `mnist`."""
    return _dataset(FASHION_MNIST, train, test, validation, random_labels, root)
