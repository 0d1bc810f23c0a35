"""What doc/study.md rests on: the four models of demo/siblings are alike but for their attention, and the
page's tables of bytes are those that `make study` counts."""

import re

import pytest
import study
from support import ROOT, Checkpoint, text

PAGE = (ROOT / "doc" / "study.md").read_text(encoding="utf-8")


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


TABLES = [cells(line) for line in PAGE.splitlines() if line.startswith("|")]


def parameters(model):
    return int(
        re.search(r"^parameters +([\d,]+)", text("--info", model=model).decode(), re.M)[1].replace(",", "")
    )


def test_siblings_are_alike():
    """Whatever they differ in is their attention: parameters within 1 %, the same tokens, layers, heads and
    positions. Together they are small enough for a repository."""
    models = {name: study.sibling(name) for name in study.SIBLINGS}
    counts = [parameters(model) for model in models.values()]
    assert max(counts) <= 1.01 * min(counts)
    opened = [Checkpoint(model) for model in models.values()]
    for key in (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "max_position_embeddings",
    ):
        assert len({each.config[key] for each in opened}) == 1, key
    assert opened[0].config["max_position_embeddings"] == 512
    said = "Once upon a time, there was a boy named Tim. 1234"
    assert len({text("--tokenize", said, model=model) for model in models.values()}) == 1
    groups = [each.config["num_key_value_heads"] for each in opened]
    assert groups == [6, 2, 1, 0]
    assert sum(model.stat().st_size for model in models.values()) < 12_000_000


@pytest.mark.parametrize("name", study.SIBLINGS)
def test_page_has_the_siblings_bytes(name):
    counted = {
        kind: f"{bytes:,}"
        for kind, (_, bytes) in study.info_rows(study.sibling(name)).items()
        if kind in study.CACHES
    }
    rows = [row for row in TABLES if row[0] == name.upper() and len(row) == 6]
    shown = {row[1]: row[2] for row in rows}
    assert shown == counted


def test_page_has_the_shapes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study, "OUT", tmp_path)
    study.study_shapes(tmp_path)
    printed = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(printed) > 5
    assert [row for row in printed if row not in TABLES and row[0] != "---"] == []
    assert (tmp_path / "shapes.csv").exists() and (tmp_path / "shapes.svg").exists()
