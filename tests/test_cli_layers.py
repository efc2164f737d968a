"""train with a choice of layers: flags, the TOML file, what the adapter holds, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny_pipeline import write_pictures, write_pipeline
from trilora_core.__main__ import main
from trilora_core.config import LayerConfig, TrainConfig
from trilora_core.config_json import from_json
from trilora_core.fileformat import read_adapter, read_metadata
from trilora_core.layers import kinds_of

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory):
    """A model and pictures; no test may write into the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRILORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        place = tmp_path_factory.mktemp("layers")
        write_pipeline(place / "base")
        write_pictures(place / "pictures")
        yield place


def train(folder: Path, output: Path, *extra: str) -> int:
    argv = ["train", "--model", str(folder / "base"), "--data", str(folder / "pictures"), "--output", str(output)]
    return main([*argv, "--rank", "2", "--steps", "1", "--lr", "0.01", *extra])


def test_flags_choose_the_layers_that_are_trained(folder, tmp_path):
    output = tmp_path / "style.safetensors"
    patterns = ("--layers-include", "*attn*", "*conv[12]", "--layers-exclude", "*attn2*", "*_up_*")
    assert train(folder, output, "--layers", "attention+ff+conv", *patterns) == 0
    adapter = read_adapter(output)
    kinds = kinds_of(adapter.layers, "sd15")
    assert set(kinds.values()) == {"self", "conv"} and len(kinds) == len(adapter.layers)
    assert not any("_up_" in stem or "conv_shortcut" in stem for stem in kinds)
    assert adapter.layers["lora_unet_mid_block_resnets_0_conv1"].kernel == (3, 3)
    told = read_metadata(output)
    assert json.loads(told["ss_network_args"]) == {
        "algo": "trilora",
        "layers": "attention+ff+conv",
        "layers_include": "*attn* *conv[12]",
        "layers_exclude": "*attn2* *_up_*",
        "conv_dim": "2",
        "conv_alpha": "2.0",
    }
    wanted = LayerConfig("attention+ff+conv", ("*attn*", "*conv[12]"), ("*attn2*", "*_up_*"))
    assert from_json(TrainConfig, told["trilora.config"]).adapter.layers == wanted


def test_a_toml_file_chooses_and_flags_win(folder, tmp_path, capsys):
    config, output = tmp_path / "run.toml", tmp_path / "style.safetensors"
    table = ['which = "attention+ff"', 'include = ["*_ff_*"]', 'exclude = ["*down*", "*mid*"]']
    config.write_text("\n".join(["[adapter.layers]", *table]), encoding="utf-8")
    assert train(folder, output, "--config", str(config)) == 0
    stems = list(read_adapter(output).layers)
    assert stems and all("_ff_net_" in stem and "up_blocks" in stem for stem in stems)
    assert train(folder, output, "--config", str(config), "--layers-include", "*proj_in") == 0
    assert all("up_blocks" in stem and stem.endswith("_proj_in") for stem in read_adapter(output).layers)
    capsys.readouterr()
    assert train(folder, output, "--config", str(config), "--layers", "self-attention") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "error: the layer patterns leave nothing to train: include *_ff_*; exclude *down*, *mid*." in said
    assert "Of self-attention this model has 16 layers: lora_unet_down_blocks_0_attentions_0_" in said


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['[adapter]\nlayers = "attention"'], "LayerConfig is str; wanted a table of names and values"),
        (['[adapter.layers]\nwhich = "all"'], "layers.which is 'all'; known: attention, self-attention"),
        (['[adapter.layers]\ninclude = "*attn1*"'], "layers.include is '*attn1*'; wanted a list of texts"),
    ],
)
def test_a_wrong_table_is_explained(folder, tmp_path, capsys, lines, message):
    config = tmp_path / "run.toml"
    config.write_text("\n".join(lines), encoding="utf-8")
    assert train(folder, tmp_path / "style.safetensors", "--config", str(config)) == 2
    assert message in capsys.readouterr().err
