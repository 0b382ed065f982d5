"""Whatever is wrong gets one line that names it, exit code 2, and nothing on disk."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from mutants import laughs, mutant

from flattrain.lab.compose import composed
from flattrain.lab.execute import missing
from flattrain.lab.study import store_of
from flattrain.ranges import Refused
from recipes import TINY, call, write

BAD_CALLS = [
    (["bogus"], "unknown command 'bogus'"),
    (["repot", "x"], "did you mean 'report'"),
    (["seeds=3"], "recipe=NAME is missing"),
    (["recipe=tniy"], "did you mean 'tiny'"),
    (["recipe="], "no recipe of that name"),
    (["recipe=./no.yaml"], "no such file"),
    (["recipe=tiny", "train.lrr=0.1"], "did you mean 'train.lr'"),
    (["recipe=tiny", "sedes=3"], "did you mean 'seeds'"),
    (["recipe=tiny", "train.lr=fast"], "train.lr"),
    (["recipe=tiny", "train.lr=-1"], "train.lr must be a number > 0, got -1"),
    (["recipe=tiny", "train.lr=nan"], "train.lr must be a number > 0"),
    (["recipe=tiny", "train.lr=1e999"], "train.lr must be a number > 0"),
    (["recipe=tiny", "seeds=0"], "seeds must be a whole number >= 1"),
    (["recipe=tiny", "seeds=2.5"], "seeds"),
    (["recipe=tiny", "seeds=null"], "seeds"),
    (["recipe=tiny", "seeds=1,2"], "one value per key"),
    (["recipe=tiny", "seeds=2", "seeds=3"], "seeds is given twice"),
    (["recipe=tiny", "jobs=-1"], "jobs must be"),
    (["recipe=tiny", "+train.foo=1"], "keys are set, not added"),
    (["recipe=tiny", "~train.lr="], "keys are set, not added"),
    (["recipe=tiny", "--foo"], "unknown option '--foo'"),
    (["recipe=tiny", "-m"], "unknown option '-m'"),
    (["-m"], "recipe=NAME is missing"),
    (["-m", "tiny"], "is not KEY=VALUE"),
    (["-m", "recipe=tiny,tniy"], "did you mean 'tiny'"),
    (["-m", "recipe=tiny", "train.lr=0.1,fast"], "train.lr"),
    (["-m", "recipe=tiny", "train.lr=[0.1,"], "-m: "),
    (["-m", "recipe=tiny", "train.lr=0.1,0.2", "out=here"], "would both write here"),
    (["-m", "recipe=tiny", "jobs=1,2"], "would both write"),
    (["-m", "recipe=tiny", "train.lr=interval(0,1)"], "does not support sweep"),
    (["-m", "recipe=tiny", "problem.dataset.parity.dim=5,1"], "parity.dim=1: "),
    (["-m", "recipe=tiny", "hydra/launcher=jolib"], "jolib"),
    (["-m", "recipe=tiny", "hydra.launcher.n_jbs=2"], "n_jbs"),
    (["recipe=tiny", "train.lr=[1"], "cannot be read"),
    (["recipe=tiny", "title=${oc.env:HOME}"], "is not allowed"),
    (["recipe=tiny", "train.optimizer=sgdd"], "did you mean 'sgd'"),
    (["recipe=tiny", "train.steps=null"], "give either steps or epochs"),
    (["recipe=tiny", "train.epochs=3"], "give either steps or epochs"),
    (["recipe=tiny", "train.batch_size=100"], "at most the 8 training examples"),
    (["recipe=tiny", "train.spacing=cubic"], "must be one of 'log', 'linear'"),
    (["recipe=tiny", "precision=float16"], "must be one of float32, float64"),
    (["recipe=tiny", "backend=gpu"], "must be one of auto, stacked"),
    (["recipe=tiny", "tracking=wand"], "must be one of none, wandb"),
    (["recipe=tiny", "preset=full"], "preset=full: unknown"),
    (["recipe=tiny", "arms.sma.rule=plain"], "did you mean 'arms.sam'"),
    (["recipe=tiny", "arms.sam.rule.sam.rhoo=1"], "did you mean 'rho'"),
    (["recipe=tiny", "arms.sam.rule.sam.rho=-1"], "arms.sam.rule.sam.rho must be a number >= 0"),
    (["recipe=tiny", "arms.sam.rule=smm"], "did you mean 'sam'"),
    (["recipe=tiny", "arms.sam.model.two_layer.width=0"], "width must be a whole number >= 1"),
    (["recipe=tiny", "arms.sam.model.two_layer.bias=1"], "bias must be true or false"),
    (
        ["recipe=tiny", "arms.sam.model.two_layer.normalisation=group"],
        "must be one of 'none', 'layer', 'batch'",
    ),
    (["recipe=tiny", "measures.along=[train_los]"], "did you mean 'train_loss'"),
    (["recipe=tiny", "measures.along=[xyzzy]"], "in all)"),
    (["recipe=tiny", "measures.alongg=[]"], "unknown key 'alongg'"),
    (["recipe=tiny", "problem.dataset=mnis"], "did you mean 'mnist'"),
    (["recipe=tiny", "problem.loss=mse"], "unknown 'mse'; known: binary_cross_entropy, cross_entropy"),
    (["recipe=tiny", "problem.dataset.parity.dim=1"], "dim must be >= 2"),
    (["recipe=tiny", "problem.loss=cross_entropy"], "cross_entropy"),
    (["recipe=tiny", "claims.falls.predicts.belwo=1"], "give exactly one of"),
    (["recipe=tiny", "claims.falls.test.median.arm=sma"], "did you mean 'sam'"),
    (["recipe=tiny", "claims.falls.test.median.at.n=9"], "9 is not on the grid"),
    (["recipe=tiny", "correction=hol"], "did you mean 'holm'"),
    (["recipe=tiny", "penalties.soft_rank.lam=1"], "weight is missing"),
    (
        ["recipe=tiny", "penalties.soft_rank={weight:1,lam:{head:-1}}"],
        "penalties.soft_rank.lam of 'head' must be a number > 0, got -1",
    ),
    (["recipe=tiny", "penalties.soft_rank={weight:1,lam:{}}"], "a table of names, a number > 0 for each"),
    (["recipe=tiny", "penalties.soft_rank={weight:1,lam:{head:{weight:1}}}"], "lam of 'head' must be"),
    (["recipe=tiny", "penalties.fisher_rank={weight:1,lam:{haed:1}}"], "did you mean 'head'"),
    (["recipe=tiny", "penalties.fisher_rank={weight:1,lam:{head:1}}"], "lam has no value for hidden"),
    (["recipe=tiny", "penalties.fisher_rank={weight:1,lam:{head:1},phi:trace}"], "has no λ"),
    (["recipe=tiny", "out=/proc/nowhere"], "cannot write there"),
    (["report"], "takes one run folder"),
    (["report", "nowhere"], "not a run folder"),
    (["list", "x"], "takes no arguments"),
]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"), BAD_CALLS, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_bad_calls(words, said, capsys, home):
    code, out, err = call(capsys, *words)
    assert code == 2 and out == "", err
    assert said in err and err.startswith("flattrain: ") and err.count("\n") == 1
    assert sorted(p.name for p in home.rglob("*")) == ["recipes", "tiny.yaml"]


BAD_FILES = [
    ("seeds: [", "not a readable recipe"),
    ("- a list", "a recipe is a table"),
    (TINY + "\nseedz: 3", "did you mean 'seeds'"),
    (TINY.replace("rule: {sam: {rho: 0.05}}", "rulee: plain"), "did you mean 'rule'"),
    (TINY.replace("rule: {sam: {rho: 0.05}}", "rule: {sam: {}, plain: {}}"), "exactly one of"),
    (TINY.replace("quantity: train_loss, log: y", "quantity: trian_loss"), "is not measured"),
    (TINY.replace("predicts: {below: 1.0}", ""), "predicts is missing"),
    (TINY.replace("says: The loss is below one.", "sais: x"), "did you mean 'says'"),
    (TINY.replace("question: Does", "question: ${HOME} Does"), "values only"),
    (
        TINY.replace("key: problem.dataset.parity.train", "key: problem.datset.parity.train"),
        "did you mean 'dataset'",
    ),
    (TINY.replace("milestones: 3", "milstones: 3"), "did you mean 'train.milestones'"),
    (
        TINY.replace("seeds: 3", "seeds: !!python/object/apply:os.system ['touch pwned']"),
        "not a readable recipe",
    ),
    ("\x00\x01", "not a readable recipe"),
]


@pytest.mark.parametrize(("text", "said"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_bad_files(text, said, capsys, home):
    write(home, text)
    code, out, err = call(capsys, "recipe=tiny")
    assert code == 2 and out == "" and err.count("\n") == 1, err
    assert said in err
    assert sorted(p.name for p in home.rglob("*")) == ["recipes", "tiny.yaml"]


def test_help_and_list(capsys):
    for words in ([], ["--help"], ["help"]):
        code, out, _ = call(capsys, *words)
        assert code == 0 and "recipe=quickstart" in out and "python -m flattrain list" in out
    code, out, _ = call(capsys, "list")
    assert code == 0
    for text in ("tiny", "two_layer_relu", "quickstart", "arXiv 2307.11007", "about"):
        assert text in out


def test_mutated_recipes_are_accepted_or_refused_in_one_line(home):
    """Whatever stands in a recipe: a recipe or a refusal, and never anything else."""
    texts = TINY, Path(__file__).with_name("every_key.yaml").read_text()
    for text in texts:
        write(home, text)
        assert composed(["recipe=tiny"]).cells
    refused = 0
    for k in range(80):
        write(home, mutant(texts[k % 2], random.Random(k)))
        began = time.process_time()
        try:
            recipe = composed(["recipe=tiny"])
            missing(recipe, store_of(recipe))
        except Refused as error:
            line = " ".join(str(error).split())
            assert line and len(line) < 600, k
            refused += 1
        assert time.process_time() - began < 10, k  # it does not hang; most take a tenth of a second
    assert 40 < refused < 80


def test_a_few_lines_that_stand_for_more_than_there_is_memory(home, capsys):
    for text, said in (
        (laughs(9), "more than 10,000 values"),
        ("arms: &a [*a]", "deeper than"),
        (TINY + "model: " + "[" * 5000 + "]" * 5000, "nested too deep"),
        (TINY + "model: " + "- " * 5000, "nested too deep"),
        (TINY.replace("seeds: 3", "seeds: " + "9" * 5000), "digits"),
        ("#" * 2_000_000, "more than 100,000"),
        (TINY.replace("seeds: 3", "seeds: 1000000000"), "seeds must be at most 10,000"),
        (TINY.replace("milestones: 3", "milestones: 1000000000"), "milestones must be at most 10,000"),
        (TINY.replace("[8, 12]", str(list(range(10_001)))), "10,000"),
    ):
        write(home, text)
        began = time.process_time()
        code, _, err = call(capsys, "recipe=tiny")
        assert code == 2 and said in err and err.count("\n") == 1, err
        assert time.process_time() - began < 10
