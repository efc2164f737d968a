"""The networks of evaluate: read from files without running what is in them, and right in what they say."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file

from tests.judges import inception_state, noise_pictures, write_clip, write_inception
from trilora_core import evaluate_nets
from trilora_core.cli.evaluate_nets import load_judges
from trilora_core.errors import InputError
from trilora_core.evaluate_nets import InceptionJudge, read_inception

CPU = torch.device("cpu")


def test_inception_is_that_of_fid(tmp_path) -> None:
    """The numbers are torch-fidelity 0.4.0's with the same weights (its network of 2015, layer 2048)."""
    judge = InceptionJudge(write_inception(tmp_path / "inception.safetensors"), CPU)
    found = judge.features(noise_pictures(1, 299))
    assert found.shape == (1, 2048)
    assert found[0, :4].tolist() == pytest.approx([2.9382296, 0.1184657, 18.1860790, 14.5691118], rel=1e-4)
    assert float(found.mean()) == pytest.approx(3.3238344, rel=1e-4)
    assert float(found.std()) == pytest.approx(4.6034827, rel=1e-4)


def test_an_old_torch_opens_no_pickle(tmp_path, monkeypatch) -> None:
    path = tmp_path / "pt_inception.pth"
    path.write_bytes(pickle.dumps(_Evil(str(tmp_path / "ran"))))
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(InputError, match=r"torch 2\.5\.1\+cpu cannot read .* install torch 2\.6 or newer"):
        read_inception(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(not evaluate_nets._safe_pickles(), reason="this torch opens no pickle here")
def test_weights_are_read_without_running_anything(tmp_path) -> None:
    """The .pth of pytorch-fid has layers of the classes too, and no counters of batches."""
    state = {**{name: value[:1] for name, value in inception_state().items()}, "fc.bias": torch.zeros(1008)}
    good = tmp_path / "pt_inception.pth"
    torch.save(state, good)
    assert read_inception(good).keys() >= state.keys()

    ran = tmp_path / "ran"
    evil = tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps(_Evil(str(ran))))
    short = tmp_path / "short.safetensors"
    short.write_bytes(b"\x10")
    listed = tmp_path / "list.pth"
    torch.save([torch.zeros(1)], listed)
    for path in (evil, short, listed, tmp_path / "none.pth"):
        with pytest.raises(InputError, match=r"pt_inception-2015-12-05-6726825d\.pth") as refused:
            read_inception(path)
        assert str(path) in str(refused.value)
    assert not ran.exists()
    other = tmp_path / "other.safetensors"
    save_file({"layer": torch.zeros(2)}, other)
    with pytest.raises(InputError, match="no Inception of FID"):
        InceptionJudge(other, CPU)


class _Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_clip_score_is_the_cosine(tmp_path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    folder = write_clip(tmp_path / "clip")
    clip = load_judges(None, folder, CPU).clip
    assert clip is not None
    pictures, captions = noise_pictures(3, 40), ["a red house", "a cat", "a boat at night"]
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    given = processor(text=captions, images=list(pictures), return_tensors="pt", padding=True)
    with torch.no_grad():
        out = model(**given)
    wanted = 100 * torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds).clamp(min=0)
    assert clip.scores(pictures, captions) == pytest.approx(wanted.tolist(), rel=1e-4, abs=1e-3)
    features = torch.nn.functional.normalize(clip.features(pictures), dim=1)
    assert torch.allclose(features, out.image_embeds, atol=1e-5)
    long = " ".join(["house"] * 40)  # longer than the model reads
    assert len(clip.scores(pictures[:1], [long])) == 1


def test_what_is_no_clip_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"config\.json.*openai/clip-vit-base-patch32"):
        load_judges(None, tmp_path, CPU)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be read as a CLIP model"):
        load_judges(None, tmp_path, CPU)


def test_without_torchmetrics_the_extra_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(evaluate_nets, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"torchmetrics.*pip install -e \"\.\[eval\]\""):
        load_judges(tmp_path / "inception.pth", None, CPU)
    assert load_judges(None, None, CPU).inception is None, "what needs no network needs no torchmetrics"
