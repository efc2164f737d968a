"""Files: what goes in comes out, other tools' files are understood, and what is no LoRA file is refused in words."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.adapters import dense, make_adapter, make_layer, relative_error
from trilora_core import fileformat
from trilora_core.errors import InputError
from trilora_core.fileformat import Adapter, Layer, read_adapter, read_metadata, write_adapter
from trilora_core.spectral import SVD

STEM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
DOTTED = "transformer.transformer_blocks.0.attn.to_q"
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def saved(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


def kohya(stem: str = STEM, rank: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, 12, generator=generator), torch.randn(10, rank, generator=generator)
    return {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}


# --- round trips ---


@pytest.mark.parametrize("dtype", DTYPES)
def test_save_load_save_gives_the_same_bytes(tmp_path, dtype):
    layers = {
        STEM: make_layer(16, 24, 5),
        CONV: make_layer(8, 36, 3, seed=1, kernel=(3, 3)),
        DOTTED: make_layer(9, 9, 9),
    }
    write_adapter(tmp_path / "one.safetensors", Adapter(layers, {"trilora.init": "svd"}), dtype=dtype)
    write_adapter(tmp_path / "two.safetensors", read_adapter(tmp_path / "one.safetensors"), dtype=dtype)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


@pytest.mark.parametrize(("dtype", "error"), [(DTYPES[0], 1e-3), (DTYPES[1], 1e-2), (DTYPES[2], 1e-6)])
def test_the_change_survives_the_file(tmp_path, dtype, error):
    layer = make_layer(32, 48, 6)
    write_adapter(tmp_path / "a.safetensors", Adapter({STEM: layer}, {}), dtype=dtype)
    found = read_adapter(tmp_path / "a.safetensors").layers[STEM]
    assert relative_error(dense(found), dense(layer)) < error
    assert torch.allclose(found.svd.s, layer.svd.s, rtol=error)
    assert found.svd.s.dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("magnitude", [1e-8, 1e-4, 1e3])
def test_small_large_and_steep_spectra_stay_bit_stable(tmp_path, dtype, magnitude):
    svd = make_layer(40, 24, 8).svd
    steep = SVD(svd.u, magnitude * torch.logspace(0, -5, 8), svd.vh)
    write_adapter(tmp_path / "one.safetensors", Adapter({STEM: Layer(steep)}, {}), dtype=dtype)
    write_adapter(tmp_path / "two.safetensors", read_adapter(tmp_path / "one.safetensors"), dtype=dtype)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_what_is_read_is_canonical(tmp_path):
    saved(tmp_path / "a.safetensors", kohya())
    u, s, vh = read_adapter(tmp_path / "a.safetensors").layers[STEM].svd
    assert torch.allclose(u.mT @ u, torch.eye(4), atol=1e-5)
    assert torch.allclose(vh @ vh.mT, torch.eye(4), atol=1e-5)
    assert (s.diff() <= 0).all()


def test_zero_tail_keeps_the_stored_rank_and_an_orthonormal_basis(tmp_path):
    svd = make_layer(16, 24, 5).svd
    tail = SVD(svd.u, svd.s * torch.tensor([1.0, 1, 1, 0, 0]), svd.vh)
    write_adapter(
        tmp_path / "a.safetensors", Adapter({STEM: Layer(tail), CONV: Layer(SVD(svd.u, 0 * svd.s, svd.vh))}, {})
    )
    found = read_adapter(tmp_path / "a.safetensors")
    for layer, zeros in ((found.layers[STEM], 2), (found.layers[CONV], 5)):
        assert layer.svd.s.shape == (5,)
        assert (layer.svd.s == 0).sum() == zeros
        assert torch.allclose(layer.svd.u.mT @ layer.svd.u, torch.eye(5), atol=2e-3)
        assert torch.allclose(layer.svd.vh @ layer.svd.vh.mT, torch.eye(5), atol=2e-3)
    assert found.metadata["ss_network_dim"] == "5"


def test_golden_bytes(tmp_path):
    """The format of version 1, written out: metadata sorted, alpha = rank in float32, factors of equal lengths."""
    svd = SVD(torch.eye(3, 2), torch.tensor([4.0, 1.0]), torch.eye(2, 2))
    write_adapter(tmp_path / "a.safetensors", Adapter({"lora_unet_x": Layer(svd)}, {"ss_output_name": "a"}))
    data = struct.pack("<f4e6e", 2.0, 2, 0, 0, 1, 2, 0, 0, 1, 0, 0)
    digest = hashlib.sha256(data).hexdigest()
    spectrum = {
        "effective_rank_mean": 1.64938,
        "energy": 17.0,
        "largest": 4.0,
        "layers": 1,
        "rank_max": 2,
        "rank_min": 2,
    }
    header = {
        "__metadata__": {
            "modelspec.hash_sha256": f"0x{digest}",
            "modelspec.sai_model_spec": "1.0.1",
            "ss_network_alpha": "2.0",
            "ss_network_dim": "2",
            "ss_network_module": "networks.lora",
            "ss_output_name": "a",
            "sshs_model_hash": digest,
            "trilora.format_version": "1",
            "trilora.spectrum": json.dumps(spectrum),
        },
        "lora_unet_x.alpha": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
        "lora_unet_x.lora_down.weight": {"dtype": "F16", "shape": [2, 2], "data_offsets": [4, 12]},
        "lora_unet_x.lora_up.weight": {"dtype": "F16", "shape": [3, 2], "data_offsets": [12, 24]},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    assert (tmp_path / "a.safetensors").read_bytes() == struct.pack("<Q", len(text)) + text + data


# --- what is written ---


def test_stems_decide_the_names_of_tensors(tmp_path):
    adapter = Adapter(
        {STEM: make_layer(8, 8, 2), CONV: make_layer(8, 36, 2, kernel=(3, 3)), DOTTED: make_layer(8, 8, 2)}, {}
    )
    write_adapter(tmp_path / "a.safetensors", adapter)
    shapes = {key: tuple(tensor.shape) for key, tensor in load_file(tmp_path / "a.safetensors").items()}
    assert shapes == {
        f"{STEM}.lora_down.weight": (2, 8),
        f"{STEM}.lora_up.weight": (8, 2),
        f"{STEM}.alpha": (),
        f"{CONV}.lora_down.weight": (2, 4, 3, 3),
        f"{CONV}.lora_up.weight": (8, 2, 1, 1),
        f"{CONV}.alpha": (),
        f"{DOTTED}.lora_A.weight": (2, 8),
        f"{DOTTED}.lora_B.weight": (8, 2),
    }


def test_hashes_are_of_the_tensor_bytes(tmp_path):
    write_adapter(tmp_path / "a.safetensors", make_adapter([STEM]))
    blob = (tmp_path / "a.safetensors").read_bytes()
    digest = hashlib.sha256(blob[8 + int.from_bytes(blob[:8], "little") :]).hexdigest()
    metadata = read_metadata(tmp_path / "a.safetensors")
    assert metadata["sshs_model_hash"] == digest
    assert metadata["modelspec.hash_sha256"] == f"0x{digest}"


def test_names_that_are_no_unicode_do_not_spoil_the_file(tmp_path):
    write_adapter(tmp_path / "a.safetensors", make_adapter([STEM], ss_output_name="caf\udce9 é"))
    assert read_metadata(tmp_path / "a.safetensors")["ss_output_name"] == "caf? é"


@pytest.mark.parametrize("extra", range(0, 256, 8))
def test_no_header_length_is_taken_for_another_kind_of_file(tmp_path, extra):
    write_adapter(tmp_path / "a.safetensors", make_adapter([STEM], ss_output_name="x" * extra))
    assert list(read_adapter(tmp_path / "a.safetensors").layers) == [STEM]


def test_settings_that_were_folded_in_are_not_written_again(tmp_path):
    adapter = make_adapter([STEM], lora_adapter_metadata='{"unet.lora_alpha": 8}', sshs_legacy_hash="1234")
    write_adapter(tmp_path / "a.safetensors", adapter)
    assert not {"lora_adapter_metadata", "sshs_legacy_hash"} & set(read_metadata(tmp_path / "a.safetensors"))


@pytest.mark.parametrize(
    ("svd", "dtype", "words"),
    [
        (SVD(torch.eye(2), torch.tensor([1.0, float("nan")]), torch.eye(2)), torch.float16, "NaN or infinite"),
        (SVD(torch.eye(2), torch.tensor([1e12, 1.0]), torch.eye(2)), torch.float16, "too large for torch.float16"),
        (SVD(torch.eye(2), torch.tensor([1.0, 1.0]), torch.eye(2)), torch.float64, "wanted float16, bfloat16"),
    ],
)
def test_values_that_no_file_can_hold(tmp_path, svd, dtype, words):
    with pytest.raises(InputError, match=words):
        write_adapter(tmp_path / "a.safetensors", Adapter({STEM: Layer(svd)}, {}), dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_no_layers_no_file(tmp_path):
    with pytest.raises(InputError, match="no layers"):
        write_adapter(tmp_path / "a.safetensors", Adapter({}, {}))


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_adapter(path, make_adapter([STEM]))
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fileformat, "_write_parts", full)
    with pytest.raises(InputError, match="No space left"):
        write_adapter(path, make_adapter([CONV]))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def killed(path, _):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(fileformat, "_write_parts", killed)
    with pytest.raises(KeyboardInterrupt):
        write_adapter(tmp_path / "a.safetensors", make_adapter([STEM]))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "folder").write_text("no folder")
    with pytest.raises(InputError, match=r"cannot write .*a\.safetensors"):
        write_adapter(tmp_path / "folder" / "a.safetensors", make_adapter([STEM]))


# --- files of others ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [None, 1.0, 4.0, 6.0])
def test_kohya_alpha_over_rank(tmp_path, dtype, alpha):
    tensors = {key: value.to(dtype) for key, value in kohya().items()}
    wanted = tensors[f"{STEM}.lora_up.weight"].double() @ tensors[f"{STEM}.lora_down.weight"].double()
    if alpha is not None:
        wanted *= alpha / 4
        tensors[f"{STEM}.alpha"] = torch.tensor(alpha, dtype=dtype)
    found = read_adapter(saved(tmp_path / "a.safetensors", tensors)).layers[STEM]
    assert relative_error(dense(found), wanted) < 1e-5


def test_alpha_as_an_integer(tmp_path):
    tensors = kohya() | {f"{STEM}.alpha": torch.tensor(2)}
    found = read_adapter(saved(tmp_path / "a.safetensors", tensors)).layers[STEM]
    wanted = tensors[f"{STEM}.lora_up.weight"] @ tensors[f"{STEM}.lora_down.weight"] / 2
    assert relative_error(dense(found), wanted) < 1e-5


def test_mixed_ranks_and_convolutions(tmp_path):
    down, up = torch.randn(3, 4, 3, 3), torch.randn(6, 3, 1, 1)
    tensors = kohya(rank=8) | {f"{CONV}.lora_down.weight": down, f"{CONV}.lora_up.weight": up}
    layers = read_adapter(saved(tmp_path / "a.safetensors", tensors)).layers
    assert {stem: layer.svd.s.shape[0] for stem, layer in layers.items()} == {CONV: 3, STEM: 8}
    assert layers[CONV].kernel == (3, 3)
    assert relative_error(dense(layers[CONV]), up.flatten(1) @ down.flatten(1)) < 1e-5


def test_the_same_layer_from_peft_and_kohya_is_the_same(tmp_path):
    module = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    theirs = kohya()
    down, up = theirs.values()
    files = {
        "kohya": theirs | {f"{STEM}.alpha": torch.tensor(4.0)},
        "peft": {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up},
        "peft_named": {f"{module}.lora_A.default.weight": down, f"{module}.lora_B.default.weight": up},
        "old_diffusers": {f"{module}.lora.down.weight": down, f"{module}.lora.up.weight": up},
    }
    for name, tensors in files.items():
        path = saved(tmp_path / f"{name}.safetensors", tensors, {"ss_base_model_version": "sd_v1"})
        found = read_adapter(path)
        assert list(found.layers) == [STEM], name
        assert relative_error(dense(found.layers[STEM]), up @ down) < 1e-5, name


def test_a_rank_above_the_layer_is_cut_to_it(tmp_path):
    tensors = kohya(rank=16)
    found = read_adapter(saved(tmp_path / "a.safetensors", tensors)).layers[STEM]
    assert found.svd.s.shape == (10,)
    assert relative_error(dense(found), tensors[f"{STEM}.lora_up.weight"] @ tensors[f"{STEM}.lora_down.weight"]) < 1e-5


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"unet.lora_alpha": 8, "unet.r": 4}, 2.0),
        ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 4.0),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 2}}, 0.5),
        ({"text_encoder.lora_alpha": 8}, 1.0),
    ],
)
def test_alpha_that_peft_put_into_the_metadata_counts_once(tmp_path, settings, scale):
    module = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    down, up = kohya().values()
    tensors = {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    path = saved(tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": json.dumps(settings)})
    found = read_adapter(path)
    assert relative_error(dense(found.layers[STEM]), scale * up @ down) < 1e-5
    assert "lora_adapter_metadata" not in found.metadata


def test_sdxl_in_diffusers_spelling_becomes_sgm(tmp_path):
    module = "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q"
    down, up = kohya().values()
    path = saved(tmp_path / "a.safetensors", {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up})
    assert list(read_adapter(path).layers) == ["lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"]


# --- refusals ---


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("hada_w1_a", "LoHa"),
        ("lokr_w1", "LoKr"),
        ("dora_scale", "DoRA"),
        ("lora_mid.weight", "Tucker"),
        ("oft_blocks", "OFT"),
    ],
)
def test_other_kinds_are_named_with_their_layers(tmp_path, key, kind):
    tensors = kohya() | {f"lora_unet_{index}.{key}": torch.ones(2, 2) for index in range(5)}
    with pytest.raises(InputError, match=rf"{kind}.* in lora_unet_0, lora_unet_1, lora_unet_2 and 2 more"):
        read_adapter(saved(tmp_path / "a.safetensors", tensors))


def test_a_checkpoint_is_no_lora(tmp_path):
    tensors = {"model.diffusion_model.out.2.weight": torch.ones(2, 2)}
    with pytest.raises(InputError, match=r"base model weights in model\.diffusion_model\.out\.2"):
        read_adapter(saved(tmp_path / "a.safetensors", tensors))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{STEM}.lora_up.weight"), f"no lora_up or lora_B for {STEM}"),
        (lambda t: t.pop(f"{STEM}.lora_down.weight"), f"no lora_down or lora_A for {STEM}"),
        (lambda t: t.update({f"{STEM}.lora_up.weight": torch.ones(10, 3)}), r"up \(10, 3\) and down \(4, 12\)"),
        (lambda t: t.update({f"{STEM}.lora_up.weight": torch.ones(10, 4, 3, 3)}), r"wanted \(out, r\)"),
        (lambda t: t.update({f"{STEM}.lora_up.weight": torch.ones(0, 4)}), r"up \(0, 4\)"),
        (lambda t: t.update({f"{STEM}.lora_up.weight": torch.full((10, 4), float("nan"))}), "NaN"),
        (lambda t: t.update({f"{STEM}.lora_up.weight": torch.ones(10, 4, dtype=torch.int8)}), "numbers of int8"),
        (lambda t: t.update({f"{STEM}.alpha": torch.tensor(float("inf"))}), "alpha of .* is inf"),
        (lambda t: t.update({f"{STEM}.alpha": torch.ones(2)}), "wanted one finite number"),
        (lambda t: t.update({f"{STEM}.lora_A.weight": torch.ones(4, 12)}), "is there twice"),
        (lambda t: t.update(kohya("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q")), "are the same layer"),
        (lambda t: t.clear(), "holds no tensors"),
    ],
)
def test_broken_layers_are_named(tmp_path, change, words):
    tensors = kohya()
    change(tensors)
    with pytest.raises(InputError, match=words):
        read_adapter(saved(tmp_path / "a.safetensors", tensors))


class Bomb:
    def __reduce__(self):
        return (os.abort, ())


def test_a_pickle_is_refused_unopened(tmp_path):
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    with zipfile.ZipFile(tmp_path / "new.safetensors", "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Bomb()))
    for name in ("old.ckpt", "new.safetensors"):
        with pytest.raises(InputError, match="is a pickle"):
            read_adapter(tmp_path / name)


HEADER = b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  '


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"", "only 0 bytes"),
        (b"\x10\0\0\0\0\0\0\0{}", "only 10 bytes"),
        (b"<!DOCTYPE html><html>...", "text file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "text file"),
        (b"\xff" * 8 + b"{" + b"x" * 20, "not a safetensors file"),
        (struct.pack("<Q", 2**40) + b"{" + b" " * 20, "not a safetensors file"),
        (struct.pack("<Q", 5000) + b"{" + b" " * 20, "cut off: its header alone has 5000 bytes"),
        (struct.pack("<Q", 16) + b'{"a": broken   }' + b"\0" * 20, "damaged or cut off"),
        (struct.pack("<Q", len(HEADER)) + HEADER + b"\0" * 4, "damaged or cut off"),
        (struct.pack("<Q", len(HEADER)) + HEADER + b"\0" * 12, "damaged or cut off"),
        (struct.pack("<Q", len(HEADER)) + HEADER.replace(b"[2]", b"[9]") + b"\0" * 8, "damaged or cut off"),
        (struct.pack("<Q", len(HEADER)) + HEADER.replace(b"[0,8]", b"[4,8]") + b"\0" * 8, "damaged or cut off"),
    ],
)
def test_hostile_and_broken_files(tmp_path, blob, words):
    path = tmp_path / "a.safetensors"
    path.write_bytes(blob)
    for read in (read_adapter, read_metadata):
        with pytest.raises(InputError, match=words) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_truncated_file_of_ours(tmp_path):
    path = tmp_path / "a.safetensors"
    write_adapter(path, make_adapter([STEM]))
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 100, 15):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut off.*again"):
            read_adapter(path)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_adapter(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="is a folder"):
        read_adapter(tmp_path)


def test_a_file_with_metadata_settings_that_are_no_json(tmp_path):
    path = saved(tmp_path / "a.safetensors", kohya(), {"lora_adapter_metadata": "{"})
    with pytest.raises(InputError, match="lora_adapter_metadata"):
        read_adapter(path)


def test_tensors_of_a_written_file_open_with_the_plain_reader(tmp_path):
    write_adapter(tmp_path / "a.safetensors", make_adapter([STEM]))
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.get_tensor(f"{STEM}.alpha").item() == 3
        assert file.get_tensor(f"{STEM}.lora_down.weight").dtype == torch.float16


def test_directions_of_length_zero_are_no_number_trouble(tmp_path):
    empty = SVD(torch.zeros(4, 2), torch.zeros(2), torch.zeros(2, 4))
    write_adapter(tmp_path / "a.safetensors", Adapter({STEM: Layer(empty)}, {}))
    assert not dense(read_adapter(tmp_path / "a.safetensors").layers[STEM]).any()


def test_bfloat16_holds_every_rank(tmp_path):
    write_adapter(tmp_path / "a.safetensors", Adapter({STEM: make_layer(301, 301, 301)}, {}), dtype=torch.bfloat16)
    assert load_file(tmp_path / "a.safetensors")[f"{STEM}.alpha"].item() == 301
