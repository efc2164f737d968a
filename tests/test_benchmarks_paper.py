"""The paper's protocol runs end to end on the small world, and a second start does nothing twice."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from trilora_core.demo import BASE
from trilora_core.demo.world import Picture, draw

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "paper" / "run.py"


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; the search path that it extends is put back."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("trilora_paper_run", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, subject in enumerate(("house", "tree", "boat", "star")):
        picture = Picture(subject, "red", "by the sea")
        draw(picture, style="zorblin").save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(picture.caption)
    return folder


def test_the_protocol_end_to_end(
    paper: ModuleType,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TRILORA_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    words = ["pokemon", "--model", str(BASE), "--data", str(pictures), "--output", str(out), "--device", "cpu"]
    words += ["--epochs", "2", "--batch-size", "2", "--rank", "2", "--prompts", "3", "--drawing-steps", "2"]
    words += ["--trigger-word", "dragon style", "--base-word", "lantern"]
    assert paper.main(words) == 0
    files = {path: path.stat().st_mtime_ns for path in sorted(out.glob("**/*")) if path.suffix in _KEPT}
    assert paper.main(words) == 0
    assert files == {path: path.stat().st_mtime_ns for path in files}
    adapters = [path for path in files if path.suffix == ".safetensors"]
    assert len(adapters) == 3 and len({path.read_bytes() for path in adapters}) == 3  # what differs is the init
    drawn = {path.parent.name: path.read_bytes() for path in files if path.name == "00002.png"}
    assert len(drawn) == len(set(drawn.values())) == 4  # the base and three arms, all unlike
    assert (out / "base" / "00002.txt").read_text().strip() == "a red boat by the sea"
    rows = (out / "table.md").read_text().splitlines()
    assert len(rows) == 2 + 4 and "0.796" in rows[4] and "0.867" in rows[3]
    assert "clipped" in rows[0] and "–" not in rows[2].rsplit("|", 3)[0]
    capsys.readouterr()


_KEPT = (".safetensors", ".png")


def test_marks_of_the_long_run_are_saves(paper: ModuleType, pictures: Path, tmp_path: Path) -> None:
    """Every mark names an adapter that the run keeps."""
    protocol = paper.PROTOCOLS["long"]
    chosen = paper.argparse.Namespace(data=pictures, output=tmp_path, epochs=1000, batch_size=1)
    found = [one for one in paper.sets(chosen, protocol) if one.arm == "LoRA"]
    assert [one.adapter.name for one in found] == [
        *(f"lora_step_{step:05d}.safetensors" for step in (1000, 2000, 3000)),
        "lora.safetensors",
    ]
