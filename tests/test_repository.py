"""The repository keeps the promises that the node registry and the host rely on."""

from __future__ import annotations

import fnmatch
import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def lines(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def ignored(path: str) -> bool:
    """Whether a line of .comfyignore covers the path. All lines are anchored: `docs/` would also cover web/docs."""
    patterns = lines(".comfyignore")
    assert all(pattern.startswith("/") for pattern in patterns)
    return any(f"/{path}" == line or (line.endswith("/") and f"/{path}".startswith(line)) for line in patterns)


def test_requirements_are_four_unpinned_names():
    assert lines("requirements.txt") == ["diffusers", "accelerate", "safetensors", "pillow"]


def test_what_the_host_installs_never_moves_its_torch(project):
    assert project["project"]["dependencies"] == lines("requirements.txt")
    names = {re.split(r"[<>=!~;\[ ]", name)[0] for name in project["project"]["dependencies"]}
    assert not names & {"torch", "torchvision", "numpy", "transformers", "xformers"}


def test_the_registry_accepts_the_name(project):
    name = project["project"]["name"]
    assert name == "trilora"
    assert "comfyui" not in name.lower()
    comfy = project["tool"]["comfy"]
    assert comfy["DisplayName"] == "TriLoRA"
    assert comfy["requires-comfyui"] == ">=0.3.64"
    assert "web" not in comfy, "WEB_DIRECTORY says it; a second place would load the scripts twice"


def test_extras_exist(project):
    assert set(project["project"]["optional-dependencies"]) == {"standalone", "eval", "optimizers", "dev", "soak"}


def test_every_extra_has_a_tested_version(project):
    tested = {re.split(r"[=;]", line)[0] for line in lines("constraints.txt")}
    extras = project["project"]["optional-dependencies"]
    wanted = {re.split(r"[<>=;]", name)[0] for group in extras.values() for name in group}
    assert wanted - tested <= {"tomli", "pre-commit"}


def test_the_registry_archive_leaves_out_demo_and_tests():
    assert ignored("trilora_core/demo/base/model_index.json")
    assert ignored("trilora_core/demo/pictures/01_blue_house.png")
    assert ignored("tests/test_repository.py")
    assert ignored("benchmarks/README.md")
    for needed in ("__init__.py", "nodes/train.py", "web/docs/TrainTriLoRA.md", "workflows/train.json"):
        assert not ignored(needed)
    for needed in ("web/docs/TrainTriLoRA.webp", "locales/ja/nodeDefs.json", "locales/zh/nodeDefs.json"):
        assert not ignored(needed)
    assert not ignored("trilora_core/train.py")
    assert not ignored("trilora_core/demo/__init__.py"), "the command line imports it"
    assert not ignored("requirements.txt")


def test_the_licence_is_mit(project):
    assert project["project"]["license"] == {"file": "LICENSE"}
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")


def test_nothing_of_one_machine_is_named():
    """Absolute home or work folders in tracked text would only exist on the machine of whoever wrote them."""
    pattern = re.compile(r"(?<![\w.~$}/])/(?:work|root|home/\w+|Users/\w+)/")
    kinds = ("*.py", "*.md", "*.json", "*.js", "*.toml", "*.txt", "Makefile", "run")
    folders = (".", "nodes", "trilora_core", "web", "workflows", "benchmarks", "tests", ".ci")
    guilty = []
    for folder in folders:
        walk = (ROOT / folder).iterdir() if folder == "." else (ROOT / folder).rglob("*")
        for path in walk:
            if path.is_file() and any(fnmatch.fnmatch(path.name, kind) for kind in kinds):
                text = path.read_text(encoding="utf-8", errors="replace")
                guilty += [f"{path.relative_to(ROOT)}: {found.group()}" for found in pattern.finditer(text)]
    assert not guilty
