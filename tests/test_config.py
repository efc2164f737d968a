from __future__ import annotations

import math

import pytest

from trilora_core.config import AdapterConfig, MonitorConfig, OptimizerConfig, TrainConfig, parse_rank
from trilora_core.config_data import DataConfig
from trilora_core.config_json import from_dict, from_json, to_json
from trilora_core.errors import InputError


def test_json_round_trip_keeps_every_value():
    config = TrainConfig(
        steps=7,
        seed=3,
        adapter=AdapterConfig(rank="energy:0.9", alpha=2.0, init="ones", companion_rank=2),
        optimizer=OptimizerConfig(learning_rate=3e-4, schedule="cosine"),
    )
    assert from_json(TrainConfig, to_json(config)) == config


def test_partial_tables_keep_defaults_and_whole_numbers_serve_as_floats():
    config = from_dict(TrainConfig, {"steps": 9, "optimizer": {"clip_norm": 0}})
    assert config.steps == 9 and config.batch_size == 1 and config.optimizer.clip_norm == 0.0


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (TrainConfig, {"step": 1}, "no option step; known: adapter"),
        (TrainConfig, {"steps": 0}, "steps is 0; wanted a whole number from 1 up"),
        (TrainConfig, {"steps": True}, "steps is True; wanted int"),
        (TrainConfig, {"optimizer": {"learning_rate": math.nan}}, "learning_rate is nan; wanted a finite number above"),
        (TrainConfig, {"optimizer": {"learning_rate": -1.0}}, "learning_rate is -1.0"),
        (TrainConfig, {"optimizer": {"learning_rate": "fast"}}, "learning_rate is 'fast'; wanted float"),
        (TrainConfig, {"optimizer": 3}, "OptimizerConfig is int"),
        (AdapterConfig, {"rank": 0}, "rank is 0; wanted a whole number from 1 up"),
        (AdapterConfig, {"rank": "energy:1.5"}, "energy:1.5"),
        (AdapterConfig, {"rank": "many"}, "rank is 'many'"),
        (AdapterConfig, {"init": "svd-min"}, "init is 'svd-min'; known: svd-mean, svd"),
        (AdapterConfig, {"alpha": 0.0}, "alpha is 0.0; wanted a finite number above 0"),
        (OptimizerConfig, {"beta2": 1.0}, "beta2 is 1.0; wanted a finite number from 0 up and below 1"),
        (DataConfig, {"resolution": 8}, "resolution is 8; wanted a whole number from 16 up"),
        (DataConfig, {"trigger_word": "\ud83d"}, "trigger_word is '\\ud83d', which holds half a character"),
        (MonitorConfig, {"preview_prompts": ["a", "\udce9"]}, "monitor.preview_prompts is '\\udce9', which holds half"),
        (AdapterConfig, {"rank": "9" * 5000}, "wanted a whole number from 1 up"),
    ],
)
def test_bad_values_are_named(kind, values, words):
    with pytest.raises(InputError) as caught:
        from_dict(kind, values)
    assert words in str(caught.value)


def test_broken_json_is_an_input_error():
    with pytest.raises(InputError, match="not valid JSON"):
        from_json(TrainConfig, "{")


def test_parse_rank_reads_numbers_and_energy():
    assert parse_rank(16) == 16 and parse_rank("8") == 8 and parse_rank("energy:0.9") == 0.9
