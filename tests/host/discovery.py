"""Which ComfyUI the host tier runs on: found here, never installed or changed."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
CACHE = Path(tempfile.gettempdir()) / "trilora-test-cache"
HOW_TO_ENABLE = (
    "no ComfyUI found, so nothing was tested in the real host; to enable: "
    "COMFYUI_PATH=/path/to/ComfyUI [COMFYUI_PYTHON=/path/to/its/python] pytest"
)


@dataclass(frozen=True)
class Host:
    """One ComfyUI and the interpreter that runs it."""

    root: Path
    python: Path
    version: tuple[int, ...]

    @property
    def name(self) -> str:
        """The version as people write it, "0.33.0"; also the id of parametrised tests."""
        return ".".join(map(str, self.version))

    def environment(self) -> dict[str, str]:
        """Environment of a child process that writes nothing into the host, its bytecode neither."""
        dropped = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")
        environment = {key: value for key, value in os.environ.items() if key not in dropped}
        environment["PYTHONPYCACHEPREFIX"] = str(CACHE / "bytecode")
        environment["PYTHONUTF8"] = "1"
        environment["HF_HUB_OFFLINE"] = "1"
        environment.setdefault("OMP_NUM_THREADS", "1")
        return environment


def find_hosts() -> list[Host]:
    """Every ComfyUI to test on, newest first: COMFYUI_PATH alone if it is set, else the folder that holds the pack,
    else ~/comfy/ComfyUI; without COMFYUI_PATH its siblings `ComfyUI-*` count too. Empty when there is none."""
    chosen = os.environ.get("COMFYUI_PATH")
    if chosen:
        return [_host(Path(chosen).expanduser(), required=True)]
    holder = PACK.parent.parent if PACK.parent.name == "custom_nodes" else None
    root = holder if holder and _is_comfyui(holder) else Path.home() / "comfy" / "ComfyUI"
    roots = [root, *sorted(root.parent.glob("ComfyUI-*"))]
    hosts = [host for host in map(_host, roots) if host is not None]
    return sorted(hosts, key=lambda host: host.version, reverse=True)


def _is_comfyui(root: Path) -> bool:
    return (root / "main.py").is_file() and (root / "comfyui_version.py").is_file()


def _host(root: Path, required: bool = False) -> Host | None:
    """The host at `root`; None, or FileNotFoundError when `required`, if it is not one that can run."""
    if not _is_comfyui(root):
        if required:
            raise FileNotFoundError(f"COMFYUI_PATH is {root}, which holds no main.py of ComfyUI; give its root folder")
        return None
    default = root / (".venv/Scripts/python.exe" if os.name == "nt" else ".venv/bin/python")
    python = Path(os.environ.get("COMFYUI_PYTHON", default)).expanduser()
    if not python.is_file():
        if required:
            raise FileNotFoundError(f"no interpreter at {python}; set COMFYUI_PYTHON to the one that runs {root}")
        return None
    found = re.search(r"__version__\s*=\s*[\"']([\d.]+)", (root / "comfyui_version.py").read_text(encoding="utf-8"))
    version = tuple(int(part) for part in found.group(1).split(".")) if found else (0,)
    return Host(root, python, version)
