"""Imports point down: the maths knows no host, the core knows no node, and each heavy library has its one place."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = sorted((ROOT / "trilora_core").rglob("*.py"))
NODES = sorted((ROOT / "nodes").rglob("*.py"))
ALONE = ("config", "spectral", "keys", "objective")  # no sibling but errors and checks

EVERYWHERE = {"torch", "safetensors", "PIL", "numpy", "tqdm"}
OPTIMIZERS = {"bitsandbytes", "lion_pytorch", "prodigyopt", "schedulefree"}
PIPELINES = {"diffusers", "transformers", "accelerate", "huggingface_hub"}
HOST = {"comfy", "comfy_execution", "folder_paths", "server", "nodes", "execution", "node_helpers", "latent_preview"}
HOST |= {"aiohttp", "psutil"}  # its web server, its look at the computer's memory


def imports(source: str, path: Path) -> set[str]:
    """What a file at `path` imports, late imports too: absolute names, and relative ones from ROOT as "/nodes/host"."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = path.relative_to(ROOT).parts[: -node.level]
            parts = (*above, *(node.module or "").split(".")) if node.module else above
            found |= {"/" + "/".join((*parts, alias.name)) for alias in node.names}
    return found


def read(path: Path) -> set[str]:
    return imports(path.read_text(encoding="utf-8"), path)


def libraries(found: set[str]) -> set[str]:
    """The top-level names of other people's packages."""
    absolute = {name.partition(".")[0] for name in found if not name.startswith("/")}
    return absolute - set(sys.stdlib_module_names) - {"tomllib"}  # of Python 3.11, asked for where it is there


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def allowed(path: Path) -> set[str]:
    """The libraries that one file of the core may use."""
    name = relative(path).removeprefix("trilora_core/")
    if name.startswith(("backend_diffusers", "cli/", "demo/")):
        return EVERYWHERE | PIPELINES | {"tomli"}
    own = {
        "plots.py": {"matplotlib"},
        "evaluate_nets.py": {"torchmetrics"},
        "optim.py": OPTIMIZERS,
    }
    return EVERYWHERE | own.get(name, set())


def test_the_walk_sees_what_it_must() -> None:
    source = (
        "from __future__ import annotations\nfrom . import a\nfrom ..b import c\ndef f():\n    import comfy.sd, json\n"
    )
    assert imports(source, ROOT / "nodes" / "host" / "x.py") == {
        "__future__.annotations",
        "/nodes/host/a",
        "/nodes/b/c",
        "comfy.sd",
        "json",
    }
    assert CORE and NODES


@pytest.mark.parametrize("path", CORE, ids=relative)
def test_core_uses_only_its_libraries(path: Path) -> None:
    """An absolute `trilora_core` counts as foreign: the core is loaded under two names."""
    assert libraries(read(path)) <= allowed(path)


@pytest.mark.parametrize("path", CORE, ids=relative)
def test_core_never_imports_nodes(path: Path) -> None:
    outside = {name for name in read(path) if name.startswith("/") and not name.startswith("/trilora_core/")}
    assert not outside


@pytest.mark.parametrize("name", ALONE)
def test_the_bottom_has_no_siblings(name: str) -> None:
    siblings = {found for found in read(ROOT / "trilora_core" / f"{name}.py") if found.startswith("/")}
    assert not {found for found in siblings if not found.startswith(("/trilora_core/errors/", "/trilora_core/checks/"))}


@pytest.mark.parametrize("path", NODES, ids=relative)
def test_only_the_bridge_knows_the_host(path: Path) -> None:
    """The `nodes` among HOST is the host's module of that name: ours is imported relatively."""
    bridge = HOST if path.parent.name == "host" else set()
    assert libraries(read(path)) <= bridge | EVERYWHERE | {"comfy_api"}
    assert {name for name in read(path) if name.startswith("comfy_api")} <= {
        name for name in read(path) if name.startswith("comfy_api.latest")
    }


def test_the_pack_imports_nothing_until_asked() -> None:
    body = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8")).body
    top = [node.module if isinstance(node, ast.ImportFrom) else None for node in body if _is_import(node)]
    assert set(top) <= {"__future__", "typing"}


def _is_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)
