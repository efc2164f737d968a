"""What the host's server answers about runs of this process, and how one that goes on is asked for something.

    GET  /trilora/runs                         [{"run": id, "node": id or null, "state": "training", "step": 12, …}, …]
    GET  /trilora/runs/ID                      all of one run: state, curve, measures, spectra, previews
    GET  /trilora/runs/ID/previews/NUMBER      one of its pictures, as PNG
    POST /trilora/stop {"run": id}             end after this step and keep what was learned; {"run": id}
    POST /trilora/save {"run": id}             write the adapter and the state of this step, and go on
    POST /trilora/preview {"run": id}          draw the previews of this step, and go on

404 for a run that is not known, or to a POST for one that has ended; 400 for another body, 413 for a large one, which
is not read to its end; 409 where it cannot be done.
A handler runs in the server's thread: it copies numbers and sets a flag, which the run sees after its step.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from ...trilora_core.jsontext import read_json
from ...trilora_core.liverun import LiveRun
from ...trilora_core.train import Run
from .events import server_instance

__all__ = ["add", "begin", "end", "register"]

RUNS = "/trilora/runs"
LARGEST = 4096  # bytes of a body; an id has 32 letters
ENDED = 32  # runs that have ended and can still be asked about


@dataclass
class _Entry:
    live: LiveRun
    run: Run | None = None  # while it trains; an ended one must not hold the model
    can_preview: bool = False
    going: bool = True


_entries: dict[str, _Entry] = {}
_lock = threading.Lock()  # of the table: the server reads it while a run is added or has ended


def register() -> None:
    """Add the routes to the host's server, once; without a server there is nobody to ask."""
    server = server_instance()
    if server is None or any(getattr(route, "path", None) == RUNS for route in server.routes):
        return
    server.routes.get(RUNS)(_list)
    server.routes.get(RUNS + "/{run}")(_whole)
    server.routes.get(RUNS + r"/{run}/previews/{number:\d{1,9}}")(_picture)
    server.routes.post("/trilora/stop")(_asking(_stop))
    server.routes.post("/trilora/save")(_asking(_save))
    server.routes.post("/trilora/preview")(_asking(_preview))


def add(live: LiveRun) -> None:
    """List a run that is being prepared."""
    with _lock:
        _entries[live.id] = _Entry(live)


def begin(live: LiveRun, run: Run, *, can_preview: bool) -> None:
    """Let a listed run be asked for something: it trains from now on."""
    with _lock:
        _entries[live.id].run, _entries[live.id].can_preview = run, can_preview


def end(live: LiveRun) -> None:
    """List a run as ended, and forget the oldest of those."""
    with _lock:
        _entries[live.id].run, _entries[live.id].going = None, False
        for name in [name for name, entry in _entries.items() if not entry.going][:-ENDED]:
            del _entries[name]


def _known() -> dict[str, _Entry]:
    with _lock:
        return dict(_entries)


async def _list(_request: web.Request) -> web.Response:
    """Every run that goes on, and the last ones that ended."""
    return web.json_response([entry.live.line() for entry in _known().values()])


async def _whole(request: web.Request) -> web.Response:
    """All of one run."""
    entry = _known().get(request.match_info["run"])
    return _unknown(request.match_info["run"]) if entry is None else web.json_response(entry.live.whole())


async def _picture(request: web.Request) -> web.StreamResponse:
    """One preview of one run."""
    entry = _known().get(request.match_info["run"])
    number = int(request.match_info["number"])
    path = None if entry is None else entry.live.picture(number)
    if path is None or not path.is_file():
        return _refused(404, f"there is no preview {number} of such a run; see {RUNS}/ID")
    return web.FileResponse(path, headers={"Content-Type": "image/png"})


def _asking(ask: Callable[[_Entry, Run], str]) -> Callable[[web.Request], web.Response]:
    """A handler that asks one run for something; `ask` says why it cannot, or ""."""

    async def handle(request: web.Request) -> web.Response:
        data = await _small(request)
        if data is None:
            return _refused(413, f"the body has more than {LARGEST} bytes")
        try:
            body = read_json(data)
        except ValueError:  # no Unicode is one, too
            body = None
        name = body.get("run") if isinstance(body, dict) else None
        if not isinstance(name, str):
            return _refused(400, f'wanted {{"run": id}} with an id from {RUNS}')
        entry = _known().get(name)
        if entry is None or not entry.going:
            return _unknown(name)
        if entry.run is None:
            return _refused(409, "this run is still being prepared: wait for its first step, or cancel the queue")
        why = ask(entry, entry.run)
        return _refused(409, why) if why else web.json_response({"run": name})

    return handle


async def _small(request: web.Request) -> bytes | None:
    """The body; None where it is large, however much of it is still to come."""
    try:
        await request.content.readexactly(LARGEST + 1)
    except asyncio.IncompleteReadError as error:
        return error.partial
    return None


def _stop(_entry: _Entry, run: Run) -> str:
    if not run.step:
        return "there is nothing to keep before the first step: wait for it, or cancel the queue"
    run.request_stop()
    return ""


def _save(_entry: _Entry, run: Run) -> str:
    run.request_save()
    return ""


def _preview(entry: _Entry, run: Run) -> str:
    if not entry.can_preview:
        return (
            "this run has nothing to draw previews with: set preview_prompts of TriLoRA Monitor Options, and take a"
            " data set with clip and vae"
        )
    run.request_preview()
    return ""


def _unknown(name: str) -> web.Response:
    return _refused(404, f"no run {name[:40]!r} goes on; see {RUNS}")


def _refused(status: int, why: str) -> web.Response:
    return web.json_response({"error": why}, status=status)
