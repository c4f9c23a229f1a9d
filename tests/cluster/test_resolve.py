"""Tests how a config is checked against checkpoints and devices."""

import os
import shutil
from pathlib import Path

import pytest

from cluster.config import ConfigError
from cluster.parse import parse
from cluster.resolve import pools, resolve, router_config, routers_for, worker_config

TP4 = Path(__file__).parent.parent / "golden" / "tp4"


def test_settings_reach_the_worker() -> None:
    config = parse({
        "model": str(TP4), "dtype": "float32", "prefill": {"tp": 4}, "decode": {"tp": 4, "replicas": 2},
        "page_size": 16, "pages": 999, "slots": 5, "max_model_len": 100, "max_step_tokens": 77,
        "handoff": {"channel": "gloo", "window": 3, "timeout_s": 9.0}, "collectives": "gloo",
        "model_overrides": {"rms_norm_eps": 1e-6}, "verify": "true",
        "cache": {"host_bytes": 4096, "state_dtype": "int8"},
    })  # fmt: skip
    made = worker_config(resolve(config, gpus=0), "decode", "10.0.0.1", "s")
    assert (made.model, made.tp, made.dtype, made.device) == (str(TP4), 4, "float32", "cpu")
    assert (made.page_size, made.pages, made.slots) == (16, 999, 5)
    assert (made.max_model_len, made.max_step_tokens) == (100, 77)
    assert (made.channel, made.handoff_window, made.handoff_timeout_s) == ("gloo", 3, 9.0)
    assert (made.collectives, made.host, made.secret) == ("gloo", "10.0.0.1", "s")
    assert made.model_overrides == {"rms_norm_eps": 1e-6}
    assert made.verify
    # As many states are kept as sequences run, unless a number is given.
    assert (made.cache_states, made.cache_host_bytes, made.cache_state_dtype) == (5, 4096, "int8")


@pytest.mark.parametrize(("cache", "states"), [({"mode": "off"}, 0), ({"device_states": 7}, 7), ({}, 5)])
def test_the_cache_is_as_large_as_asked(cache: dict[str, object], states: int) -> None:
    resolved = resolve(parse({"model": str(TP4), "slots": 5, "cache": cache}), gpus=0)
    assert worker_config(resolved, "decode", "10.0.0.1", "s").cache_states == states


def test_routers_are_as_many_as_cores_allow() -> None:
    assert [routers_for(cores) for cores in (1, 2, 8, 15, 16, 32, 192)] == [1, 1, 1, 1, 2, 4, 4]
    for given, settled in (("auto", routers_for(len(os.sched_getaffinity(0)))), ("3", 3)):
        config = parse({"model": str(TP4), "router.replicas": given})
        assert router_config(resolve(config, gpus=0), "r", "s").replicas == settled
    with pytest.raises(ConfigError, match=r"router\.replicas"):
        parse({"router.replicas": "some"})


def test_settings_reach_the_router() -> None:
    config = parse({"model": str(TP4), "prefill.replicas": "0", "decode.replicas": "3", "router.max_queue": "7"})
    resolved = resolve(config, gpus=0)
    made = router_config(resolved, "router-x", "s")
    assert (made.served_model_name, made.tokenizer, made.name, made.max_queue) == ("tp4", str(TP4), "router-x", 7)
    assert (pools(resolved).prefill, pools(resolved).decode) == (0, 3)
    # Routers of one cluster share a folder; another cluster's do not.
    assert made.run_dir == router_config(resolved, "router-y", "s").run_dir
    assert made.run_dir != router_config(resolve(config, gpus=0), "router-x", "s").run_dir


def test_the_keys_file_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys").write_text("")
    settings = {"model": str(TP4), "router.api_keys": "keys", "router.cors_origins": "https://a,https://b"}
    made = router_config(resolve(parse(settings), gpus=0), "router-x", "s")
    assert (made.api_keys, made.cors_origins) == (str(tmp_path / "keys"), ("https://a", "https://b"))
    with pytest.raises(ConfigError, match=r"router.api_keys: no file at .*nowhere"):
        resolve(parse(settings | {"router.api_keys": "nowhere"}), gpus=0)


@pytest.mark.parametrize(("device", "gpus", "expected"), [("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cpu", 2, "cpu")])
def test_device(device: str, gpus: int, expected: str) -> None:
    resolved = resolve(parse({"model": str(TP4), "device": device}), gpus)
    assert worker_config(resolved, "prefill", "127.0.0.1", "s").device == expected


def test_without_a_model_ling_nano_is_served() -> None:
    resolved = resolve(parse({}), gpus=0)
    assert resolved.served_name == "ling-nano"
    assert (Path(resolved.model) / "model.safetensors").is_file()
    assert resolve(parse({"served_name": "mine"}), gpus=0).served_name == "mine"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"model": "/nowhere"}, "model: no checkpoint folder at /nowhere"),
        ({"prefill.tp": 3, "decode.tp": 3}, "decode.tp: "),
        ({"max_model_len": 10**9}, "max_model_len: 1000000000 exceeds the checkpoint's context of "),
        ({"pages": 1, "page_size": 16}, "pages: 1 of 16 tokens hold 16, but one sequence may be "),
        ({"device": "auto", "collectives": "nccl"}, "collectives: nccl needs GPUs"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_path(args: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match="^" + message):
        resolve(parse({"model": str(TP4)}, args), gpus=0)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model: .*config\.json"):
        resolve(parse({"model": str(tmp_path)}), gpus=0)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    shutil.copytree(TP4, tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(config.read_text().replace("BailingMoeV2_5ForCausalLM", "BailingMoeV3ForCausalLM"))
    with pytest.raises(ConfigError, match=r"^model: .*BailingMoeV3ForCausalLM"):
        resolve(parse({"model": str(tmp_path / "other")}), gpus=0)
