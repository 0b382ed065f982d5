"""The compiled step is the eager one to rounding and itself to the bit; what stays eager says why."""

from __future__ import annotations

import pytest
import torch
from small import close, compiler, same, seeds_of, train, trainer
from torch import nn

from flattrain.core.losses import squared_error
from flattrain.core.probes import stream
from flattrain.problems.parity import parity
from flattrain.problems.two_layer import two_layer
from flattrain.ranges import Refused
from flattrain.rules.compose import compose
from flattrain.rules.noise import weight_noise
from flattrain.rules.plain import plain
from flattrain.rules.sam import sam
from flattrain.rules.schedule import schedule
from flattrain.training import compiled
from flattrain.training.compiled import groups_of, too_few
from flattrain.training.objective import build
from flattrain.training.optimizers import adam, sgd
from flattrain.training.stacked import Seeds, stacked_trainer


@compiler
def test_compiled_is_eager_to_rounding_in_groups_or_not_and_repeats_itself(monkeypatch):
    def momentum():
        return sgd(lr=0.1, momentum=0.9, weight_decay=0.01)

    slow, fast = (trainer(sam(rho=0.1), momentum, eager=e) for e in ("to compare", None))
    assert slow.backend.endswith("vmap, eager: to compare") and fast.backend.endswith("vmap, compiled")
    whole = train(fast, 60)
    close(train(slow, 60), whole)
    same(whole, train(trainer(sam(rho=0.1), momentum, eager=None), 7, 33, 60))
    monkeypatch.setattr(compiled, "NUMBERS_AT_ONCE", 2 * 640)
    grouped = trainer(sam(rho=0.1), momentum, eager=None)
    assert grouped.backend.endswith("compiled, 2 at a time")
    close(train(slow, 60), train(grouped, 60))
    same(train(grouped, 60), train(grouped, 11, 60))


@compiler
def test_noise_and_what_adam_counts_pass_the_compiler_too():
    slow, fast = (trainer(weight_noise(scale=0.1), lambda: adam(lr=0.01), eager=e) for e in ("so", None))
    assert "compiled" in fast.backend
    close(train(slow, 30), train(fast, 30))
    same(train(fast, 30), train(fast, 11, 30))


@compiler
def test_a_held_norm_and_the_whole_batch_compile_too():
    model, split = two_layer(width=6, first_layer_norm=3.0), parity(dim=5, train=12, test=4)(0)
    module = model.build(split).double()
    start = {k: v.double() for k, v in model.start(module, split, stream(0)).items()}
    seeds = Seeds([0], [split.train_x.double()], [split.train_y.double()], [start], [{}])
    parts = (build(module, squared_error, []), plain(), sgd(lr=0.05), 12, seeds)
    fast, slow = (stacked_trainer(*parts, module.project, eager) for eager in (None, "to compare"))
    assert "compiled" in fast.backend
    close(train(slow, 50), train(fast, 50))


def test_the_seeds_of_a_group_are_even_and_the_last_group_is_filled():
    assert groups_of(32, 10) == [list(range(32))]
    assert groups_of(5, 2**16) == [[0, 1], [2, 3], [4, 4]]
    assert groups_of(3, 2**20) == [[0], [1], [2]]
    assert too_few(5_000) is None and "5,000" in too_few(4_999)


def test_without_a_compiler_it_says_so_and_trains(monkeypatch):
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    made = trainer(plain(), eager=None)
    assert "vmap, eager: no C++ compiler" in made.backend
    same(train(made, 20), train(trainer(plain()), 20))


def test_what_the_compiler_cannot_do_is_done_eagerly(monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("no such lowering\nand many lines more")

    monkeypatch.setattr(torch._inductor, "compile", fail)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: name)
    assert trainer(plain(), eager=None).backend.endswith("eager: RuntimeError: no such lowering")


def test_a_rule_that_reads_the_number_of_the_step_stays_eager(monkeypatch):
    monkeypatch.setattr(compiled.shutil, "which", lambda name: name)
    late = trainer(compose([schedule(start=5, before=0.0), sam(rho=0.1)]), eager=None)
    assert late.backend.endswith("eager: the rule reads the number of the step")
    plainly = trainer(plain())
    same(train(late, 5), train(plainly, 5))
    assert not torch.equal(train(late, 6).params["head.weight"], train(plainly, 6).params["head.weight"])


class Branching(nn.Module):
    """Asks a tensor a question in Python, which vmap cannot answer for all seeds at once."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        z = self.head(x)
        return z if z.detach().sum() > 0 else 2 * z


def test_what_cannot_be_stacked_runs_one_seed_after_the_other():
    torch.manual_seed(0)
    module = Branching()
    seeds = seeds_of(module)
    made = stacked_trainer(build(module, squared_error, []), sam(), sgd(lr=0.01), 6, seeds, eager=None)
    assert made.backend.startswith("2 seeds one after the other, eager: vmap")
    together = train(made, 10).params
    for k in range(2):
        alone = Seeds(*([part[k]] for part in seeds))
        one = stacked_trainer(build(module, squared_error, []), sam(), sgd(lr=0.01), 6, alone)
        for name, value in train(one, 10).params.items():
            assert torch.equal(value[0], together[name][k])


def test_nets_with_a_memory_or_chance_of_their_own_are_refused():
    for part, said in ((nn.Dropout(), "random numbers"), (nn.BatchNorm1d(4), "running statistics")):
        module = nn.Sequential(part, nn.Linear(4, 1))
        with pytest.raises(Refused, match=said):
            stacked_trainer(build(module, squared_error, []), plain(), sgd(lr=0.01), 6, seeds_of(module))
