"""Started by in_process.py with the host's interpreter, `boot.py JOB.json RESULT.json`; imports no other test file."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType


def start_comfy(root: str, base: str) -> None:
    """Make comfy importable as a library on the CPU, with its folders below `base`."""
    sys.path[0] = root
    sys.argv = ["main.py", "--cpu", "--base-directory", base]
    options = importlib.import_module("comfy.options")
    options.enable_args_parsing()
    importlib.import_module("comfy.cli_args")
    importlib.import_module("torch").set_num_threads(1)


def load_pack(folder: str) -> ModuleType:
    """The pack, loaded as the host's `load_custom_node` does it."""
    name = folder.replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, str(Path(folder) / "__init__.py"))
    if spec is None or spec.loader is None:
        raise ImportError(f"no pack at {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load_script(name: str) -> ModuleType:
    """tests/host/scripts/<name>.py as a module of the package `host_scripts`."""
    folder = Path(__file__).with_name("scripts")
    package = ModuleType("host_scripts")
    package.__path__ = [str(folder)]
    sys.modules["host_scripts"] = package
    return importlib.import_module(f"host_scripts.{name}")


def main() -> None:
    job_file, result_file = sys.argv[1:3]
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    start_comfy(job["host"], job["arguments"]["base_directory"])
    answer = load_script(job["script"]).main(load_pack(job["pack"]), job["arguments"])
    Path(result_file).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
