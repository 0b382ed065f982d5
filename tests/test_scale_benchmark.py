"""The benchmark of scale counts what it says: operations known in closed form."""

from __future__ import annotations

import pytest
import torch

from benchmarks import scale


def test_a_plain_step_and_sam_free_penalties_are_counted_in_closed_form():
    torch.set_default_dtype(torch.float32)
    size = scale.Size(16, batch=8, classes=4)
    products = 2 * 8 * (3 * 16 * 16 + 16 * 4)  # one pass forward
    plain = scale.count(scale.step(size, None))
    assert plain.flops == 3 * products - 2 * 8 * 16 * 16  # the inputs have no gradient
    twice = scale.count(scale.step(size._replace(batch=16), None))
    assert twice.flops == 2 * plain.flops
    assert scale.count(scale.step(size, "average sharpness, 1 probe")).flops == pytest.approx(3 * plain.flops)


def test_the_page_is_replaced_between_its_marks(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "DOCS", tmp_path)
    page = tmp_path / "scale.md"
    page.write_text(f"before\n{scale.BEGIN}\nold\n{scale.END}\nafter\n")
    scale.write([{"measure": "some"}], "a table")
    assert page.read_text() == f"before\n{scale.BEGIN}\n\na table\n\n{scale.END}\nafter\n"
    assert '"some"' in (tmp_path / "benchmarks-scale.json").read_text()
