"""Optimizers against torch.optim, seeds against a loop, and the loop against interruptions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy
from flattrain.core.probes import stream
from flattrain.measures.hessian_trace import hessian_trace
from flattrain.problems.digits import digits
from flattrain.problems.networks import mlp
from flattrain.rules.noise import weight_noise
from flattrain.rules.plain import plain
from flattrain.rules.sam import sam
from flattrain.training import loop
from flattrain.training.batches import BLOCK, indices, noise_of
from flattrain.training.checkpoint import load_state, save_state
from flattrain.training.objective import Penalty, build
from flattrain.training.optimizers import adam, adamw, sgd
from flattrain.training.stacked import Seeds, stacked_trainer
from flattrain.types import Draw

OPTIMIZERS = {
    "sgd": (lambda: sgd(lr=0.1, momentum=0.9, weight_decay=0.01), 1e-12),
    "adam": (lambda: adam(lr=0.01, weight_decay=0.01), 1e-4),  # float32 bias correction
    "adamw": (lambda: adamw(lr=0.01, weight_decay=0.1), 1e-4),
}
TORCH = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.01, weight_decay=0.01),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parity_with_torch_optim_and_purity(name):
    make, tolerance = OPTIMIZERS[name]
    optimizer = make()()
    params = {"w": torch.tensor([1.0, -2.0]), "b": torch.tensor([[0.5]])}
    first = {k: v.clone() for k, v in params.items()}
    theirs = {k: torch.nn.Parameter(v.clone()) for k, v in params.items()}
    reference = TORCH[name](theirs.values())
    state, mine = optimizer.init(params), params
    for step in range(6):
        grads = {k: (v**3 - 0.1 * step) for k, v in mine.items()}
        before = [t.clone() for t in optimizer.pack(state)]
        old = state
        mine, state = optimizer.update(grads, state, mine)
        assert all(torch.equal(a, b) for a, b in zip(before, optimizer.pack(old), strict=True))
        for p in theirs.values():
            p.grad = p.detach() ** 3 - 0.1 * step
        reference.step()
    assert all(torch.equal(params[k], first[k]) for k in params)
    for k in mine:
        torch.testing.assert_close(mine[k], theirs[k].detach(), rtol=tolerance, atol=0)


def test_a_rebuilt_optimizer_remembers_its_momentum():
    """torchopt keeps "first call" in a closure: built anew on resume it would drop the momentum factor."""
    build_sgd = sgd(lr=0.1, momentum=0.9)
    params, g = {"w": torch.ones(2)}, {"w": torch.ones(2)}
    whole = build_sgd()
    p, state = whole.update(g, whole.init(params), params)
    again = build_sgd()
    restored = again.unpack(whole.pack(state), p)
    want, _ = whole.update(g, state, p)
    have, _ = again.update(g, restored, p)
    assert torch.equal(want["w"], have["w"])
    torch.testing.assert_close(want["w"], torch.full((2,), 1 - 0.1 - 0.19))


def seeds_of(numbers, dtype=torch.float64):
    model, dataset = mlp(widths=(8,)), digits(train=60, test=20)
    splits = [dataset(s) for s in numbers]
    module = model.build(splits[0]).to(dtype)
    return module, Seeds(
        numbers,
        [s.train_x.to(dtype) for s in splits],
        [s.train_y for s in splits],
        [
            {k: v.to(dtype) for k, v in model.start(module, s, stream(n)).items()}
            for n, s in zip(numbers, splits, strict=True)
        ],
        [{} for _ in numbers],
    )


def make_trainer(numbers, rule, penalties=(), make=lambda: sgd(lr=0.1, momentum=0.9)):
    module, seeds = seeds_of(numbers)
    return stacked_trainer(build(module, cross_entropy, penalties), rule, make(), 10, seeds)


def train(trainer, steps):
    state = trainer.init()
    while state.step < steps:
        state = trainer.advance(state, steps)
    return state


@pytest.mark.parametrize("rule", [plain(), sam(rho=0.1), weight_noise(scale=0.1)])
def test_a_seed_does_not_depend_on_its_company(rule):
    penalty = [Penalty(hessian_trace(), 1e-3)]
    together = train(make_trainer([3, 5, 8], rule, penalty), 6).params
    alone = train(make_trainer([5], rule, penalty), 6).params
    for k in alone:
        torch.testing.assert_close(together[k][1], alone[k][0], rtol=1e-10, atol=1e-12)
        assert not torch.equal(together[k][0], together[k][1])


def test_stacked_training_is_a_plain_torch_loop():
    module, seeds = seeds_of([4])
    mine = train(make_trainer([4], plain()), 30).params
    with torch.no_grad():
        for k, p in module.named_parameters():
            p.copy_(seeds.params[0][k])
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for pick in indices(4, 60, 10, 0, 30):
        optimizer.zero_grad()
        F.cross_entropy(module(seeds.x[0][pick]), seeds.y[0][pick]).backward()
        optimizer.step()
    for k, p in module.named_parameters():
        torch.testing.assert_close(mine[k][0], p.detach(), rtol=1e-9, atol=1e-12)


def test_chance_is_a_function_of_seed_and_step():
    whole = indices(1, 50, 4, 0, BLOCK)
    assert torch.equal(indices(1, 50, 4, 120, 150), whole[120:150])
    assert not torch.equal(indices(2, 50, 4, 0, 100), whole[:100])
    assert torch.equal(indices(1, 6, 6, 0, 2), torch.arange(6).expand(2, 6))
    counts = torch.bincount(whole.reshape(-1), minlength=50).double()
    assert (counts / counts.mean() - 1).abs().max() < 0.2
    at = noise_of({"z": Draw("normal", (3,))}, 1, torch.float64)
    late = at(BLOCK + 5)["z"].clone()
    again = noise_of({"z": Draw("normal", (3,))}, 1, torch.float64)
    assert torch.equal(again(BLOCK + 5)["z"], late)
    assert not torch.equal(again(BLOCK + 6)["z"], late)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_interrupted_run_ends_with_the_same_bits(name, tmp_path):
    make, _ = OPTIMIZERS[name]

    def measure(state, before):
        return [{"step": state.step, "value": float(sum(p.sum() for p in state.params.values()))}]

    stops = [0, 100, 250, 400]
    whole = loop.run(make_trainer([1, 2], sam(rho=0.05), make=make), stops, measure)
    file = tmp_path / "cell.safetensors"

    class Killed(Exception):
        pass

    def kill_at(limit):
        def progress(step):
            if step >= limit:
                raise Killed

        return progress

    for limit in (200, 300):
        with pytest.raises(Killed):
            loop.run(
                make_trainer([1, 2], sam(rho=0.05), make=make),
                stops,
                measure,
                checkpoint=file,
                every_seconds=0.0,
                progress=kill_at(limit),
            )
    assert load_state(file)[0].step > 0
    resumed = loop.run(make_trainer([1, 2], sam(rho=0.05), make=make), stops, measure, checkpoint=file)
    assert resumed == whole


def test_what_is_loaded_begins_where_what_is_computed_begins(tmp_path):
    """Some kernels sum in another order where a tensor begins at an odd address, as it does in a file."""
    file = tmp_path / "cell.safetensors"
    state = train(make_trainer([1], plain()), 3)
    for length in range(8):  # of the header, which moves the tensors
        save_state(file, state, "x" * length)
        back, _ = load_state(file)
        assert all(t.data_ptr() % 64 == 0 for t in [*back.params.values(), *back.optimizer])


def test_a_damaged_checkpoint_is_no_checkpoint(tmp_path):
    file = tmp_path / "cell.safetensors"
    assert load_state(file) is None
    state = train(make_trainer([1], plain()), 3)
    save_state(file, state, [{"step": 0}])
    back, rows = load_state(file)
    assert rows == [{"step": 0}] and back.step == 3
    assert all(torch.equal(back.params[k], state.params[k]) for k in state.params)
    raw = file.read_bytes()
    for damaged in (raw[: len(raw) // 2], b"", b"\x00" * 50, raw[:3]):
        file.write_bytes(damaged)
        assert load_state(file) is None


def test_milestones():
    assert loop.milestones(0, 10, "log") == [0]
    assert loop.milestones(100, 4, "linear") == [0, 25, 50, 75, 100]
    points = loop.milestones(1_000_000, 12, "log")
    assert points[0] == 0 and points[1] == 10 and points[-1] == 1_000_000 and len(points) == 13
    assert loop.milestones(5, 3, "log")[-1] == 5
