"""The rating page: what it holds, what it hides, and what is counted from it."""

from __future__ import annotations

import csv
import json
from collections import Counter

import pytest
import torch
from PIL import Image

from trilora_core.__main__ import main
from trilora_core.errors import InputError
from trilora_core.evaluate_sets import read_set
from trilora_core.rating import plan_pairs, read_key
from trilora_core.rating_results import Vote, bradley_terry, duels, read_votes, wilson

PROMPTS = 8


def write_methods(folder, *names: str) -> list[str]:
    for place, name in enumerate(names):
        (folder / name).mkdir()
        for number in range(PROMPTS):
            Image.new("RGB", (16, 16), (30 * place, 20 * number, 99)).save(folder / name / f"p{number}.png")
            (folder / name / f"p{number}.txt").write_text(f"prompt {number} </script>", encoding="utf-8")
    return [str(folder / name) for name in names]


def write_votes(path, key, rater: str, better: str) -> None:
    """The rater prefers one method wherever it is, and sees no difference elsewhere."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["study", "rater", "pair", "question", "choice", "seconds"])
        for pair in key.pairs:
            choice = "left" if pair.left == better else "right" if pair.right == better else "tie"
            rows.writerow([key.study, rater, pair.id, 0, choice, 1.5])


def test_sides_and_pairs_are_balanced_and_seeded(tmp_path) -> None:
    sets = [read_set(folder) for folder in write_methods(tmp_path, "a", "b", "c")]
    planned = [pair for pair, _, _ in plan_pairs(sets, 24, 30)]
    assert len({pair.id for pair in planned}) == 24
    sides = Counter((pair.left, pair.right) for pair in planned)
    assert set(sides.values()) == {4}, "three pairs of methods, each way round as often"
    assert [pair for pair, _, _ in plan_pairs(sets, 24, 30)] == planned
    assert [pair for pair, _, _ in plan_pairs(sets, 24, 31)] != planned
    assert len(plan_pairs(sets, 1000, 30)) == 3 * PROMPTS, "no caption meets the same two methods twice"
    for pair, left, right in plan_pairs(sets, 6, 30):
        assert left.stem == right.stem and left.path.parent.name == pair.left and right.path.parent.name == pair.right


def test_the_page_does_not_tell(tmp_path, capsys) -> None:
    folders = write_methods(tmp_path, "lora_secret", "trilora_secret")
    page = tmp_path / "study.html"
    assert main(["rate", *folders, "--output", str(page), "--pairs", "6"]) == 0
    text = page.read_text(encoding="utf-8")
    assert "secret" not in text and "p3.png" not in text and str(tmp_path) not in text
    assert text.count("data:image/webp") == 12 and text.count("</script>") == 2
    assert "key" in capsys.readouterr().out
    key = read_key(tmp_path / "study.key.json")
    assert len(key.pairs) == 6 and {pair.left for pair in key.pairs} == {"lora_secret", "trilora_secret"}
    data = json.loads(text.split('type="application/json">')[1].split("</script>")[0])
    assert [pair["id"] for pair in data["pairs"]] == [pair.id for pair in key.pairs]
    assert data["pairs"][0]["caption"].endswith("</script>") and data["study"] == key.study


def test_votes_become_win_rates(tmp_path, capsys) -> None:
    folders = write_methods(tmp_path, "a", "b", "c")
    assert main(["rate", *folders, "--output", str(tmp_path / "s.html"), "--pairs", "24"]) == 0
    key = read_key(tmp_path / "s.key.json")
    for rater, better in (("Ada", "a"), ("Bo", "a"), ("Cy", "b")):
        write_votes(tmp_path / f"{rater}.csv", key, rater, better)
    files = [str(tmp_path / f"{rater}.csv") for rater in ("Ada", "Bo", "Cy", "Cy")]  # one handed in twice
    capsys.readouterr()
    argv = ["rate", "--results", *files, "--key", str(tmp_path / "s.key.json"), "--output", str(tmp_path / "r.json")]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    found = {(d["first"], d["second"]): d for d in json.loads((tmp_path / "r.json").read_text("utf-8"))["duels"]}
    a_b, a_c = found["a", "b"], found["a", "c"]
    assert (a_b["wins"], a_b["losses"], a_b["ties"]) == (16, 8, 0)
    assert (a_c["wins"], a_c["losses"], a_c["ties"]) == (16, 0, 8)
    assert a_b["interval"] == pytest.approx([0.4671, 0.8203], abs=2e-4)
    assert (a_b["raters_first"], a_b["raters_second"], a_c["raters_first"], a_c["raters"]) == (2, 1, 2, 3)
    assert "72 choices of 3 raters" in shown and "a over b: 67% of 24 decided [47%, 82%]" in shown
    assert shown.index("a: wins") < shown.index("b: wins") < shown.index("c: wins")


def test_a_set_without_any_vote_has_no_strength_and_is_named(tmp_path, capsys) -> None:
    folders = write_methods(tmp_path, "a", "b", "c")
    assert main(["rate", *folders, "--output", str(tmp_path / "s.html"), "--pairs", "24"]) == 0
    key = tmp_path / "s.key.json"
    write_votes(tmp_path / "all.csv", read_key(key), "Ada", "a")
    of_a_and_b = {pair.id for pair in read_key(key).pairs if {pair.left, pair.right} == {"a", "b"}}
    head, *rows = (tmp_path / "all.csv").read_text(encoding="utf-8").splitlines()
    rows = [row for row in rows if row.split(",")[2] in of_a_and_b]
    (tmp_path / "v.csv").write_text("\n".join([head, *rows]), encoding="utf-8")
    capsys.readouterr()
    argv = ["rate", "--results", str(tmp_path / "v.csv"), "--key", str(key), "--output", str(tmp_path / "r.json")]
    assert main(argv) == 0
    assert "  c: no choice yet" in capsys.readouterr().out
    found = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in found["strengths"]["0"]] == ["a", "b"] and found["unrated"] == {"0": ["c"]}


def test_wilson_and_bradley_terry_are_the_published_ones() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I, method 3
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    draw, true = torch.Generator().manual_seed(0), {"a": 1.5, "b": 0.0, "c": -1.5}
    votes = []
    for first, second in (("a", "b"), ("b", "c"), ("a", "c")) * 400:
        won = torch.rand((), generator=draw) < torch.sigmoid(torch.tensor(true[first] - true[second]))
        votes.append(Vote("r", 0, *((first, second) if won else (second, first)), False))
    found = {one.name: one for one in bradley_terry(votes, ["a", "b", "c"])}
    for name, value in true.items():
        assert found[name].low < float(torch.sigmoid(torch.tensor(value))) < found[name].high
        assert found[name].high - found[name].low < 0.12
    tied = bradley_terry([Vote("r", 0, "a", "b", True)] * 10, ["a", "b"])
    assert [one.chance for one in tied] == pytest.approx([0.5, 0.5])
    assert duels([Vote("r", 0, "b", "a", False)], ["a", "b"])[0].losses == 1


def test_folders_without_a_common_name_are_told_apart(tmp_path, capsys) -> None:
    folders = write_methods(tmp_path, "a", "b", "c")
    argv = ["rate", *folders, "--output", str(tmp_path / "s.html")]
    for number in range(PROMPTS):
        (tmp_path / "c" / f"p{number}.png").rename(tmp_path / "c" / f"x{number}.png")
    assert main(argv) == 2
    assert f"{folders[0]} and {folders[2]} have no picture name in common" in capsys.readouterr().err
    Image.new("RGB", (16, 16)).save(tmp_path / "c" / "p0.png")
    (tmp_path / "b" / "p0.png").unlink()
    assert main(argv) == 2
    assert "all folders together have no picture name in common" in capsys.readouterr().err


def test_what_cannot_be_rated_or_counted_is_refused(tmp_path, capsys) -> None:
    a, b = write_methods(tmp_path, "a", "b")
    page = str(tmp_path / "s.html")

    def refused(*argv: str) -> str:
        assert main(["rate", *argv]) == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith("error: ") and "\n" not in said
        return said

    assert "two folders or more" in refused(a, "--output", page)
    assert ".html" in refused(a, b, "--output", str(tmp_path / "s.txt"))
    assert ". is a folder" in refused(a, b, "--output", ".")
    assert "is not UTF-8" in refused(a, f"{b}\udcff", "--output", page)
    assert "at least 1" in refused(a, b, "--output", page, "--pairs", "0")
    assert "--output" in refused()
    for path in (tmp_path / "b").glob("*.png"):
        path.rename(path.with_name(f"x{path.name}"))
    assert "no picture name in common" in refused(a, b, "--output", page)
    for path in (tmp_path / "b").glob("*.png"):
        path.rename(path.with_name(path.name[1:]))
    assert main(["rate", a, b, "--output", page]) == 0
    capsys.readouterr()
    key, votes = tmp_path / "s.key.json", tmp_path / "v.csv"
    for flag in ("--pairs", "--seed"):
        assert f"{flag} is for a new page" in refused("--results", str(votes), "--key", str(key), flag, "0")
    assert "a folder is for a new page" in refused(a, "--results", str(votes), "--key", str(key))
    assert "--key" in refused("--results", str(votes))
    assert "cannot be read" in refused("--results", str(votes), "--key", str(key))
    votes.write_text("a,b\n1,2\n", encoding="utf-8")
    assert "no column 'study'" in refused("--results", str(votes), "--key", str(key))
    write_votes(votes, read_key(key), "Ada", "a")
    assert "no key of a rating page" in refused("--results", str(votes), "--key", str(votes))
    text = votes.read_text(encoding="utf-8")
    votes.write_text(text.replace("left", "up"), encoding="utf-8")
    assert "left, right or tie" in refused("--results", str(votes), "--key", str(key))
    votes.write_text(text.replace(read_key(key).study, "0" * 12), encoding="utf-8")
    assert "of the study" in refused("--results", str(votes), "--key", str(key))
    votes.write_text(text.splitlines()[0] + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="no votes"):
        read_votes([votes], read_key(key))
