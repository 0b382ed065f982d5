"""The frameworks' examples in the docs, run: their weights are those of a loop written by hand."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from flattrain.optim import SAM
from flattrain.ranges import Refused

PAGE = Path(__file__).parent.parent / "docs" / "integrations.md"
pytestmark = pytest.mark.filterwarnings("ignore")  # of the frameworks


@pytest.fixture
def page(monkeypatch, tmp_path):
    """Run the first block, then those that hold a phrase; what they leave is in the dict."""
    torch.set_default_dtype(torch.float32)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)

    def run(*phrases, swap=()):
        names: dict[str, object] = {"__name__": "page"}
        for phrase in ("TensorDataset(", *phrases):
            (block,) = [b for b in blocks if phrase in b]
            for old, new in swap:
                block = block.replace(old, new)
            exec(block, names)
        return names

    return run


def by_hand(names, *, epochs=1, half=False, clip=None, clip_sum=None, parts=1, inside=False, schedule=None):
    """SAM in a plain loop: `parts` micro-batches a step, within each pass or each with passes of its own."""
    model = names["model"]
    optimizer = SAM(model.parameters(), torch.optim.AdamW, rho=0.05, lr=1e-2)
    scheduler = schedule(optimizer) if schedule else None
    for _ in range(epochs):
        for x, y in names["loader"]:
            micro = list(zip(x.chunk(parts), y.chunk(parts), strict=True))

            def closure(chosen):
                for xs, ys in chosen:
                    with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
                        loss = F.cross_entropy(model(xs), ys) / parts
                    loss.backward()
                if clip:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)

            optimizer.zero_grad()
            for chosen in [micro] if inside else [[m] for m in micro]:
                optimizer.backward(lambda chosen=chosen: closure(chosen))
            if clip_sum:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip_sum)
            optimizer.step()
            if scheduler:
                scheduler.step()
    return model


def agree(one, other):
    for (name, p), q in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning(page, precision):
    pytest.importorskip("lightning")
    found = page("class Classifier", swap=[("bf16-mixed", precision), ("val=1.0", "val=0.1")])
    agree(found["model"], by_hand(page(), epochs=2, half=precision == "bf16-mixed", clip=0.1))
    assert found["trainer"].global_step == 12 and int(found["model"][1].num_batches_tracked) == 12


def test_lightning_accumulates_in_the_closure_or_not_at_all(page):
    lightning = pytest.importorskip("lightning")
    # the first trainer makes no step, the second those of the example
    found = page(
        "class Classifier",
        "class Accumulating",
        swap=[("max_epochs=2, precision", "max_epochs=0, precision")],
    )
    agree(found["model"], by_hand(page(), epochs=2, parts=4, inside=True))
    trainer = lightning.Trainer(max_epochs=1, accumulate_grad_batches=2, **found["quiet"])
    with pytest.raises(Refused, match="would throw away gradients of an earlier backward"):
        trainer.fit(found["Classifier"](found["model"]), found["loader"])


def test_lightning_with_a_gradient_scaler(page):
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.plugins import MixedPrecision

    found = page("class Classifier", "class Accumulating", swap=[("max_epochs=2", "max_epochs=0")])

    def trainer():
        plugin = MixedPrecision("bf16-mixed", "cpu")
        plugin.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)  # "16-mixed" has one, on a GPU
        return lightning.Trainer(max_epochs=2, plugins=[plugin], **found["quiet"])

    class Scaled(found["Accumulating"]):
        def training_step(self, batch, index):
            x, y = batch

            def closure():
                self.manual_backward(F.cross_entropy(self.model(x), y))

            scaler = self.trainer.precision_plugin.scaler
            self.optimizers(use_pl_optimizer=False).step(closure, scaler=scaler)
            scaler.update()

    trainer().fit(Scaled(found["model"]), found["loader"])
    agree(found["model"], by_hand(page(), epochs=2, half=True))
    with pytest.raises(Refused, match="no gradient of two passes"):
        trainer().fit(found["Classifier"](found["model"]), found["loader"])


def test_hugging_face_trainer(page):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    found = page("class SamTrainer", swap=[("num_train_epochs", "max_grad_norm=0.1,\n    num_train_epochs")])

    def schedule(optimizer):
        return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=6)

    agree(found["model"], by_hand(page(), epochs=2, parts=2, clip_sum=0.1, schedule=schedule))
    assert found["trainer"].state.global_step == 12


def test_hugging_face_trainer_makes_and_resumes_the_optimizer(page):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    settings = {"base_optimizer": torch.optim.AdamW, "rho": 0.05, "lr": 1e-2}

    def train(resume, steps):
        found = page("class SamTrainer", swap=[("trainer.train()", "")])
        arguments = transformers.TrainingArguments(
            "out",
            max_steps=steps,
            save_steps=4,
            lr_scheduler_type="constant",
            use_cpu=True,
            report_to="none",
            weight_decay=0.1,
        )
        trainer = found["SamTrainer"](
            found["WithLoss"](found["model"]),
            arguments,
            train_dataset=found["examples"],
            optimizer_cls_and_kwargs=(SAM, settings),
        )
        trainer.train(resume_from_checkpoint=resume)
        assert len(trainer.optimizer.optimizer.base.param_groups) == 2
        return found["model"]

    whole = train(False, 8)
    agree(train("out/checkpoint-4", 8), whole)


def test_accelerate(page):
    pytest.importorskip("accelerate")
    found = page("from accelerate import", swap=[("1.0", "0.1")])
    plain = page()
    model = plain["model"]
    optimizer = SAM(model.parameters(), torch.optim.AdamW, rho=0.05, lr=1e-2)
    for number, (x, y) in enumerate(plain["loader"]):
        optimizer.backward(lambda x=x, y=y: (F.cross_entropy(model(x), y) / 2).backward())
        if number % 2:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
    agree(found["model"], model)


def test_accelerate_takes_a_closure(page):
    accelerate = pytest.importorskip("accelerate")
    found = page()
    accelerator = accelerate.Accelerator(cpu=True)
    model = found["model"]
    sam = SAM(model.parameters(), torch.optim.AdamW, rho=0.05, lr=1e-2)
    model, optimizer, loader = accelerator.prepare(model, sam, found["loader"])
    for x, y in loader:
        optimizer.step(lambda x=x, y=y: accelerator.backward(F.cross_entropy(model(x), y)))
    agree(model, by_hand(page()))
