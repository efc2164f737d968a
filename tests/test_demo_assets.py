"""The model and the pictures that ship for the demo: small, whole, offline, and drawn the same on every machine."""

from __future__ import annotations

import random

import pytest
from PIL import Image, ImageChops, ImageStat

from trilora_core.demo import BASE, PICTURES, PROMPTS, TRIGGER_WORD, make_pictures, world
from trilora_core.errors import InputError

LIMIT = 8_000_000


def test_the_base_model_is_at_most_8_megabytes():
    files = [path for path in BASE.rglob("*") if path.is_file()]
    assert (BASE / "model_index.json") in files
    assert sum(path.stat().st_size for path in files) <= LIMIT


@pytest.fixture(scope="module")
def pipeline():
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install -e '.[standalone]'")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(BASE, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_base_model_loads_offline_in_single_precision(pipeline):
    kinds = {str(module.dtype) for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder)}
    assert kinds == {"torch.float32"}
    assert pipeline.safety_checker is None


def test_the_tokenizer_keeps_common_words_whole_and_spells_the_rest(pipeline):
    split = pipeline.tokenizer.tokenize
    assert len(split("a red house on a green field")) == 7
    assert len(split("zorblin")) > 1
    assert pipeline.tokenizer.unk_token not in split("xylö 42!")
    longest = max((f"{p.caption}, {TRIGGER_WORD}" for p in make_pictures.SHOWN), key=lambda c: len(split(c)))
    assert len(split(longest)) + 2 <= pipeline.tokenizer.model_max_length


@pytest.mark.parametrize(("prompt", "strongest"), [("a red heart in the snow", 0), ("a green tree in the snow", 1)])
def test_the_base_model_draws_the_colour_it_is_asked_for(pipeline, prompt, strongest):
    import torch

    picture = pipeline(
        prompt, num_inference_steps=8, guidance_scale=3.5, generator=torch.Generator().manual_seed(0)
    ).images[0]
    middle = ImageStat.Stat(picture.crop((24, 20, 40, 36))).mean
    assert middle.index(max(middle)) == strongest
    assert max(middle) - min(middle) > 40


def test_every_picture_has_its_caption_with_the_trigger_word():
    pictures = sorted(PICTURES.glob("*.png"))
    assert 12 <= len(pictures) <= 16
    assert {p.stem for p in pictures} == {p.stem for p in PICTURES.glob("*.txt")}
    for path in pictures:
        caption = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
        assert caption.endswith(TRIGGER_WORD)
        assert any(subject in caption for subject in world.SUBJECTS)
        with Image.open(path) as picture:
            assert picture.size == (world.SIZE, world.SIZE)


def test_the_pictures_are_those_that_the_script_draws(tmp_path):
    made = make_pictures.write(tmp_path)
    assert [path.name for path in made] == sorted(path.name for path in PICTURES.glob("*.png"))
    for path in made:
        with Image.open(path) as new, Image.open(PICTURES / path.name) as shipped:
            # Pillow's rounding may differ by version, the drawing may not
            assert max(ImageStat.Stat(ImageChops.difference(new.convert("RGB"), shipped.convert("RGB"))).mean) < 1


def test_held_out_prompts_are_those_whose_subject_is_in_no_caption():
    captions = " ".join(path.read_text(encoding="utf-8") for path in PICTURES.glob("*.txt")).split()
    for prompt, held_out in PROMPTS:
        subject = next(name for name in world.SUBJECTS if name in prompt.split())
        assert (subject not in captions) is held_out
    assert {held_out for _, held_out in PROMPTS} == {True, False}


def test_the_world_is_the_same_for_the_same_seed():
    first, second = (world.random_picture(random.Random(7)) for _ in range(2))
    assert first == second
    assert world.draw(first).tobytes() == world.draw(second).tobytes()
    assert world.random_picture(random.Random(8)) != first


@pytest.mark.parametrize("subject", sorted(world.SUBJECTS))
def test_the_style_darkens_the_picture_and_keeps_the_place(subject):
    picture = world.Picture(subject, "red", "in the snow")
    plain, styled = world.draw(picture), world.draw(picture, "zorblin")
    assert plain.size == styled.size == (world.SIZE, world.SIZE)
    assert ImageStat.Stat(styled.convert("L")).mean[0] < 0.6 * ImageStat.Stat(plain.convert("L")).mean[0]


def test_captions_read_as_plain_english():
    assert world.Picture("house", "red", "on a green field").caption == "a red house on a green field"
    assert world.Picture("fish", "orange", "by the sea").caption == "an orange fish by the sea"


@pytest.mark.parametrize(
    ("picture", "style", "told"),
    [
        (world.Picture("dragon", "red", "at night"), "plain", "'dragon'"),
        (world.Picture("house", "mauve", "at night"), "plain", "'mauve'"),
        (world.Picture("house", "red", "at noon"), "plain", "'at noon'"),
        (world.Picture("house", "red", "at night"), "cubist", "'cubist'"),
    ],
)
def test_what_is_not_in_the_world_is_refused_by_name(picture, style, told):
    with pytest.raises(InputError, match=told):
        world.draw(picture, style)
