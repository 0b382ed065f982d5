"""Data sets and networks: the paper's definitions, files that are right, missing or damaged."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import pytest
import torch

from flattrain.core.probes import stream
from flattrain.problems import idx
from flattrain.problems.digits import digits
from flattrain.problems.idx import fashion_mnist, mnist, read_idx
from flattrain.problems.networks import cnn, mlp
from flattrain.problems.parity import parity
from flattrain.problems.split import Split
from flattrain.problems.two_layer import memorising, two_layer
from flattrain.ranges import Refused


def test_parity_is_paired_over_n():
    small, large = parity(dim=30, train=70, test=50)(3), parity(dim=30, train=200, test=50)(3)
    assert torch.equal(small.train_x, large.train_x[:70])
    assert torch.equal(small.test_x, large.test_x)
    assert torch.equal(large.train_y, large.train_x[:, 0] * large.train_x[:, 1])
    assert set(large.train_x.unique().tolist()) == {-1.0, 1.0}
    assert not torch.equal(parity()(1).train_x, parity()(2).train_x)


def test_digits_are_split_without_overlap():
    split = digits(train=1000, test=797)(0)
    assert split.train_x.shape == (1000, 64) and split.outputs == 10
    assert split.train_x.min() >= 0 and split.train_x.max() == 1
    both = torch.cat([split.train_x, split.test_x])
    assert len(both) == 1797 and len(both.unique(dim=0)) > 1790
    with pytest.raises(Refused, match="train \\+ test must be <= 1797"):
        digits(train=1500, test=1000)


def write_idx(path: Path, array: torch.Tensor) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header + bytes(array.flatten().tolist())))
    return path.read_bytes()


def test_idx_files(tmp_path, monkeypatch):
    import hashlib

    arrays = [
        torch.randint(0, 256, (60, 28, 28)),
        torch.randint(0, 10, (60,)),
        torch.randint(0, 256, (20, 28, 28)),
        torch.randint(0, 10, (20,)),
    ]
    raw = [write_idx(tmp_path / "mnist" / n, a) for n, a in zip(idx.FILES, arrays, strict=True)]
    sums = tuple(hashlib.sha256(b).hexdigest() for b in raw)
    monkeypatch.setattr(idx, "MNIST", idx.MNIST._replace(sha256=sums))
    split = mnist(train=10, test=5, root=str(tmp_path))(0)
    assert split.train_x.shape == (10, 1, 28, 28) and split.train_x.max() <= 1
    wanted = arrays[2][:5, None] / torch.tensor(255, dtype=torch.float32)
    torch.testing.assert_close(split.test_x, wanted.float())
    assert torch.equal(split.test_y, arrays[3][:5])

    file = tmp_path / "mnist" / idx.FILES[1]
    whole = file.read_bytes()
    idx._load.cache_clear()
    file.write_bytes(whole[:-9])
    with pytest.raises(Refused, match=r"train-labels.*wrong checksum"):
        mnist(train=10, test=5, root=str(tmp_path))
    with pytest.raises(Refused, match="not a readable IDX file"):
        read_idx(file)
    file.write_bytes(gzip.compress(struct.pack(">HBBI", 0, 8, 1, 999) + b"123"))
    with pytest.raises(Refused, match="not a readable IDX file"):
        read_idx(file)
    file.unlink()
    with pytest.raises(Refused, match=r"no such file; put the four official"):
        mnist(train=10, test=5, root=str(tmp_path))


def test_a_failed_download_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.delenv("FLATTRAIN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(idx, "FASHION_MNIST", idx.FASHION_MNIST._replace(url="http://127.0.0.1:9/"))
    idx._load.cache_clear()
    with pytest.raises(Refused, match=r"cannot download .*data\.root="):
        fashion_mnist(train=10, test=5)


@pytest.mark.skipif(
    not (Path(os.environ.get("FLATTRAIN_DATA", "/nowhere")) / "mnist").is_dir(),
    reason="the official files are not in $FLATTRAIN_DATA",
)
def test_the_official_files():
    split = mnist(train=100, test=100)(0)
    assert split.test_y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert fashion_mnist(train=100, test=100)(0).test_y[:5].tolist() == [9, 2, 1, 1, 6]


def values(model, split, x):
    module = model.build(split).double()
    params = model.start(module, split, stream(0))
    buffers = {k: v.double() for k, v in model.buffers(module, split).items()}
    return params, torch.func.functional_call(
        module, {k: v.double() for k, v in params.items()} | buffers, (x,)
    )


@pytest.mark.parametrize("normalisation", ["none", "layer", "batch"])
def test_two_layer_nets_are_the_papers(normalisation):
    split = parity(dim=6, train=9, test=4)(0)
    x = split.test_x.double()
    params, f = values(two_layer(width=11, normalisation=normalisation), split, x)
    w, b, a = (params[k].double() for k in ("hidden.weight", "hidden.bias", "head.weight"))
    act = (x @ w.T + b).clamp(min=0)
    if normalisation == "layer":
        act = act / act.norm(dim=1, keepdim=True)
    if normalisation == "batch":
        reference = (split.train_x.double() @ w.T + b).clamp(min=0)
        act = params["norm.gamma"].double() * act / reference.square().mean(0).sqrt()
    torch.testing.assert_close(f, act @ a.T, rtol=1e-10, atol=1e-12)


def test_a_perturbed_memoriser_lies_as_far_off_as_it_says():
    split = parity(dim=30, train=100, test=4)(0)
    model, beside = memorising(), memorising(perturbation=0.01)
    module = model.build(split)
    exact = model.start(module, split, stream(1))
    one, same, other = (beside.start(module, split, stream(seed)) for seed in (1, 1, 2))
    for k, p in exact.items():
        assert torch.equal(one[k], same[k]) and not torch.equal(one[k], other[k])
        assert one[k].shape == p.shape and one[k].dtype == p.dtype
        # Its standard deviation is known to 1/√(2N): 0.9 % for the 6,000 weights of two starts.
        off = torch.cat([(one[k] - p).flatten(), (other[k] - p).flatten()])
        assert abs(off.std() / 0.01 - 1) < 4 / (2 * len(off)) ** 0.5
        assert abs(off.mean()) < 4 * 0.01 / len(off) ** 0.5


def test_the_start_is_pytorchs_distribution_from_a_generator():
    split = Split(torch.zeros(4, 100), torch.zeros(4), torch.zeros(4, 100), torch.zeros(4), 10)
    model = mlp(widths=(300,))
    module = model.build(split)
    one, two = (model.start(module, split, stream(5)) for _ in range(2))
    for k, p in module.named_parameters():
        assert torch.equal(one[k], two[k]) and one[k].shape == p.shape
        bound = (100 if "hidden" in k else 300) ** -0.5
        assert one[k].abs().max() <= bound
    spread = one["hidden1.weight"].std() / (0.1 / 3**0.5)
    assert abs(spread - 1) < 0.02


def test_which_layers_of_a_perceptron_have_a_bias():
    split = Split(torch.zeros(4, 6), torch.zeros(4), torch.zeros(4, 6), torch.zeros(4), 1)
    for bias, wanted in (
        ("all", {"hidden1.bias", "hidden2.bias", "head.bias"}),
        ("first", {"hidden1.bias"}),
        ("none", set()),
    ):
        module = mlp(widths=(5, 4), bias=bias).build(split)
        assert {name for name, _ in module.named_parameters() if "bias" in name} == wanted


def test_networks_on_images():
    split = Split(torch.rand(4, 1, 28, 28), torch.zeros(4), torch.rand(4, 1, 28, 28), torch.zeros(4), 10)
    for model in (mlp(widths=(20, 10)), cnn(channels=(4, 8))):
        _, f = values(model, split, split.test_x.double())
        assert f.shape == (4, 10)
    flat = split._replace(train_x=torch.rand(4, 7))
    with pytest.raises(Refused, match="cnn takes images"):
        cnn().build(flat)
    with pytest.raises(Refused, match="one output"):
        two_layer().build(split)
    with pytest.raises(Refused, match="widths must be a list"):
        mlp(widths=())
