"""No tensor strays to the CPU: whole steps on a device that is not the CPU and holds no numbers.

Under FakeTensorMode torch checks the device of every operand, as a GPU would, without one: what is random is
drawn on the CPU and must have been moved before it meets the parameters.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from flattrain.core.losses import cross_entropy
from flattrain.lab import catalog
from flattrain.problems.networks import mlp
from flattrain.problems.split import Split
from flattrain.training.averaging import ema
from flattrain.training.objective import Penalty, build
from flattrain.training.optimizers import adamw, sgd
from flattrain.training.stacked import Seeds, stacked_trainer
from flattrain.training.step_sizes import armijo, cdat, polyak

ARGUMENTS = {
    "obar": {"x": "hidden1.weight", "y": "head.weight"},
    "nbar": {"x": "hidden1.weight", "y": "head.weight"},
    "sam_on": {"parameters": ["hidden1.weight"]},
}
OF_ANOTHER_NET = {"deep_linear_trace"}
NEEDS_LABELS = {"label_noise"}  # of real targets
SEEDS = 2


def trainer(rule="plain", penalty=None, optimizer=None, **extra):
    """A stacked trainer whose tensors are elsewhere, and the state that it starts from."""
    x, y = torch.empty(12, 6, device="meta"), torch.empty(12, dtype=torch.int64, device="meta")
    split = Split(torch.empty(12, 6), torch.empty(12, dtype=torch.int64), x, y, 3)
    model = mlp(widths=(5,))
    with torch.device("meta"):
        module = model.build(split)
    start = {k: torch.empty_like(p) for k, p in module.named_parameters()}
    seeds = Seeds(range(SEEDS), [x] * SEEDS, [y] * SEEDS, [start] * SEEDS, [{}] * SEEDS)
    built = [] if penalty is None else [Penalty(_built(catalog.PENALTIES, penalty), 0.1)]
    objective = build(module, cross_entropy, built)
    chosen = _built(catalog.RULES, rule, objective)
    return stacked_trainer(objective, chosen, optimizer or sgd(lr=0.1), 4, seeds, **extra)


def _built(registry, name, objective=None):
    context = {} if objective is None else {
        "outputs": objective.outputs, "losses": objective.losses, "criterion": cross_entropy
    }  # fmt: skip
    return catalog.build(catalog.choose(registry, {name: ARGUMENTS.get(name, {})}, "test"), **context)


def one_step_is_clean(**settings):
    """A trainer tries one step when it is made, and says what kept it from stacking the seeds."""
    made = trainer(**settings)
    assert "one after the other" not in made.backend, made.backend
    return made


def stays_elsewhere(**settings):
    with FakeTensorMode():
        made = one_step_is_clean(**settings)
        state = made.advance(made.init(), 2)
        tensors = [*state.params.values(), *state.optimizer, *state.memory.values()]
        assert tensors and {t.device.type for t in tensors if t.ndim} == {"meta"}


@pytest.mark.parametrize("name", sorted(set(catalog.RULES) - NEEDS_LABELS))
def test_rules(name):
    with FakeTensorMode():
        one_step_is_clean(rule=name)


@pytest.mark.parametrize("name", sorted(set(catalog.PENALTIES) - OF_ANOTHER_NET))
def test_penalties(name):
    with FakeTensorMode():
        one_step_is_clean(penalty=name)


@pytest.mark.parametrize(
    "extra",
    [
        {"optimizer": adamw(lr=0.1), "average": ema()},
        {"step_size": armijo()},
        {"step_size": cdat()},
        {"step_size": polyak()},
    ],
    ids=["adamw", "armijo", "cdat", "polyak"],
)
def test_what_goes_with_them(extra):
    stays_elsewhere(**extra)


def test_the_check_sees_a_stray_tensor():
    with FakeTensorMode(), pytest.raises(RuntimeError, match="device"):
        torch.empty(3, device="meta") * torch.zeros(3)
