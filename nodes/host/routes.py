"""What the host's server answers about the runs that go on just now, and how one of them is asked to stop and keep.

    GET  /trilora/runs                 [{"run": id, "node": id or null, "step": 12, "steps": 500}, …]
    POST /trilora/stop {"run": id}     {"run": id}; 404 when no such run goes on, 400 for another body

A handler runs in the server's thread: it reads numbers and sets a flag, which the run sees after its step.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from ...trilora_core.train import Run

__all__ = ["register", "running"]

RUNS = "/trilora/runs"
STOP = "/trilora/stop"

_runs: dict[str, tuple[Run, str | None]] = {}


def register() -> None:
    """Add the routes to the host's server, once; without a server there is nobody to ask."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None and all(getattr(route, "path", None) != RUNS for route in server.routes):
        server.routes.get(RUNS)(_list)
        server.routes.post(STOP)(_stop)


@contextmanager
def running(run: Run, node_id: str | None) -> Iterator[str]:
    """List a run under a new id for as long as the block lasts; the id."""
    name = secrets.token_hex(8)
    _runs[name] = (run, node_id)
    try:
        yield name
    finally:
        del _runs[name]


async def _list(_request: web.Request) -> web.Response:
    """Every run that goes on."""
    return web.json_response([_told(name, run, node) for name, (run, node) in list(_runs.items())])


async def _stop(request: web.Request) -> web.Response:
    """Ask one run to stop and keep what it has learned."""
    try:
        body = await request.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        body = None
    name = body.get("run") if isinstance(body, dict) else None
    if not isinstance(name, str):
        return _refused(400, f'wanted {{"run": id}} with an id from {RUNS}')
    if name not in _runs:
        return _refused(404, f"no run {name[:40]!r} goes on; see {RUNS}")
    _runs[name][0].request_stop()
    return web.json_response({"run": name})


def _told(name: str, run: Run, node: str | None) -> dict[str, Any]:
    return {"run": name, "node": node, "step": run.step, "steps": run.config.steps}


def _refused(status: int, why: str) -> web.Response:
    return web.json_response({"error": why}, status=status)
