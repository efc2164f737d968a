"""A small client of ComfyUI's HTTP and websocket interface: queue a graph, wait, fetch what came out."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

Graph = dict[str, dict[str, Any]]  # the API format: node id -> {"class_type": ..., "inputs": {...}}


class Refused(Exception):
    """The server did not take the graph; `details` is its answer, with `error` and `node_errors`."""

    def __init__(self, details: dict[str, Any]) -> None:
        super().__init__(json.dumps(details, indent=1))
        self.details = details


@dataclass(frozen=True)
class Outcome:
    """How a queued graph ended: `status` is "success", "error" or "interrupted"."""

    prompt_id: str
    status: str
    messages: list[tuple[str, dict[str, Any]]]
    outputs: dict[str, dict[str, Any]]

    @property
    def error(self) -> str:
        """`<exception type>: <message>` of the node that failed, else ''."""
        for kind, data in self.messages:
            if kind == "execution_error":
                return f"{data['exception_type']}: {data['exception_message']}".strip()
        return ""

    @property
    def cached(self) -> set[str]:
        """Ids of the nodes that were not run again."""
        return {node for kind, data in self.messages if kind == "execution_cached" for node in data["nodes"]}


@dataclass
class Events:
    """What the websocket said while it was open, in order."""

    messages: list[tuple[str, Any]] = field(default_factory=list)  # (type, data); progress text: ("text", (node, text))

    def of(self, kind: str) -> list[Any]:
        """Data of all messages of one type, such as "progress", "executing" or "text"."""
        return [data for found, data in list(self.messages) if found == kind]

    def wait_for(self, kind: str, count: int = 1, timeout: float = 120) -> list[Any]:
        """The data of `kind` as soon as there are `count` of them; TimeoutError."""
        end = time.monotonic() + timeout
        while len(self.of(kind)) < count:
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{count} messages {kind!r} did not come in {timeout} s; came: {self.messages[-20:]}"
                )
            time.sleep(0.05)
        return self.of(kind)


class Client:
    """One client of the server at `url`, with an id of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.id = uuid.uuid4().hex

    def get(self, path: str) -> Any:
        """The parsed JSON at `path`."""
        return json.loads(self._request(path))

    def post(self, path: str, body: Any) -> Any:
        """The parsed answer to a JSON post; None when it is empty."""
        answer = self._request(path, json.dumps(body).encode())
        return json.loads(answer) if answer.strip() else None

    def object_info(self, node: str = "") -> dict[str, Any]:
        """What the server says about all nodes, or about one."""
        return self.get(f"/object_info/{node}".rstrip("/"))

    def queue(self, graph: Graph, extra: dict[str, Any] | None = None) -> str:
        """Queue a graph in the API format, with what a front end adds; its id. Refused when the graph is invalid."""
        try:
            answer = self.post("/prompt", {"prompt": graph, "client_id": self.id, "extra_data": extra or {}})
        except urllib.error.HTTPError as error:
            raise Refused(json.loads(error.read())) from error
        if answer["node_errors"]:
            raise Refused(answer)
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 240) -> Outcome:
        """Wait for the end of a queued graph; TimeoutError."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry and entry.get("status"):
                return _outcome(prompt_id, entry)
            time.sleep(0.1)
        raise TimeoutError(f"graph {prompt_id} did not end in {timeout} s")

    def run(self, graph: Graph, timeout: float = 240) -> Outcome:
        """Queue and wait; AssertionError with the server's message unless it succeeded."""
        outcome = self.wait(self.queue(graph), timeout)
        if outcome.status != "success":
            raise AssertionError(f"{outcome.status}: {outcome.error}\n{json.dumps(outcome.messages, indent=1)[-6000:]}")
        return outcome

    def interrupt(self) -> None:
        """What the Cancel button does."""
        self.post("/interrupt", {})

    def free(self) -> None:
        """Unload models and forget cached outputs before the next graph."""
        self.post("/free", {"unload_models": True, "free_memory": True})
        # The host only notes it down, for when it has nothing to do or has done a graph: so give it one to do.
        blank = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}
        self.run({"blank": blank, "shown": {"class_type": "PreviewImage", "inputs": {"images": ["blank", 0]}}})

    def images(self, outcome: Outcome, node: str) -> list[np.ndarray]:
        """Pictures that a save or preview node made, uint8 (H, W, 3)."""
        pictures = []
        for entry in outcome.outputs[node]["images"]:
            query = urllib.parse.urlencode({key: entry[key] for key in ("filename", "subfolder", "type")})
            pictures.append(np.asarray(Image.open(io.BytesIO(self._request(f"/view?{query}"))).convert("RGB")))
        return pictures

    def picture(self, path: str) -> np.ndarray:
        """The picture at `path`, uint8 (H, W, 3)."""
        return np.asarray(Image.open(io.BytesIO(self._request(urllib.parse.quote(path)))).convert("RGB"))

    @contextlib.contextmanager
    def listen(self) -> Iterator[Events]:
        """Collect the websocket's messages to this client while the block runs."""
        events, opened, closing = Events(), threading.Event(), threading.Event()
        url = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={self.id}"
        thread = threading.Thread(target=lambda: asyncio.run(_collect(url, events, opened, closing)), daemon=True)
        thread.start()
        if not opened.wait(30):
            raise TimeoutError(f"no websocket at {url}")
        try:
            yield events
        finally:
            closing.set()
            thread.join(10)

    def _request(self, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"} if body else {})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()


def _outcome(prompt_id: str, entry: dict[str, Any]) -> Outcome:
    messages = [(kind, data) for kind, data in entry["status"]["messages"]]
    interrupted = any(kind == "execution_interrupted" for kind, _ in messages)
    return Outcome(
        prompt_id, "interrupted" if interrupted else entry["status"]["status_str"], messages, entry["outputs"]
    )


async def _collect(url: str, events: Events, opened: threading.Event, closing: threading.Event) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
        opened.set()
        while not closing.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                message = await socket.receive(timeout=0.1)
                if message.type == aiohttp.WSMsgType.TEXT:
                    content = json.loads(message.data)
                    events.messages.append((content["type"], content["data"]))
                elif message.type == aiohttp.WSMsgType.BINARY:
                    events.messages.append(_binary(message.data))
                else:
                    return


def _binary(data: bytes) -> tuple[str, Any]:
    """Progress text is type 3: length of the node's id, the id, the text; the rest are preview pictures."""
    if int.from_bytes(data[:4], "big") != 3:
        return "preview", len(data)
    length = int.from_bytes(data[4:8], "big")
    return "text", (data[8 : 8 + length].decode(), data[8 + length :].decode())
