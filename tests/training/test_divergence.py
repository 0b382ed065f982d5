"""When a seed was lost: to the step, against a trainer that is watched after every single one."""

from __future__ import annotations

import pytest
import torch

from flattrain.training import loop
from flattrain.training.divergence import LOST, lost, watched
from flattrain.training.trainer import State, Trainer

SEEDS_LOST_AT = (0, 137, 951, 137)  # 0: never


def doubling(at_once, until=SEEDS_LOST_AT):
    """w ← 2w, and to infinity at the step given; counts the steps that it takes."""
    taken = []

    def advance(state, target):
        stop = min(target, state.step + at_once)
        w = state.params["w"]
        for step in range(state.step + 1, stop + 1):
            taken.append(step)
            bad = torch.tensor([step == k for k in until])
            w = torch.where(bad[:, None, None], float("inf"), w * (1 + 1e-4))
        return State(stop, {"w": w}, [], {"kept": torch.tensor([float(stop)])})

    start = State(0, {"w": torch.ones(len(until), 2, 3)}, [], {"kept": torch.zeros(1)})
    return Trainer(lambda: start, advance, "a toy"), taken


def end(trainer, state, target):
    while state.step < target:
        state = trainer.advance(state, target)
    return state


def test_the_step_is_exact_and_the_others_go_on():
    for at_once in (1, 50, 200, 10_000):
        trainer, _ = doubling(at_once)
        state = end(watched(trainer), trainer.init(), 1000)
        assert lost(state) == {1: 137, 2: 951, 3: 137}
        assert torch.equal(state.params["w"][0], end(trainer, trainer.init(), 1000).params["w"][0])
        assert float(state.memory["kept"]) == 1000.0


def test_nothing_is_kept_of_a_run_without_loss():
    trainer, _ = doubling(200, until=(0, 0))
    state = end(watched(trainer), trainer.init(), 400)
    assert lost(state) == {} and LOST not in state.memory


def test_a_parameter_that_is_one_number_may_be_lost():
    def advance(state, target):
        w = torch.where(torch.tensor([False, target >= 3]), float("nan"), state.params["w"])
        return State(target, {"w": w, "v": torch.ones(2, 3)}, [], {})

    trainer = watched(Trainer(lambda: State(0, {"w": torch.zeros(2)}, [], {}), advance, "a toy"))
    assert lost(end(trainer, trainer.init(), 2)) == {}
    assert lost(end(trainer, trainer.init(), 3)) == {1: 3}


def test_no_steps_are_taken_when_all_are_lost():
    trainer, taken = doubling(100, until=(150, 120))
    state = end(watched(trainer), trainer.init(), 10**9)
    assert state.step == 10**9 and lost(state) == {0: 150, 1: 120}
    assert max(taken) == 200


def test_a_resumed_run_remembers_what_it_lost(tmp_path):
    file, seen = tmp_path / "x.safetensors", {}

    class Killed(Exception):
        pass

    def kill(step):
        if step >= 400:
            raise Killed

    def measure(state, before):
        seen[state.step] = lost(state)
        return [{"step": state.step}]

    trainer = watched(doubling(100)[0])
    with pytest.raises(Killed):
        loop.run(trainer, [0, 200, 1000], measure, checkpoint=file, every_seconds=0.0, progress=kill)
    loop.run(trainer, [0, 200, 1000], measure, checkpoint=file)
    assert seen == {0: {}, 200: {1: 137, 3: 137}, 1000: {1: 137, 2: 951, 3: 137}}
