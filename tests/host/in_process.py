"""Run a piece of test inside ComfyUI's own interpreter, without its server: for tests of the bridge `nodes/host`.

A test in `tests/host/test_bridge_*.py`:

    from .in_process import run_in_host
    from .models import sd15_checkpoint

    def test_targets(host):                       # fixture: once for every ComfyUI found, newest first
        answer = run_in_host(host, "bridge_targets", {"checkpoint": str(sd15_checkpoint())})
        assert answer["count"] == 16

and its other half, `tests/host/scripts/bridge_targets.py`, run by the host's interpreter:

    def main(pack, arguments):                    # pack: the loaded custom node pack; arguments: the dict above
        import comfy.sd                           # comfy.* may be imported here: --cpu is set, arguments are parsed
        from importlib import import_module
        models = import_module(".nodes.host.models", pack.__name__)
        core = import_module(".trilora_core.adapter", pack.__name__)
        return {"count": 16}                      # anything that JSON holds; NaN and infinity too

The pack is loaded as ComfyUI's custom node loader does it: from `__init__.py`, under its path as module name, with no
pack root on sys.path (`import trilora_core` fails there, `import nodes` is the host's). The host's folders (models,
input, output, user, temp) lie in a temporary base directory, `arguments["base_directory"]`, which is the working
directory too. torch runs on one thread. main() is called in normal autograd mode; wrap what a node would do in
`torch.inference_mode()`. Scripts may `from . import other_script`. What they print is shown when they fail.

A start costs about ten seconds: let one script check many things, call it once per host from a module-scoped fixture,
and assert on its answer in several tests. `newest_host` is the fixture for what one ComfyUI is enough to show.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from .discovery import PACK, Host

_BOOT = Path(__file__).with_name("boot.py")
FOLDERS = ("custom_nodes", "models/checkpoints", "models/loras", "input", "output", "user", "temp")


def make_base_directory(base: Path) -> Path:
    """The folders that a host expects below its --base-directory; returns `base`."""
    for folder in FOLDERS:
        (base / folder).mkdir(parents=True, exist_ok=True)
    return base


_failed: dict[str, str] = {}


def run_in_host(host: Host, script: str, arguments: dict[str, Any] | None = None, *, timeout: float = 900) -> Any:
    """What `main(pack, arguments)` of scripts/<script>.py returns; AssertionError with its output if it fails.

    What failed once is not run again for every other test that wants it.
    """
    called = f"{host.root} {script} {arguments}"
    if called in _failed:
        raise AssertionError(_failed[called])
    with tempfile.TemporaryDirectory(prefix="trilora-host-") as folder:
        base = make_base_directory(Path(folder) / "base")
        job, result = Path(folder) / "job.json", Path(folder) / "result.json"
        sent = {"base_directory": str(base), **(arguments or {})}
        job.write_text(json.dumps({"host": str(host.root), "pack": str(PACK), "script": script, "arguments": sent}))
        process = subprocess.run(
            [str(host.python), str(_BOOT), str(job), str(result)],
            cwd=base,
            env=host.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
        )
        if process.returncode or not result.exists():
            _failed[called] = f"{script}.py failed in ComfyUI {host.name}:\n{process.stdout[-20_000:]}"
            raise AssertionError(_failed[called])
        return json.loads(result.read_text(encoding="utf-8"))
