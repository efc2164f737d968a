"""What a run tells the front end: events, the routes, what the node shows; and what it does when it is asked to."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
import urllib.error
import urllib.parse
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from safetensors.torch import load_file

from . import workflow
from .client import Graph
from .server import Server
from .test_train_control import under_way, watched

STEPS = 16
SEEN = {
    "validation_share": 0.25,
    "validate_every": 8,
    "preview_every": 8,
    "preview_prompts": "a thing\na striped thing",
    "spectrum_every": 8,
    "preview_steps": 2,
}


def moved(graph: Graph, node: str) -> Graph:
    """The graph with its Train node under another id, such as one inside a subgraph."""
    return {node if name == "train" else name: content for name, content in graph.items()}


def until(ready: Callable[[], Any], timeout: float = 60) -> Any:
    """The first value that is true."""
    end = time.monotonic() + timeout
    while not (value := ready()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return value


def overflowing(name: str) -> Graph:
    """Training on latents so large that no loss is finite."""
    graph = workflow.training(name)
    graph["picture"] = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 2, "color": 99}}
    graph["times_0"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["picture", 0], "vae": ["checkpoint", 2]}}
    for index in range(22):
        inputs = {"samples": [f"times_{index}", 0], "multiplier": 10.0}
        graph[f"times_{index + 1}"] = {"class_type": "LatentMultiply", "inputs": inputs}
    graph["words"] = {"class_type": "CLIPTextEncode", "inputs": {"text": "a thing", "clip": ["checkpoint", 1]}}
    inputs = {"latents": ["times_22", 0], "conditioning": ["words", 0]}
    graph["data"] = {"class_type": "TriLoRADatasetFromLatents", "inputs": inputs}
    return graph


def refusal(server: Server, path: str, body: Any = None) -> tuple[int, str]:
    """Status and words of an answer that refuses."""
    try:
        server.client.get(path) if body is None else server.client.post(path, body)
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        return error.code, json.loads(text)["error"] if text.startswith("{") else text
    return 200, ""


@pytest.fixture(scope="module")
def watched_run(server: Server) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """The events of a run with everything watched, the whole of it afterwards, and what its node shows."""
    graph = moved(watched("live", monitor=SEEN, steps=STEPS), "3:1")
    with server.client.listen() as events:
        prompt = server.client.queue(graph, {"extra_pnginfo": {"workflow": {"id": "of-mine"}}})
        outcome = server.client.wait(prompt)
        told = until(lambda: [data for data in events.of("trilora.run") if data["state"] == "ended"] and events)
    assert outcome.status == "success", outcome.error
    heard = told.of("trilora.run")
    return heard, server.client.get(f"/trilora/runs/{heard[0]['run']}"), outcome.outputs["3:1"]


def test_events_tell_a_run_from_its_preparation_to_its_end(watched_run: Any) -> None:
    heard, whole, shown = watched_run
    assert {(data["run"], data["node"], data["workflow"]) for data in heard} == {(whole["run"], "3:1", "of-mine")}
    states = [data["state"] for data in heard]
    assert states == sorted(states, key=["preparing", "training", "ended"].index)
    assert {data["text"] for data in heard} >= {"preparing the model", "measuring memory", "drawing previews"}
    assert sum(bool(data["points"]) for data in heard) > 1, "as they came, not all at once"
    points, measures, spectra, previews = (
        [entry for data in heard for entry in data[name]] for name in ("points", "measures", "spectra", "previews")
    )
    assert [point[0] for point in points] == list(range(1, STEPS + 1))
    assert all(loss > 0 and rate == 1e-2 for _, loss, rate in points)
    assert [entry[0] for entry in measures] == [0, 8, 16] and measures[0][2] == 0 and measures[-1][2] > 0
    assert [(entry["step"], len(entry["values"])) for entry in spectra] == [(0, 0), (8, 4), (16, 4)]
    assert spectra[-1]["values"][0] == 1 and spectra[-1]["effective_rank"] > 1
    assert [entry["step"] for entry in previews] == [0, 8, 16]
    last = heard[-1]
    assert (last["ended"], last["problem"], last["file"]) == ("steps", "", "trilora/live.safetensors")
    assert last["step"] == last["steps"] == STEPS and last["eta"] is None and last["seconds_per_step"] > 0
    assert 0 < last["memory"]["used"] < last["memory"]["total"]
    assert any(data["eta"] and data["can_preview"] for data in heard if data["state"] == "training")
    assert whole == {**last, "points": points, "measures": measures, "spectra": spectra, "previews": previews}
    assert shown["trilora"] == [whole] and "Trained: saved as" in "\n".join(shown["text"])


def test_pictures_are_served_by_number_alone(server: Server, watched_run: Any) -> None:
    _, whole, _ = watched_run
    address = f"/trilora/runs/{whole['run']}/previews"
    numbers = [number for entry in whole["previews"] for number in entry["pictures"]]
    assert numbers == list(range(6))
    pictures = [server.client.picture(f"{address}/{number}") for number in numbers]
    assert all(picture.shape == (workflow.SIDE, workflow.SIDE, 3) for picture in pictures)
    assert (pictures[0] != pictures[4]).any()
    for wrong in ("6", "-1", "x", "..%2F..%2Flive.state", "999999999999"):
        assert refusal(server, f"{address}/{wrong}")[0] == 404
    assert refusal(server, "/trilora/runs/0123456789abcdef")[0] == 404
    assert refusal(server, "/trilora/runs/..%2F..%2Fsettings/previews/0")[0] == 404


def test_a_run_that_is_not_done_again_shows_its_curve(server: Server, watched_run: Any) -> None:
    """Kept by the host, read from the disk by several nodes at once, and without its log."""
    _, whole, _ = watched_run
    graph = moved(watched("live", monitor=SEEN, steps=STEPS), "3:1")
    (kept,) = server.client.run(graph).outputs["3:1"]["trilora"]
    assert kept["run"] == whole["run"] and kept["points"] == whole["points"]
    for index in range(34):  # other nodes to the host, the same run to us
        monitor = graph["monitor"]["inputs"] | {"preview_seed": index + 1}
        graph[f"monitor_{index}"] = graph["monitor"] | {"inputs": monitor}
        train = graph["3:1"]["inputs"] | {"options": [f"monitor_{index}", 0]}
        graph[f"copy_{index}"] = graph["3:1"] | {"inputs": train}
    outputs = server.client.run(graph).outputs
    (read,) = outputs["copy_3"]["trilora"]
    assert (read["ended"], read["state"], read["step"], read["steps"]) == ("cached", "ended", STEPS, STEPS)
    assert [read[name] for name in ("points", "measures", "previews")] == [
        whole[name] for name in ("points", "measures", "previews")
    ]
    assert [entry["step"] for entry in read["spectra"]] == [0, 8, 16] and read["file"] == "trilora/live.safetensors"
    listed = server.client.get("/trilora/runs")
    assert len(listed) == 32 and {run["ended"] for run in listed} == {"cached"}, "the oldest are forgotten"
    assert len({run["run"] for run in listed}) == 32 == len({run["node"] for run in listed})
    (server.loras / "trilora/live.log.jsonl").write_text("broken", encoding="utf-8")
    again = moved(watched("live", monitor=SEEN | {"preview_seed": 99}, steps=STEPS), "3:1")
    without = server.client.run(again).outputs["3:1"]
    assert without["trilora"][0]["points"] == [] and without["trilora"][0]["ended"] == "cached"
    assert "Already trained" in "\n".join(without["text"])


def test_save_and_preview_now_change_nothing(server: Server) -> None:
    folder, monitor = server.loras / "trilora", {"preview_prompts": "a thing", "preview_steps": 2}
    started = time.monotonic()
    with server.client.listen() as events, under_way(server, watched("asked", monitor=monitor, steps=5000)) as under:
        prompt, run = under
        mine = {"run": run["run"]}
        assert server.client.post("/trilora/save", mine) == server.client.post("/trilora/preview", mine) == mine
        whole = until(lambda: (told := server.client.get(f"/trilora/runs/{run['run']}"))["previews"] and told)
        (saved,) = until(lambda: list(folder.glob("asked_step_*.safetensors")))
        until(lambda: [data for data in events.of("trilora.run") if data["text"] == f"saved as {saved.name}"])
        assert (folder / "asked.state").is_file() and whole["can_preview"] and whole["state"] == "training"
        server.client.post("/trilora/stop", mine)
        outcome = server.client.wait(prompt, timeout=60)
        until(lambda: events.of("trilora.run")[-1]["state"] == "ended")
        count, seconds = len(events.of("trilora.run")), time.monotonic() - started
        times = [data["points"][-1][0] for data in events.of("trilora.run") if data["points"]]
    assert outcome.status == "success" and all(after > before for before, after in pairwise(times))
    assert count <= 4 * seconds + 8, "four a second, and those that tell of a new state"
    (shown,) = outcome.outputs["train"]["trilora"]
    assert shown["ended"] == "stop" and shown["file"].startswith("trilora/asked_stopped_at_")
    assert [entry["step"] for entry in shown["previews"]] == [shown["previews"][0]["step"]], "only on request"
    for file in (saved, server.loras / shown["file"]):
        step = int(file.stem.rpartition("_")[2])
        server.client.run(workflow.training(f"plain_{step}", steps=step))
        ours, plain = load_file(file), load_file(folder / f"plain_{step}.safetensors")
        assert ours.keys() == plain.keys() and all((ours[key] == plain[key]).all() for key in plain)
    for what in ("save", "preview", "stop"):
        assert refusal(server, f"/trilora/{what}", mine)[0] == 404, "it has ended"
        assert refusal(server, f"/trilora/{what}", {"run": 3})[0] == 400


def test_what_was_saved_is_told_of_also_while_previews_are_drawn(server: Server) -> None:
    """Each of their rounds says what goes on; they came before the next of the four events a second."""
    monitor = {"preview_every": 1, "preview_prompts": "a thing", "preview_steps": 1}
    with server.client.listen() as events, under_way(server, watched("between", monitor=monitor, steps=5000)) as under:
        prompt, run = under
        server.client.post("/trilora/save", {"run": run["run"]})
        (saved,) = until(lambda: list((server.loras / "trilora").glob("between_step_*.safetensors")))
        wanted = f"drawing previews\nsaved as {saved.name}"
        until(lambda: [data for data in events.of("trilora.run") if data["text"] == wanted][:3])
        server.client.interrupt()
        assert server.client.wait(prompt, timeout=60).status == "interrupted"


def test_before_the_first_step_there_is_nothing_to_keep(server: Server) -> None:
    """The previews of the start take their time here."""
    monitor = {"preview_every": 100, "preview_prompts": "a thing", "preview_steps": 900}
    prompt = server.client.queue(watched("early", monitor=monitor, steps=5000))
    try:
        mine = until(lambda: [run for run in server.client.get("/trilora/runs") if run["name"] == "early"])[-1]["run"]
        until(lambda: server.client.get(f"/trilora/runs/{mine}")["state"] == "training")
        status, why = refusal(server, "/trilora/stop", {"run": mine})
        assert status == 409 and "before the first step" in why
    finally:
        server.client.interrupt()
    assert server.client.wait(prompt, timeout=60).status == "interrupted"


def test_a_run_that_fails_keeps_its_curve_and_says_why(server: Server) -> None:
    with under_way(server, workflow.training("cut", steps=5000)) as (prompt, run):
        status, why = refusal(server, "/trilora/preview", {"run": run["run"]})
        assert status == 409 and "preview_prompts" in why
        server.client.interrupt()
        server.client.wait(prompt, timeout=60)
    cut = server.client.get(f"/trilora/runs/{run['run']}")
    assert (cut["state"], cut["ended"], cut["problem"]) == ("ended", "interrupt", "") and cut["points"]
    assert cut["file"].startswith("trilora/cut_stopped_at_") and (server.loras / cut["file"]).is_file()

    resumed = workflow.training("cut", steps=5000, resume=True)
    with under_way(server, resumed) as (prompt, run):
        until(lambda: server.client.get(f"/trilora/runs/{run['run']}")["step"] > cut["step"])
        server.client.post("/trilora/stop", {"run": run["run"]})
        (goes_on,) = server.client.wait(prompt, timeout=60).outputs["train"]["trilora"]
    assert goes_on["points"][: len(cut["points"])] == cut["points"], "the steps before are there too"

    assert server.client.wait(server.client.queue(overflowing("broken"))).status == "error"
    last = server.client.get("/trilora/runs")[-1]
    diverged = server.client.get(f"/trilora/runs/{last['run']}")
    assert diverged["ended"] == "diverged" and "without a usable gradient" in diverged["problem"]
    assert [point[1] for point in diverged["points"]][:2] == [None, None]

    graph = workflow.training("refused", rank=1000)
    graph["train"]["inputs"]["name"] = "no/name"
    assert server.client.wait(server.client.queue(graph)).status == "error"
    last = server.client.get("/trilora/runs")[-1]
    refused = server.client.get(f"/trilora/runs/{last['run']}")
    assert refused["ended"] == "error" and "is not a file name" in refused["problem"] and refused["points"] == []


def test_hostile_requests_are_refused_and_bounded(server: Server) -> None:
    """Bodies of any size, depth and kind; ids and names that are paths. The server goes on."""
    large, deep = b'{"run": "' + b"x" * 30_000_000 + b'"}', b"[" * 2000
    for body, status in (
        (large, 413),
        (deep, 400),
        (b"\xff\xfe\x00", 400),
        (b"", 400),
        (b"null", 400),
        (b'{"run": ["a"]}', 400),
        (b'{"run": NaN}', 400),
        (b'{"run": "../../input"}', 404),
        (b'{"run": "' + b"\xc3\xa9" * 900 + b'"}', 404),
    ):
        for kind in ("application/json", "text/plain; charset=nonsense"):
            closed = {0} if body is large else set()
            assert posted(server, "/trilora/stop", body, kind) in {status} | closed, body[:20]
    for name in ("..%2f..%2fsettings", "%00", "x" * 5000, "0" * 32, "%F0%9F%A6%8A", "a%0d%0aSet-Cookie:b"):
        assert refusal(server, f"/trilora/runs/{name}")[0] == 404
    files, alike = workflow.files_below(server.loras), set(server.base.parent.rglob("style*"))
    for name in ("../style", "/style", "con", "a\x1b[2J", "s" * 300):
        graph = workflow.training(name, steps=1)
        graph["train"]["inputs"]["name"] = name
        outcome = server.client.wait(server.client.queue(graph))
        assert outcome.status == "error" and "is not a file name" in outcome.error
    assert workflow.files_below(server.loras) == files and set(server.base.parent.rglob("style*")) == alike
    assert isinstance(server.client.get("/trilora/runs"), list)


def posted(server: Server, path: str, body: bytes, kind: str) -> int:
    """The status of an answer; 0 where the server closed the line on a body that was still coming."""
    address = urllib.parse.urlsplit(server.client.url)
    line = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    with contextlib.closing(line):
        with contextlib.suppress(ConnectionError):
            line.request("POST", path, body, {"Content-Type": kind})
        try:
            return line.getresponse().status
        except ConnectionError:  # what is still on its way can take the answer with it
            return 0
