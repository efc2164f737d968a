"""The parity table names, for each feature that we say we have, tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TABLE = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
LINES = TABLE.splitlines()

ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in LINES if re.match(r"\| [A-Z]\d+ ", line)]
PROOFS = {found[1]: found[2] for line in LINES if (found := re.match(r"- ([A-Z]\d+): (.+)", line))}
NAMED = re.findall(r"(tests/[\w/]+\.py)::(\w+)", TABLE)


@cache
def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED)))
def test_what_is_named_exists(file: str, name: str) -> None:
    assert name.startswith("test_")
    assert (ROOT / file).is_file(), f"docs/parity.md names {file}, which is not there"
    assert name in names_in(ROOT / file), f"docs/parity.md names {name}, which {file} does not have"


def test_each_row_is_proved_or_not_yet_there() -> None:
    assert len(ROWS) > 50 and all(len(row) == 7 and all(row) for row in ROWS)
    marks = [row[0] for row in ROWS]
    assert len(set(marks)) == len(marks)
    assert [mark for mark in marks if mark in PROOFS] == [row[0] for row in ROWS if row[2] != "not yet"]
    assert list(PROOFS) == [mark for mark in marks if mark in PROOFS]
    assert all("`tests/" in proof for proof in PROOFS.values())


def test_every_note_is_explained_once_and_used() -> None:
    explained = re.findall(r"^\[\^([\w-]+)\]: ", TABLE, flags=re.MULTILINE)
    used = re.findall(r"\[\^([\w-]+)\](?!:)", TABLE)
    assert sorted(explained) == sorted(set(used))


def test_every_answer_about_others_says_where_it_was_read() -> None:
    plain = {"no graph", "does not apply: a program of its own"}
    assert [row[:2] for row in ROWS if any("[^" not in cell and cell not in plain for cell in row[3:])] == []
