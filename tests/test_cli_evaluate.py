"""The verb evaluate: folders and adapters judged, reports written, what cannot be judged refused in one line."""

from __future__ import annotations

import json
import re

import pytest
import torch
from PIL import Image, ImageDraw

from tests.adapters import make_layer
from tests.judges import noise_pictures, write_clip, write_inception
from tests.tiny_pipeline import SIDE, write_pictures, write_pipeline
from trilora_core.__main__ import main
from trilora_core.evaluate import frechet_distance, kernel_distance
from trilora_core.evaluate_nets import InceptionJudge
from trilora_core.fileformat import Adapter, Layer, write_adapter

COUNT = 10  # just enough for FID


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """The words that name the networks."""
    folder = tmp_path_factory.mktemp("nets")
    inception, clip = write_inception(folder / "inception.safetensors"), write_clip(folder / "clip")
    return ["--inception", str(inception), "--clip", str(clip)]


def write_set(folder, seed: int, captions: bool = True, side: int = 24, count: int = COUNT):
    folder.mkdir(parents=True)
    for number, pixels in enumerate(noise_pictures(count, side, seed)):
        picture = Image.fromarray((pixels // 2 + 20 * seed).permute(1, 2, 0).numpy())
        picture.save(folder / f"{number}.png")
        if captions:
            (folder / f"{number}.txt").write_text(f"<b>a red house & {number % 3}</b>", encoding="utf-8")
    return folder


def test_folders_are_judged(tmp_path, capsys, monkeypatch, nets) -> None:
    """The figures are those of the definitions on the same features, and the report holds them."""
    real = write_set(tmp_path / "real", 1)
    base, tuned = write_set(tmp_path / "base", 4, captions=False), write_set(tmp_path / "tuned", 2, captions=False)
    pen = Image.open(tuned / "0.png")
    ImageDraw.Draw(pen).ellipse([10, 10, 12, 12], fill="white")
    pen.save(tuned / "0.png")
    asked, features = [], InceptionJudge.features
    monkeypatch.setattr(InceptionJudge, "features", lambda *given: asked.append(features(*given)) or asked[-1])
    argv = ["evaluate", "--real", str(real), "--generated", str(tuned), "--reference", str(base), *nets]
    assert main([*argv, "--output", str(tmp_path / "out" / "report.html")]) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in found["sets"]] == ["real pictures", "base", "tuned"]
    figures = {one["name"]: one["figures"] for one in found["sets"]}

    seen = dict(zip(("real", "base", "tuned"), torch.cat(asked).split(COUNT), strict=True))
    far = {name: frechet_distance(seen["real"], seen[name]) for name in ("base", "tuned")}
    kid = 1000 * kernel_distance(seen["real"], seen["tuned"])
    assert figures["tuned"]["fid"]["value"] == pytest.approx(far["tuned"], rel=1e-4)
    assert figures["tuned"]["nfid"]["value"] == pytest.approx(far["tuned"] / far["base"], rel=1e-4)
    assert figures["tuned"]["kid"]["value"] == pytest.approx(kid, rel=1e-4)
    assert figures["base"]["nfid"] == {"value": pytest.approx(1.0), "standard_error": 0.0}
    assert figures["tuned"]["kid"]["standard_error"] > 0 and figures["tuned"]["nfid"]["standard_error"] > 0
    assert figures["real pictures"]["clip"]["value"] >= 0 and "fid" not in figures["real pictures"]
    assert figures["tuned"]["diversity_within"]["value"] > 0, "captions come from the real pictures of the names"
    assert found["sets"][2]["spots"] == {"0.png": 1} and figures["tuned"]["spotted"]["value"] == pytest.approx(
        1 / COUNT
    )
    assert "Read KID" in " ".join(found["notes"]) and f"({far['tuned']:.2f}" in shown

    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp;base64,") == 3 * 3, "a row for each caption, the real one and two sets"
    assert "&lt;b&gt;a red house &amp; 0" in page and "<b>a red" not in page
    assert "NFID" in page and "prefers-color-scheme: dark" in page and "1 spot<" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page), "nothing is loaded from elsewhere"


def test_without_networks_pixels_are_judged(tmp_path, capsys) -> None:
    real, made = (
        write_set(tmp_path / "real", 1, side=40, count=2),
        write_set(tmp_path / "made", 2, captions=False, count=2),
    )
    argv = ["evaluate", "--real", str(real), "--generated", str(made), "--output", str(tmp_path / "report")]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "note: Without Inception weights (--inception) there is no FID" in shown and "clipped" in shown
    assert (tmp_path / "report.html").is_file() and (tmp_path / "report.json").is_file()


# --- drawn first ---------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("model") / "base")


def write_lora(path, scale: float) -> str:
    """The same change of two layers, more or less of it."""
    layers = {}
    for block in ("down_blocks_0", "up_blocks_1"):
        layer = make_layer(16, 16, 2)
        svd = layer.svd._replace(s=layer.svd.s * scale * 0.2)
        layers[f"lora_unet_{block}_attentions_0_transformer_blocks_0_attn1_to_q"] = Layer(svd)
    write_adapter(path, Adapter(layers, {}), dtype=torch.float32)
    return str(path)


def evaluate_model(tmp_path, model, adapters, *more: str) -> int:
    argv = ["evaluate", "--model", str(model), "--data", str(tmp_path / "pictures"), "--adapter", *adapters]
    return main([*argv, "--steps", "2", "--output", str(tmp_path / "report.html"), *more])


def test_adapters_are_drawn_once_and_compared(tmp_path, capsys, model) -> None:
    write_pictures(tmp_path / "pictures")
    a, b = (write_lora(tmp_path / f"{name}.safetensors", scale) for name, scale in (("a", 1.0), ("b", 3.0)))
    assert evaluate_model(tmp_path, model, [a, b]) == 0
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    drift = {one["name"]: one["figures"]["drift"]["value"] for one in found["sets"][1:]}
    assert list(drift) == ["base", "a", "b"] and drift["base"] == 0 < drift["a"] < drift["b"]
    assert found["settings"] | {"seed": 30, "guidance": "7.5", "size": f"{SIDE}x{SIDE}"} == found["settings"]
    drawn = sorted((tmp_path / "report_pictures").glob("*/*.png"))
    assert [path.name for path in drawn] == [f"{colour}.png" for colour in ("blue", "green", "red")] * 3
    assert (drawn[0].with_suffix(".txt")).read_text(encoding="utf-8") == "a blue square\n"
    assert Image.open(drawn[0]).info["prompt"] == "a blue square"
    assert drawn[0].read_bytes() != drawn[6].read_bytes()

    before = {path: path.stat().st_mtime_ns for path in drawn}
    drawn[1].write_bytes(drawn[1].read_bytes()[:200])  # cut off by a full disk
    (tmp_path / "pictures" / "red.txt").write_text("a red circle", encoding="utf-8")
    assert evaluate_model(tmp_path, model, [a]) == 0
    anew = [path.relative_to(tmp_path) for path in drawn if path.stat().st_mtime_ns != before[path]]
    assert [path.name for path in anew] == ["red.png", "green.png", "red.png"] or len(anew) == 3
    assert not any(path.parent.name.startswith("b-") for path in anew)
    again = {path: path.stat().st_mtime_ns for path in drawn}
    assert (
        evaluate_model(tmp_path, model, [a, b], "--strength", "0.5", "1", "--per-caption", "2", "--captions", "2") == 0
    )
    names = [one["name"] for one in json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["sets"]]
    assert names == ["real pictures", "base", "a 0.5", "a 1", "b 0.5", "b 1"]
    assert {path: path.stat().st_mtime_ns for path in drawn} == again, "other settings have other folders"
    shown = capsys.readouterr().out
    assert "drift" in shown and "base" in shown


# --- refused -------------------------------------------------------------------


def refused(capsys, *argv: str) -> str:
    assert main(["evaluate", *map(str, argv)]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said
    return said


def test_what_cannot_be_judged_is_refused_in_one_line(tmp_path, capsys, nets) -> None:
    real, made = write_set(tmp_path / "real", 1), write_set(tmp_path / "made", 2, captions=False)
    out = ["--output", tmp_path / "r.html"]
    both = ["--real", real, "--generated", made]
    assert "at least 2" in refused(capsys, "--real", real, "--generated", write_set(tmp_path / "one", 1, count=1), *out)
    big = write_set(tmp_path / "big", 3, side=32)
    said = refused(capsys, "--real", real, "--generated", made, big, *out)
    assert "24x24" in said and "32x32" in said and "--resolution 24" in said
    assert "--resolution" in refused(capsys, *both, "--resolution", "3", *out)
    assert "pt_inception" in refused(capsys, *both, "--inception", tmp_path / "none.pth", *out)
    assert "no CLIP model" in refused(capsys, *both, "--clip", tmp_path, *out)
    assert "twice" in refused(capsys, "--real", real, "--generated", real, *out)
    assert "is a folder" in refused(capsys, *both, "--output", tmp_path)
    assert "wanted at most 200" in refused(capsys, *both, "--output", tmp_path / ("r" * 197))
    assert "is not UTF-8" in refused(capsys, *both, "--output", tmp_path / "r\udcff")
    assert "is not UTF-8" in refused(capsys, *both, f"{made}\udcff", *out)
    assert "twice" in refused(capsys, "--real", real, "--generated", real, "--output", tmp_path / "new" / "r.html")
    assert not (tmp_path / "new").exists(), "a refused command leaves nothing behind"
    assert "--generated was not given" in refused(capsys, "--real", real, *out)
    assert "--seed does not go with" in refused(capsys, *both, "--seed", "3", *out)
    assert "--real does not go with" in refused(capsys, "--model", "m", "--adapter", "a", "--data", "d", *both, *out)
    assert "--data was not given" in refused(capsys, "--model", "m", "--adapter", "a", *out)
    (real / "2.txt").unlink()
    said = refused(capsys, *both, *nets[2:], *out)
    assert "have no caption, such as 2.png" in said
    (made / "5.png").write_bytes(b"no picture")
    said = refused(capsys, *both, *out)
    assert "5.png" in said and "cannot be read" in said
    assert not (tmp_path / "r.html").exists()


def test_a_model_form_is_checked_before_it_draws(tmp_path, capsys, model) -> None:
    write_pictures(tmp_path / "pictures", captions=False)
    argv = ["--model", model, "--adapter", "a.safetensors", "--data", tmp_path / "pictures", "--output", tmp_path / "r"]
    assert "drawing needs them" in refused(capsys, *argv)
    for colour in ("red", "green", "blue"):
        (tmp_path / "pictures" / f"{colour}.txt").write_text(colour, encoding="utf-8")
    assert "--per-caption is 0" in refused(capsys, *argv, "--per-caption", "0")
    assert "--captions is 1" in refused(capsys, *argv, "--captions", "1")
    assert "--strength is 0" in refused(capsys, *argv, "--strength", "0")
    assert "--strength has 1 twice" in refused(capsys, *argv, "--strength", "1", "0.5", "1.0")
    assert "./a.safetensors twice" in refused(capsys, *argv, "--adapter", "a.safetensors", "./a.safetensors")
    assert "is not UTF-8" in refused(capsys, *argv, "--adapter", "a\udcff.safetensors")
    assert "is not UTF-8" in refused(capsys, *argv, "--pictures", tmp_path / "p\udcff")
    assert "a.safetensors" in refused(capsys, *argv)
    other = tmp_path / "other.safetensors"
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    write_adapter(other, Adapter({stem: make_layer(320, 320, 1)}, {}))
    assert refused(capsys, *argv, "--adapter", other).startswith(f"error: {other}: ")
    assert not list(tmp_path.glob("**/*.png.part")) and not (tmp_path / "r_pictures").exists()
