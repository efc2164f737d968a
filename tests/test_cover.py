"""Covers: in the file as other tools read them, and beside it."""

from __future__ import annotations

import base64
import hashlib
import io
import json

import pytest
import torch
from PIL import Image

from tests.adapters import make_adapter
from trilora_core.cover import COVERS, cover_size, to_picture, with_cover, write_preview
from trilora_core.errors import InputError
from trilora_core.fileformat import read_adapter, read_metadata, tensor_hash, write_adapter

STEM = "lora_unet_a_to_q"


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_a_cover_is_read_as_other_tools_read_it(tmp_path) -> None:
    picture = to_picture(torch.tensor([0.2, 0.4, 0.8]).view(3, 1, 1).expand(3, 600, 1200))
    path = tmp_path / "style.safetensors"
    write_adapter(path, with_cover(make_adapter([STEM]), picture))
    told = read_metadata(path)
    (cover,) = json.loads(told["ssmd_cover_images"])
    assert opened(cover).format == "JPEG" and opened(cover).size == (512, 256) == cover_size(told)
    head, _, thumbnail = told["modelspec.thumbnail"].partition(",")
    assert head == "data:image/jpeg;base64" and opened(thumbnail).size == (256, 128)
    assert max(abs(a - b) for a, b in zip(opened(cover).getpixel((5, 5)), (51, 102, 204), strict=True)) < 6
    assert cover_size(read_adapter(path).metadata) == (512, 256), "a cover outlives loading and saving"


def test_the_hashes_are_of_the_tensors_whatever_the_metadata_says(tmp_path) -> None:
    plain, covered = tmp_path / "plain.safetensors", tmp_path / "covered.safetensors"
    adapter = make_adapter([STEM], sshs_model_hash="old", modelspec__hash_sha256="0xold")
    write_adapter(plain, adapter)
    write_adapter(covered, with_cover(adapter, Image.new("RGB", (64, 64))))
    data = covered.read_bytes()
    digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    for path in (plain, covered):
        told = read_metadata(path)
        assert told["sshs_model_hash"] == digest and told["modelspec.hash_sha256"] == f"0x{digest}"
        assert tensor_hash(path) == digest
    assert plain.stat().st_size < covered.stat().st_size


def test_the_preview_lies_beside_the_file(tmp_path) -> None:
    output = write_preview(tmp_path / "style_00001_.safetensors", Image.new("RGBA", (3000, 1500), "red"))
    assert output.name == "style_00001_.preview.jpg"
    with Image.open(output) as found:
        assert found.size == (1024, 512)


def test_a_file_without_a_cover_and_one_that_is_damaged() -> None:
    assert cover_size({}) is None and cover_size({COVERS: "[]"}) is None
    for text in ("{", "7", '["no picture"]', '["AAAA"]', "[7]"):
        with pytest.raises(InputError, match="damaged"):
            cover_size({COVERS: text})
