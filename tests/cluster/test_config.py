"""Tests which settings the schema accepts from each source, and its errors."""

from collections.abc import Iterator

import pytest
import yaml
from pydantic import BaseModel

from cluster.config import ClusterConfig, ConfigError
from cluster.parse import parse


def test_defaults() -> None:
    config = parse({})
    assert (config.prefill.replicas, config.decode.replicas, config.decode.tp) == (1, 1, 1)
    assert config.model is None
    assert config.port is None


def test_text_from_a_command_line_and_yaml_give_the_same() -> None:
    text = parse({
        "model": "/m", "prefill.tp": "2", "decode.tp": "2", "decode.replicas": "3", "router.max_queue": "7",
        "port": "80", "drain_s": "1.5", "pages": "null", "handoff.channel": "gloo",
        "model_overrides.rope_scaling.factor": "2.0", "model_overrides.rope_scaling.rope_type": "yarn",
    })  # fmt: skip
    nested = parse({
        "model": "/m", "prefill": {"tp": 2}, "decode": {"tp": 2, "replicas": 3}, "router": {"max_queue": 7},
        "port": 80, "drain_s": 1.5, "pages": None, "handoff": {"channel": "gloo"},
        "model_overrides": {"rope_scaling": {"factor": 2.0, "rope_type": "yarn"}},
    })  # fmt: skip
    assert text == nested


def leaves(section: BaseModel, path: str = "") -> Iterator[tuple[str, object]]:
    """Every setting's path and default."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


@pytest.mark.parametrize(("path", "value"), [(p, v) for p, v in leaves(parse({})) if isinstance(v, bool | int | float)])
def test_every_number_and_switch_can_be_written_on_a_command_line(path: str, value: object) -> None:
    assert parse({path: str(value).lower()}) == parse({})


@pytest.mark.parametrize("text", ["speculate: off", "cuda_graphs: off", "cache: {mode: off}", "cache: {mode: on}"])
def test_a_switch_that_yaml_reads_as_a_truth_value(text: str) -> None:
    assert parse(yaml.safe_load(text)) == parse(yaml.safe_load(text.replace("on}", "'on'}").replace("off", "'off'")))


def test_overrides_as_one_text() -> None:
    assert parse({"model_overrides": '{"rope_scaling": {"factor": 2.0}}'}).model_overrides == {
        "rope_scaling": {"factor": 2.0}
    }


def test_later_layers_win_key_by_key() -> None:
    config = parse({"decode": {"replicas": 2, "tp": 2}, "prefill.tp": 2}, {"decode.replicas": 5})
    assert (config.decode.replicas, config.decode.tp) == (5, 2)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"prefil": {"tp": 2}}, "prefil: unknown setting; did you mean prefill?"),
        ({"decode.ranks": "2"}, "decode.ranks: unknown setting; known here: replicas, max_replicas, tp, resources"),
        ({"router": {"max_que": 1}}, "router.max_que: unknown setting; did you mean max_queue?"),
        ({"decode.tp": "two"}, "decode.tp: input should be a valid integer, got 'two'"),
        ({"decode.tp": 0}, "decode.tp: input should be greater than or equal to 1, got 0"),
        ({"decode.replicas": 0}, "decode.replicas: "),
        ({"slots": 1.5}, "slots: "),
        ({"slots": True}, "slots: "),
        ({"speculate": 9}, "speculate: must be auto, off, or a number of drafts from 1 to 8, got 9"),
        ({"speculate": 0}, "speculate: must be auto, off, or a number of drafts from 1 to 8, got 0"),
        ({"speculate": True}, "speculate: must be auto, off, or a number of drafts from 1 to 8, got True"),
        ({"port": 70000}, "port: input should be less than or equal to 65535, got 70000"),
        ({"port": -1}, "port: "),
        ({"dtype": "fp16"}, "dtype: input should be 'auto', 'float32' or 'bfloat16', got 'fp16'"),
        ({"model": 7}, "model: "),
        ({"model": ""}, "model: "),
        ({"drain_s": "nan"}, "drain_s: "),
        ({"drain_s": ".inf"}, "drain_s: "),
        ({"decode": 2}, "decode: "),
        ({"decode": "tp"}, "decode: "),
        ({"pages": 1, "max_model_len": 1000}, "pages: 1 of 64 tokens hold 64, but one sequence may be 1000 long"),
        ({"device": "cpu", "collectives": "nccl"}, "collectives: nccl needs GPUs"),
        ({"device": "cpu", "handoff.channel": "nccl"}, "handoff.channel: nccl needs GPUs"),
        ({"device": "cuda", "collectives": "shm"}, "collectives: shm joins ranks without GPUs"),
        ({"verify": True, "load": "synthetic"}, "verify: synthetic weights have no files"),
        ({"model_overrides": "{"}, "model_overrides: not readable as YAML"),
        ({"model_overrides": "7"}, "model_overrides: "),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused_by_its_path(args: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(args)
    assert any(line.startswith(message) for line in str(caught.value).splitlines()), str(caught.value)


def test_all_problems_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"port": 0, "slots": 0, "what": 1})
    assert len(str(caught.value).splitlines()) == 3


def test_every_setting_is_documented() -> None:
    documented = ClusterConfig.__doc__ or ""
    sections = {"prefill", "decode", "router", "handoff", "logs", "autoscaling", "collectives"}
    missing = [name for name in ClusterConfig.model_fields if name not in sections and name not in documented]
    assert not missing
