"""A real ComfyUI as a server process: CPU, a port and a base directory of its own, this pack linked in custom_nodes."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import subprocess
import time
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .client import Client
from .discovery import CACHE, PACK, Host
from .in_process import make_base_directory
from .models import sd15_clip_checkpoint, write_pictures

CHECKPOINT = "sd15.safetensors"  # SD1.5 class with CLIP-L and VAE, for CheckpointLoaderSimple
PICTURES = "pictures"  # folder below input/ with four captioned pictures of 128 pixels
PACK_NAME = "trilora"  # the pack's folder in custom_nodes
# ComfyUI 0.3.64 imports requests without requiring it: transformers brought it until version 5. What the host lacks of
# these is lent from the interpreter that runs the tests, so that nothing has to be installed into the host.
_LENT = ("requests", "urllib3", "certifi", "idna", "charset_normalizer")


@dataclass(frozen=True)
class Server:
    """A running server and what belongs to it."""

    host: Host
    base: Path
    client: Client
    log_file: Path
    start_log: str
    process: subprocess.Popen[bytes]

    @property
    def loras(self) -> Path:
        """The folder of adapters."""
        return self.base / "models" / "loras"

    def log(self) -> str:
        """All that the server has printed so far."""
        return _read(self.log_file)


def fill_base_directory(base: Path) -> Path:
    """What a graph can name: the pack, one checkpoint, four captioned pictures; returns `base`."""
    make_base_directory(base)
    (base / "custom_nodes" / PACK_NAME).symlink_to(PACK, target_is_directory=True)
    (base / "models" / "checkpoints" / CHECKPOINT).symlink_to(sd15_clip_checkpoint())
    write_pictures(base / "input" / PICTURES)
    return base


@contextlib.contextmanager
def run_server(host: Host, base: Path, *, timeout: float = 240) -> Iterator[Server]:
    """Fill the empty folder `base`, start the host on it, and stop it afterwards; AssertionError with its log."""
    fill_base_directory(base)
    with serve(host, base, timeout=timeout) as server:
        yield server


@contextlib.contextmanager
def serve(host: Host, base: Path, *, timeout: float = 240) -> Iterator[Server]:
    """Start the host on a folder that was filled, and may have been served from before; stop it afterwards."""
    log_file, port = base / "server.log", _free_port()
    command = [str(host.python), str(host.root / "main.py"), "--cpu", "--port", str(port), "--disable-api-nodes"]
    command += ["--fp32-text-enc"]  # the host's choice is fp16, which takes ten times as long on a CPU
    command += [
        "--base-directory",
        str(base),
        "--database-url",
        f"sqlite:///{(base / 'user' / 'comfyui.db').as_posix()}",
    ]
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command, cwd=base, env=_environment(host), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            client = Client(f"http://127.0.0.1:{port}")
            _wait_until_up(client, process, log_file, time.monotonic() + timeout)
            yield Server(host, base, client, log_file, _read(log_file), process)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def _environment(host: Host) -> dict[str, str]:
    """The host's environment, with a folder of lent packages on its path if it lacks any."""
    environment = host.environment()
    probe = f"import importlib.util as u; print(*(n for n in {_LENT!r} if u.find_spec(n) is None))"
    lacking = subprocess.run(
        [str(host.python), "-c", probe], env=environment, capture_output=True, text=True, check=True
    )
    for name in lacking.stdout.split():
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            link = CACHE / "lent" / host.name / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            with contextlib.suppress(FileExistsError):
                link.symlink_to(Path(spec.origin).parent, target_is_directory=True)
            environment["PYTHONPATH"] = str(link.parent)
    return environment


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_up(client: Client, process: subprocess.Popen[bytes], log_file: Path, end: float) -> None:
    while process.poll() is None and time.monotonic() < end:
        try:
            client.get("/system_stats")
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    why = f"ended with {process.returncode}" if process.poll() is not None else "did not answer in time"
    raise AssertionError(f"the server {why}:\n{_read(log_file)[-20_000:]}")


def _read(log_file: Path) -> str:
    return log_file.read_text(encoding="utf-8", errors="replace")
