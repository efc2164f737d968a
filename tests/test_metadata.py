"""Metadata: what other tools read is there, in their words, and can be read back."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tests.adapters import make_adapter, make_layer
from tests.counting import CountingEncoder, config, fill
from tests.toy import ToyDenoiser, toy_dataset
from trilora_core.adapter import TriLoRA
from trilora_core.config import AdapterConfig, LayerConfig, TrainConfig
from trilora_core.config_data import CaptionConfig
from trilora_core.config_json import from_json
from trilora_core.content import content_of
from trilora_core.data import Dataset, load_folder
from trilora_core.fileformat import Adapter, read_metadata, write_adapter
from trilora_core.metadata import architecture_of, base_model, describe, rank_summary, training_metadata, trigger_words
from trilora_core.train import Run

STEM = "lora_unet_down_blocks_0_attentions_0_proj_in"


class NamedDenoiser(ToyDenoiser):
    """The toy model under another name."""

    def __init__(self, architecture: str) -> None:
        super().__init__()
        self.architecture = architecture
        self.base_name = "my_model.safetensors"
        self.prediction_type = "v"


def run_on(architecture: str, data: Dataset | None = None) -> Run:
    options = TrainConfig(steps=7, batch_size=2, seed=3, adapter=AdapterConfig(rank=2))
    denoiser, data = NamedDenoiser(architecture), data or toy_dataset()
    return Run(options, denoiser, data, TriLoRA.create(denoiser.targets(), options.adapter, seed=3, data_hash="x"))


@pytest.mark.parametrize(
    ("architecture", "spec", "version"),
    [
        ("sd15", "stable-diffusion-v1/lora", "sd_v1"),
        ("sdxl", "stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0"),
        ("sd3", "stable-diffusion-3/lora", "sd3"),
        ("flux", "flux-1-dev/lora", "flux1"),
        ("toy", "toy/lora", "toy"),
    ],
)
def test_architectures_are_named_as_others_name_them_and_read_back(architecture, spec, version):
    found = training_metadata(run_on(architecture), started=1.5, finished=True, name="cat")
    assert (found["modelspec.architecture"], found["ss_base_model_version"]) == (spec, version)
    assert architecture_of(Adapter({STEM: make_layer(4, 4, 1)}, found)) == architecture
    without_ours = {key: value for key, value in found.items() if not key.startswith("trilora.")}
    if architecture != "toy":
        assert architecture_of(Adapter({"x": make_layer(4, 4, 1)}, without_ours)) == architecture


def test_a_run_is_described_for_every_reader(tmp_path):
    run = run_on("sd15")
    run.losses, run.step = [0.5, 0.25], 2
    found = training_metadata(run, started=1234.5, finished=False, name="cat")
    assert all(isinstance(value, str) for value in found.values())
    expected = {
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_output_name": "cat",
        "ss_sd_model_name": "my_model.safetensors",
        "ss_training_started_at": "1234.5",
        "ss_resolution": "(32, 32)",
        "ss_num_train_images": "6",
        "ss_steps": "2",
        "ss_seed": "3",
        "ss_unet_lr": "0.0001",
        "ss_text_encoder_lr": "0.0",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "cat",
        "modelspec.resolution": "32x32",
        "modelspec.prediction_type": "v",
        "modelspec.trigger_phrase": "toy",
        "modelspec.usage_hint": "Put toy into the prompt.",
        "trilora.init": "svd-mean",
        "trilora.finished": "false",
        "trilora.losses": "0.5 0.25",
        "trilora.fingerprint": run.fingerprint(),
        "trilora.base_fingerprint": "toy-0",
        "trilora.base_content": content_of(run.denoiser.targets()),
    }
    assert {key: found.get(key) for key in expected} == expected
    assert from_json(TrainConfig, found["trilora.config"]) == run.config
    write_adapter(tmp_path / "a.safetensors", Adapter(run.trainable.canonical(), found))
    written = read_metadata(tmp_path / "a.safetensors")
    assert written["ss_network_dim"] == "2"
    assert written["ss_network_alpha"] == "2.0"
    assert json.loads(written["trilora.spectrum"])["layers"] == 8


def test_the_data_set_is_described_under_one_key(tmp_path):
    fill(tmp_path / "2_fox", 3)
    fill(tmp_path / "1_lamp", 2, size=(64, 16))
    data = load_folder(config(tmp_path, captions=CaptionConfig(prefix="toy,")), CountingEncoder())
    found = training_metadata(run_on("sd15", data), started=0.0, finished=True, name="cat")
    assert found["ss_num_train_images"] == "8"
    assert json.loads(found["ss_dataset_dirs"]) == {
        "lamp": {"n_repeats": 1, "img_count": 2},
        "fox": {"n_repeats": 2, "img_count": 3},
    }
    assert json.loads(found["ss_bucket_info"])["buckets"] == {
        "0": {"resolution": [16, 16], "count": 3},
        "1": {"resolution": [32, 8], "count": 2},
    }
    assert json.loads(found["ss_bucket_info"])["mean_img_ar_error"] == pytest.approx(3 * (1 - 32 / 40) / 5)
    assert json.loads(found["ss_tag_frequency"]) == {"cat": {"toy": 5, "a lamp": 3, "a fox": 2}}


def test_trigger_words_are_split_and_each_said_once():
    assert trigger_words(make_adapter([STEM], modelspec__trigger_phrase="sks cat, ink ,sks cat,")) == ("sks cat", "ink")
    assert trigger_words(make_adapter([STEM])) == ()


def test_the_base_model_is_the_most_exact_name_there_is():
    version = {"ss_base_model_version": "sd_v1"}
    assert base_model(make_adapter([STEM], ss_sd_model_name="a.safetensors", **version)) == "a.safetensors"
    assert base_model(make_adapter([STEM], **version)) == "sd_v1"
    assert base_model(make_adapter([STEM])) == ""


def test_the_rank_summary_reads_as_a_sentence():
    adapter = Adapter({"a": make_layer(8, 8, 2), "b": make_layer(8, 8, 5)}, {})
    summary = rank_summary(adapter)
    assert (summary.layers, summary.least, summary.most) == (2, 2, 5)
    assert 1.0 < summary.effective < 5.0
    assert str(summary) == f"rank 2 to 5 (effective {summary.effective:.1f}) in 2 layers"
    with pytest.raises(ValueError, match="no layers"):
        rank_summary(Adapter({}, {}))


def test_names_alone_tell_the_architecture_of_an_adapter():
    assert architecture_of(make_adapter([STEM])) == "sd15"
    assert architecture_of(make_adapter(["lora_unet_double_blocks_0_img_attn_qkv"])) == "flux"


def test_the_choice_of_layers_is_told_in_kohyas_words(tmp_path):
    layers = LayerConfig(include=("*_to_*",), exclude=("*_0_*", "*_k"))
    options = TrainConfig(adapter=AdapterConfig(rank=2, companion_rank=1, layers=layers))
    for chosen, convolutions in ((layers, {}), (LayerConfig(), {"conv_dim": "3", "conv_alpha": "3.0"})):
        options = dataclasses.replace(options, adapter=dataclasses.replace(options.adapter, layers=chosen))
        denoiser = NamedDenoiser("sd15")
        adapter = TriLoRA.create(denoiser.targets(chosen), options.adapter, seed=3, data_hash="x")
        run = Run(options, denoiser, toy_dataset(), adapter)
        told = training_metadata(run, started=0.0, finished=True, name="cat")
        write_adapter(tmp_path / "a.safetensors", Adapter(adapter.canonical(), told))
        patterns = {"layers_include": "*_to_*", "layers_exclude": "*_0_* *_k"} if chosen is layers else {}
        wanted = {"algo": "trilora", "layers": "attention", **patterns, **convolutions}
        written = read_metadata(tmp_path / "a.safetensors")
        assert json.loads(written["ss_network_args"]) == wanted
        assert from_json(TrainConfig, written["trilora.config"]).adapter.layers == chosen


@pytest.mark.parametrize(
    ("kernel", "given", "written"),
    [
        ((3, 3), '{"conv_dim": "8", "dropout": "0.1"}', '{"dropout": "0.1", "conv_dim": "2", "conv_alpha": "2.0"}'),
        ((3, 3), "", '{"conv_dim": "2", "conv_alpha": "2.0"}'),
        ((1, 1), '{"conv_dim": "8", "conv_alpha": "1"}', "{}"),
        ((), '{ "algo":"lora"}', '{ "algo":"lora"}'),
        ((), "null", "null"),
        ((3, 3), "no JSON", "no JSON"),
        ((3, 3), "[" * 100_000, "[" * 100_000),
        ((), None, None),
    ],
)
def test_a_file_tells_the_rank_of_its_convolutions(tmp_path, kernel, given, written):
    layer = make_layer(4, 4 * max(1, len(kernel) and kernel[0] * kernel[1]), 2, kernel=kernel)
    told = {} if given is None else {"ss_network_args": given}
    write_adapter(tmp_path / "a.safetensors", Adapter({STEM: layer}, told))
    assert read_metadata(tmp_path / "a.safetensors").get("ss_network_args") == written


def test_an_adapter_is_described_in_three_lines():
    said = {"ss_sd_model_name": "dream.safetensors", "modelspec__trigger_phrase": "sks cat, ink"}
    first, ranks, last = describe(make_adapter([STEM], **said)).splitlines()
    assert first == "base model: dream.safetensors (sd15)"
    assert ranks.startswith("rank 3 (effective ") and last == "trigger words: sks cat, ink"
    known = make_adapter([STEM], modelspec__architecture="stable-diffusion-v1/lora").metadata
    named = Adapter({STEM: make_layer(4, 4, 1)}, known)
    assert describe(named).splitlines()[0] == "base model: stable-diffusion-v1/lora (sd15)"
    silent = describe(make_adapter(["odd.layer"])).splitlines()
    assert (silent[0], silent[2]) == ("base model: not said", "trigger words: none named")
