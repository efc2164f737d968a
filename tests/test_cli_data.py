"""Options of the data side on the command line, what train makes of them, and the verb dataset."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from contextlib import closing
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from tests.tiny_pipeline import SIDE, write_pictures, write_pipeline
from trilora_core.__main__ import main
from trilora_core.cli import dataset as dataset_verb
from trilora_core.cli import options
from trilora_core.cli import train as train_verb
from trilora_core.cli.data_options import CacheOptions
from trilora_core.cli.parser import OneLineParser
from trilora_core.cli.run_options import read_run_options
from trilora_core.cli.summary import at_most
from trilora_core.config import TrainConfig
from trilora_core.config_data import DataConfig, PriorConfig
from trilora_core.data.cache import DATABASE, DiskStore
from trilora_core.errors import InputError
from trilora_core.fileformat import read_metadata

NEEDED = ["--model", "m", "--data", "d", "--output", "out/o.safetensors"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test may write into the user's own cache."""
    monkeypatch.setenv("TRILORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def parser_of(verb) -> OneLineParser:
    parser = OneLineParser("test", "", None, None)
    verb.add_arguments(parser)
    return parser


def read(*argv: str):
    return read_run_options(parser_of(train_verb).parse_args([*NEEDED, *argv]))


def places(parser: argparse.ArgumentParser) -> set[str]:
    return {action.dest.removeprefix("option:") for action in parser._actions if action.dest.startswith("option:")}


def names_of(kind, prefix: str = "") -> set[str]:
    """Every option of a config and of the configs in it, as TOML spells them."""
    found = set()
    for field in dataclasses.fields(kind):
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        name = f"{prefix}{field.name}"
        found |= names_of(type(default), f"{name}.") if dataclasses.is_dataclass(default) else {name}
    return found


# --- from flags and TOML to configs --------------------------------------------


def test_every_option_has_a_flag():
    data = names_of(DataConfig, "data.")
    wanted = data | names_of(PriorConfig, "prior.") | names_of(TrainConfig)
    assert wanted - places(parser_of(train_verb)) == {"data.captions.weights"}  # for the host
    assert data - places(parser_of(dataset_verb)) == {"data.captions.weights"}


@pytest.mark.parametrize(
    ("argv", "path", "wanted"),
    [
        ("--trigger-word zorb", "data.trigger_word", "zorb"),
        ("--skip-unreadable", "data.skip_unreadable", True),
        ("--max-train-samples 7", "data.max_train_samples", 7),
        ("--no-buckets", "data.framing.buckets", False),
        ("--bucket-step 16", "data.framing.step", 16),
        ("--upscale", "data.framing.upscale", True),
        ("--random-crop", "data.framing.crop", "random"),
        ("--random-crop --crops 3", "data.framing.crops", 3),
        ("--flip", "data.framing.flip", True),
        ("--caption-prefix p", "data.captions.prefix", "p"),
        ("--caption-suffix s", "data.captions.suffix", "s"),
        ("--shuffle-captions", "data.captions.shuffle", True),
        ("--shuffle-captions --keep-tags 2", "data.captions.keep_tags", 2),
        ("--shuffle-captions --caption-variants 5", "data.captions.variants", 5),
        ("--caption-dropout 0.25", "data.captions.dropout", 0.25),
        ("--mask-alpha", "data.masks.source", "alpha"),
        ("--masks folder", "data.masks.folder", "folder"),
        ("--masks folder", "data.masks.source", "folder"),
        ("--mask-alpha --mask-floor 0.1", "data.masks.floor", 0.1),
        ("--prior class", "prior", PriorConfig("class")),
        ("--prior-prompt dog --prior-count 9 --prior-seed 4", "prior", PriorConfig("out/o_prior", "dog", 9, 4)),
        ("--prior class --prior-weight 0.5", "train.prior_weight", 0.5),
        ("--prior class --prior-batch-size 2", "train.prior_batch_size", 2),
        ("--epochs 3", "train.epochs", 3),
        ("--steps 3", "prior", None),
        ("--method lora --init ones", "train.adapter.init", "ones"),
        ("--method lora --init contrast --calibrate", "train.adapter.init", "contrast"),
        ("--optimizer prodigy", "train.optimizer.name", "prodigy"),
        ("--up-rate 4", "train.optimizer.up_rate", 4.0),
        ("--sigma-rate 0", "train.optimizer.sigma_rate", 0.0),
        ("--down-rate 0.5", "train.optimizer.down_rate", 0.5),
        ("--text-encoder-rate 0.5", "train.optimizer.text_encoder_rate", 0.5),
        ("--rank energy:0.9 --rank-cap 64", "train.adapter.rank_cap", 64),
        ("--ema 0.99", "train.ema", 0.99),
        ("--timesteps shifted", "train.loss.timesteps", "shifted"),
        ("--timesteps shifted --shift 2", "train.loss.shift", 2.0),
        ("--timesteps logit-normal --logit-mean -1", "train.loss.logit_mean", -1.0),
        ("--timesteps logit-normal --logit-std 2", "train.loss.logit_std", 2.0),
        ("--min-snr-gamma 5", "train.loss.min_snr_gamma", 5.0),
        ("--noise-offset 0.05", "train.loss.noise_offset", 0.05),
        ("--orthogonality 0.01", "train.loss.orthogonality", 0.01),
        ("--validation-share 0.1", "train.monitor.validation_share", 0.1),
        ("--validation-share 0.1 --validate-every 5", "train.monitor.validate_every", 5),
        ("--validation-share 0.1 --patience 3", "train.monitor.patience", 3),
        ("--validation-share 0.1 --keep-best", "train.monitor.keep_best", True),
        ("--preview-every 9 --preview-prompts a b", "train.monitor.preview_every", 9),
        ("--preview-every 9 --preview-prompts a b", "train.monitor.preview_prompts", ("a", "b")),
        ("--preview-every 9 --preview-prompts a --preview-seed 7", "train.monitor.preview_seed", 7),
        ("--save-every 5 --keep-adapters 2", "train.monitor.keep_adapters", 2),
        ("--keep-state", "train.monitor.keep_state", True),
        ("--start-from a.safetensors", "start_from", "a.safetensors"),
        ("--cache memory", "cache.folder", None),
        ("--cache-limit 1.5", "cache.limit", 1_500_000_000),
    ],
)
def test_a_flag_sets_its_option_and_no_other(argv, path, wanted):
    found = read(*argv.split())
    for name in path.split("."):
        found = getattr(found, name)
    assert found == wanted


def test_without_flags_everything_is_as_the_configs_say(cache):
    found = read()
    assert (found.data, found.train) == (DataConfig("d"), TrainConfig())
    assert found.prior is None and found.own_resolution
    assert found.cache == CacheOptions(cache, 20 * 10**9)


def written(tmp_path, text: str) -> list[str]:
    file = tmp_path / "run.toml"
    file.write_text(text, encoding="utf-8")
    return ["--config", str(file)]


def test_toml_has_the_same_names_and_flags_win(tmp_path):
    text = """
        epochs = 4
        prior_weight = 0.5
        cache = "kept"
        cache_limit = 3
        [data]
        max_train_samples = 5
        [data.captions]
        shuffle = true
        keep_tags = 1
        [data.framing]
        flip = true
        step = 8
        [data.masks]
        folder = "painted"
        floor = 0.2
        [prior]
        folder = "class"
        prompt = "a dog"
        [optimizer]
        up_rate = 2
        [loss]
        timesteps = "shifted"
        [monitor]
        preview_every = 10
        preview_prompts = ["a dog", "a cat"]
    """
    flags = ("--bucket-step", "16", "--steps", "3", "--mask-alpha", "--preview-prompts", "a fox", "--shift", "5")
    found = read(*written(tmp_path, 'start_from = "a"\n' + text), *flags)
    assert (found.start_from, found.train.optimizer.up_rate) == ("a", 2.0)
    assert (found.train.loss.timesteps, found.train.loss.shift) == ("shifted", 5.0)
    assert (found.train.monitor.preview_every, found.train.monitor.preview_prompts) == (10, ("a fox",))
    assert (found.data.framing.step, found.data.framing.flip, found.data.max_train_samples) == (16, True, 5)
    assert (found.data.captions.shuffle, found.data.captions.keep_tags) == (True, 1)
    assert (found.data.masks.source, found.data.masks.floor) == ("alpha", 0.2)
    assert found.prior == PriorConfig("class", "a dog")
    assert (found.train.steps, found.train.epochs, found.train.prior_weight) == (3, 0, 0.5)
    assert (str(found.cache.folder), found.cache.limit) == ("kept", 3 * 10**9)
    assert read(*written(tmp_path, text)).data.masks.source == "folder", "a folder is named to be used"
    assert read(*written(tmp_path, "steps = 7"), "--epochs", "2").train.epochs == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--epochs 2 --steps 9", "--steps and --epochs were both given; choose one"),
        ("--mask-alpha --masks folder", "--mask-alpha and --masks were both given; choose one"),
        ("--rank-cap 64", "--rank-cap does nothing without --rank energy:0.9; add it, or leave --rank-cap out"),
        ("--crops 3", "--crops does nothing without --random-crop; add it, or leave --crops out"),
        ("--keep-tags 3", "--keep-tags does nothing without --shuffle-captions"),
        ("--caption-variants 3", "--caption-variants does nothing without --shuffle-captions"),
        ("--mask-floor 0.3", "--mask-floor does nothing without --masks DIR or --mask-alpha"),
        ("--prior-weight 2", "--prior-weight does nothing without prior pictures"),
        ("--prior-count 2", "prior.count is 2, but prior.prompt is empty; say what to draw"),
        ("--prior d", "d holds both the pictures and those of the prior"),
        ("--caption-dropout 1.5", "captions.dropout is 1.5; wanted a finite number from 0 to 1"),
        ("--max-train-samples -1", "max_train_samples is -1; wanted a whole number from 0 up"),
        ("--cache-limit 0", "cache_limit is 0.0; wanted a finite number of GB above 0"),
        ("--cache-limit nan", "cache_limit is nan"),
        ("--shift 2", "--shift does nothing without --timesteps shifted; add it, or leave --shift out"),
        ("--timesteps shifted --logit-mean 1", "--logit-mean does nothing without --timesteps logit-normal"),
        ("--logit-std 2", "--logit-std does nothing without --timesteps logit-normal"),
        ("--method lora --init svd", "--init does nothing without --method trilora"),
        ("--method lora --sigma-rate 2", "--sigma-rate does nothing without --method trilora"),
        ("--validate-every 5", "--validate-every does nothing without --validation-share X"),
        ("--patience 5", "monitor.patience and monitor.keep_best need monitor.validation_share above 0"),
        ("--preview-seed 5", "--preview-seed does nothing without --preview-every N"),
        ("--preview-prompts cat", "--preview-prompts does nothing without --preview-every N"),
        ("--preview-every 5", "monitor.preview_prompts is empty; say what to draw"),
        ("--keep-adapters 2", "--keep-adapters does nothing without --save-every N"),
        ("--validation-share 1", "monitor.validation_share is 1.0; wanted a finite number from 0 to 0.9"),
        ("--ema 1", "ema is 1.0; wanted a finite number from 0 up and below 1"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(argv, message):
    with pytest.raises(InputError) as error:
        read(*argv.split())
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 3\nepochs = 2", "has both steps and epochs"),
        ("[data.captions]\nsuffle = true", "CaptionConfig has no option suffle; known: dropout"),
        ("[data]\nmasks = 3", "MaskConfig is int; wanted a table"),
        ("cache = 3", "cache is 3; wanted a folder in quotes"),
        ("cache_limit = '3'", "cache_limit is '3'; wanted a finite number of GB"),
        ("[prior]\ncount = 2", "prior.prompt is empty"),
        ("[monitor]\nkeep_adapters = 2", "monitor.keep_adapters is set, but save_every is 0"),
        ("start_from = 3", "start_from is 3; wanted a path in quotes"),
        ("[monitor]\npreview_prompts = 'a dog'", "preview_prompts is 'a dog'; wanted a list of texts"),
    ],
)
def test_a_wrong_toml_file_is_explained(tmp_path, text, message):
    with pytest.raises(InputError) as error:
        read(*written(tmp_path, text))
    assert message in str(error.value)


def test_a_toml_file_may_begin_with_the_mark_of_an_editor(tmp_path):
    (tmp_path / "run.toml").write_text("steps = 7", encoding="utf-8-sig")
    assert read("--config", str(tmp_path / "run.toml")).train.steps == 7


def test_before_python_3_11_only_a_toml_file_needs_tomli(tmp_path, monkeypatch):
    monkeypatch.setattr(options, "sys", SimpleNamespace(version_info=(3, 10)))
    monkeypatch.setitem(sys.modules, "tomli", None)
    assert read("--steps", "7").train.steps == 7
    with pytest.raises(InputError, match=r"--config needs tomli before Python 3\.11; run: pip install"):
        read(*written(tmp_path, "steps = 7"))


def test_the_users_own_folder_may_be_named_in_a_toml_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    text = """
        model = "~/m"
        output = "~/out/o.safetensors"
        plot = "~/p.png"
        start_from = "~/s.safetensors"
        [data]
        folder = "d"
        [adapter]
        init = "contrast"
        [calibration]
        file = "~/c.safetensors"
    """
    found = read_run_options(parser_of(train_verb).parse_args(written(tmp_path, text)))
    assert (found.output, found.plot) == (tmp_path / "out" / "o.safetensors", tmp_path / "p.png")
    places = (found.model, found.start_from, found.calibration.file)
    assert places == tuple(str(tmp_path / name) for name in ("m", "s.safetensors", "c.safetensors"))


def test_long_lists_are_counted():
    lines = [str(number) for number in range(12)]
    assert at_most(lines) == [*lines[:10], "… and 2 more of these"]
    assert at_most(lines[:10]) == lines[:10]


# --- train -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    pytest.importorskip("diffusers")
    return write_pipeline(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def rich(tmp_path):
    """Three pictures of the side of the model, two of a kohya folder in another shape, and a mask for one."""
    folder = write_pictures(tmp_path / "pictures")
    (folder / "3_sks dog").mkdir()
    for colour in ("white", "black"):
        Image.new("RGB", (4 * SIDE, SIDE), colour).save(folder / "3_sks dog" / f"{colour}.png")
    (tmp_path / "masks").mkdir()
    mask = Image.new("L", (SIDE, SIDE), 255)
    mask.paste(0, (0, 0, SIDE // 2, SIDE))
    mask.save(tmp_path / "masks" / "red.png")
    return folder


def train(base, folder, output, *extra: str) -> int:
    argv = ["train", "--model", str(base), "--data", str(folder), "--output", str(output), "--rank", "2"]
    return main([*argv, "--lr", "0.01", *extra])


def test_train_reports_subsets_buckets_masks_and_epochs(base, rich, tmp_path, capsys):
    output = tmp_path / "style.safetensors"
    argv = ["--masks", str(tmp_path / "masks"), "--mask-floor", "0.25", "--flip", "--shuffle-captions"]
    assert train(base, rich, output, *argv, "--epochs", "2", "--batch-size", "2") == 0
    text = capsys.readouterr().out
    for wanted in (
        "note: 4 of 5 pictures have no mask: 3_sks dog/black.png, 3_sks dog/white.png",
        "pictures:   5 pictures at resolution 16, 4 captions",
        "subsets:    1 x 3 pictures outside such folders",
        "subsets:    3 x 2 pictures of 'sks dog'",
        "buckets:    2, from 16 x 16 to 32 x 8 pixels",
        "masks:      1 of 5 pictures, 0.25 of the loss under them",
        "9 steps of batch 2 (2 epochs)",
    ):
        assert wanted in text, (wanted, text)
    told = read_metadata(output)
    assert told["ss_num_train_images"] == "9" and told["ss_max_train_steps"] == "9"


def test_a_second_run_finds_everything_in_the_cache(base, rich, tmp_path, capsys, cache):
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for path in files[:2]:
        assert train(base, rich, path, "--steps", "2") == 0
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith("cache:"))
    assert first == f"cache:      {cache}, 0 of 9 entries were there already"  # 5 pictures and 4 captions
    assert second == f"cache:      {cache}, 9 of 9 entries were there already"
    assert (cache / DATABASE).is_file()
    assert train(base, rich, files[2], "--steps", "2", "--cache", "memory") == 0
    assert "cache:      in memory, for this run only" in capsys.readouterr().out
    hashes = {read_metadata(path)["sshs_model_hash"] for path in files}
    assert len(hashes) == 1, "a cache changes nothing"


def test_without_a_cache_nothing_is_left_behind(base, tmp_path, cache):
    assert (
        train(base, write_pictures(tmp_path / "p"), tmp_path / "o.safetensors", "--steps", "1", "--cache", "memory")
        == 0
    )
    assert not cache.exists()


def test_a_cache_that_cannot_be_used_is_one_line(base, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    pictures = write_pictures(tmp_path / "p")
    assert train(base, pictures, tmp_path / "o.safetensors", "--cache", str(tmp_path / "file" / "cache")) == 2
    assert "error: cannot use the cache" in capsys.readouterr().err


def test_missing_prior_pictures_are_drawn_once_with_the_base_model(base, tmp_path, capsys):
    from trilora_core.backend_diffusers import DiffusersPreviewer, load_pipeline

    pictures, output = write_pictures(tmp_path / "p"), tmp_path / "out" / "dog.safetensors"
    argv = ["--steps", "2", "--prior-prompt", "a red house", "--prior-count", "2", "--prior-seed", "5"]
    assert train(base, pictures, output, *argv) == 0
    text = capsys.readouterr().out
    prior = tmp_path / "out" / "dog_prior"
    assert (
        f'prior:      2 pictures of "a red house" in {prior}, 2 of them drawn now; 1 beside each batch, weight 1'
        in text
    )
    assert {path.name: path.read_text().strip() for path in prior.glob("*.txt")} == {
        "prior_00000.txt": "a red house",
        "prior_00001.txt": "a red house",
    }
    (wanted,) = DiffusersPreviewer(load_pipeline(str(base)), resolution=SIDE).preview(["a red house"], [6])
    with Image.open(prior / "prior_00001.png") as drawn:
        assert drawn.convert("RGB").tobytes() == wanted.tobytes()
        assert drawn.info["trilora.base"] == "base"
    told = read_metadata(output)
    assert (told["ss_num_train_images"], told["ss_num_reg_images"]) == ("3", "2")
    assert train(base, pictures, output, *argv, "--resume") == 0
    again = capsys.readouterr().out
    assert "drawn now" not in again and "finished already" in again
    assert train(base, pictures, output, *argv[:2], "--prior-prompt", "a blue tree", "--prior-count", "3") == 0
    assert '3 pictures of "a red house" and 1 other caption in' in capsys.readouterr().out


def test_prior_pictures_of_ones_own_take_part_in_the_loss(base, tmp_path, capsys):
    pictures, own = write_pictures(tmp_path / "p"), write_pictures(tmp_path / "own", captions=False)
    results = []
    for extra in ([], ["--prior", str(own), "--prior-prompt", "a square", "--prior-batch-size", "2"]):
        output = tmp_path / "o.safetensors"
        assert train(base, pictures, output, "--steps", "2", *extra) == 0
        results.append(read_metadata(output)["sshs_model_hash"])
    assert results[0] != results[1]
    assert '3 pictures of "a square" in' in capsys.readouterr().out
    assert len(list(own.iterdir())) == 3, "nothing was drawn"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--prior-prompt", "a dog"], "prior.count is 0; put pictures into it"),
        (["--masks", "nowhere"], "mask folder nowhere does not exist"),
        (["--bucket-step", "12"], "resolution 16 is not a multiple of 12"),
    ],
)
def test_train_refuses(base, tmp_path, capsys, extra, message):
    pictures = write_pictures(tmp_path / "p")
    assert train(base, pictures, tmp_path / "o.safetensors", *extra) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ") and message in error


def test_weights_in_captions_are_refused_before_the_model_is_loaded(tmp_path, capsys):
    config = written(tmp_path, "[data.captions]\nweights = true")
    assert train("nowhere", write_pictures(tmp_path / "p"), tmp_path / "o.safetensors", *config) == 2
    assert "captions.weights is on, but diffusers reads (word:1.2) as text" in capsys.readouterr().err


def test_captions_that_the_model_does_not_read_to_their_end_are_counted(base, tmp_path, capsys):
    pictures = write_pictures(tmp_path / "p")
    argv = [base, pictures, tmp_path / "o.safetensors", "--steps", "1"]
    (pictures / "red.txt").write_text("a red house " * 10)
    assert train(*argv) == 0
    wanted = "longer than the 22 tokens that this model reads, so that the end is not seen"
    assert f"note: the caption of red.png is {wanted}\n" in capsys.readouterr().out
    (pictures / "blue.txt").write_text("a blue house " * 10)
    assert train(*argv) == 0
    assert f"note: the captions of 2 pictures are {wanted}: blue.png, red.png\n" in capsys.readouterr().out


# --- dataset ---------------------------------------------------------------------


def test_dataset_reports_without_a_model(rich, tmp_path, capsys, cache):
    sheet = tmp_path / "new" / "sheet.png"
    argv = ["dataset", "--data", str(rich), "--resolution", "16", "--masks", str(tmp_path / "masks")]
    assert main([*argv, "--sheet", str(sheet)]) == 0
    text = capsys.readouterr().out
    for wanted in ("5 pictures · 9 looks in each epoch · resolution 16", "32 x 8", "sks dog", "1 picture with a mask"):
        assert wanted in text, (wanted, text)
    assert f"contact sheet: {sheet}" in text
    with Image.open(sheet) as picture:
        assert picture.width > 600
    assert cache.is_dir(), "the next look at the same files is quick"


def test_dataset_makes_no_room_in_the_cache_of_the_runs(rich, tmp_path, cache):
    with closing(DiskStore(cache / DATABASE, 10**9)) as store:
        store.put("of a run", torch.zeros(4))
    assert main(["dataset", "--data", str(rich), *written(tmp_path, "cache_limit = 1e-9"), "--resolution", "16"]) == 0
    with closing(DiskStore(cache / DATABASE, 10**9)) as store:
        assert not store.missing(["of a run"])


@pytest.mark.parametrize("place", ["pictures/red.png", "pictures/new/sheet.png", "masks/red.png"])
def test_a_sheet_among_pictures_or_masks_is_refused(rich, tmp_path, capsys, place):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    argv = ["dataset", "--data", str(rich), "--masks", str(tmp_path / "masks"), "--sheet", str(tmp_path / place)]
    assert main(argv) == 2
    assert "among what is trained on; write the sheet to another folder" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before


def test_dataset_as_json_is_nothing_but_json(rich, tmp_path, capsys):
    config = written(tmp_path, f"model = 'm'\nsteps = 3\n[data]\nfolder = '{rich}'\n[data.framing]\nbuckets = false")
    assert main(["dataset", *config, "--resolution", "16", "--json", "--sheet", str(tmp_path / "s.png")]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["pictures"], values["looks"]) == (5, 9)
    assert sorted(bucket["size"] for bucket in values["buckets"]) == [[16, 16]]
    assert values["config"]["resolution"] == 16


def test_dataset_looks_at_512_pixels_by_default(rich, capsys):
    assert main(["dataset", "--data", str(rich), "--upscale"]) == 0
    assert "resolution 512" in capsys.readouterr().out


def test_dataset_names_every_picture_that_cannot_be_used(rich, capsys):
    for name in ("red", "blue"):
        (rich / f"{name}.png").write_bytes(b"no picture")
    argv = ["dataset", "--data", str(rich), "--resolution", "16"]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "red.png" in text and "blue.png" in text
    assert "The verb train stops at the first picture that cannot be used" in text
    assert main([*argv, "--skip-unreadable"]) == 0
    assert "The verb train" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no pictures were given; add --data DIR"),
        (["--data", "nowhere"], "picture folder nowhere does not exist"),
        (["--data", ".", "--sheet", "sheet.jpg"], "sheet.jpg does not end in .png"),
        (["--data", ".", "--model", "m"], "unrecognized arguments: --model m"),
    ],
)
def test_dataset_refuses(argv, message, capsys):
    assert main(["dataset", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and message in captured.err
