"""Tests that the chart refuses values that can't work, and the tables by which it checks them."""

import json
import re

import pytest
import yaml

from cluster.config import ClusterConfig
from planner.cards import cards, find_card
from planner.chart import table
from planner.memory import Layout, capacity, enough
from planner.model import load_model
from tests.deploy.chart import CHART, helm, refusal, render


def test_the_memory_table_is_the_planner_s() -> None:
    written = json.loads((CHART / "files/memory.json").read_text())
    assert written == table(), "run: python -m planner.chart > helm/files/memory.json"


def test_the_schema_has_the_planner_s_cards_and_the_allowed_tp() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["properties"]["gpu"]["properties"]["type"]["enum"] == [*cards(), "other"]
    assert schema["definitions"]["tp"]["enum"] == load_model("ling-2.6-flash").allowed_tp()


def test_the_checks_assume_the_defaults_of_the_config() -> None:
    config = ClusterConfig(model="x")
    assert (config.cache.disk_ttl_s, config.router.session_ttl_s, config.page_size) == (86400, 3600, 64)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (["decode.tp=3"], r"decode\.tp: decode\.tp must be one of"),
        (["prefill.tp=8"], r"prefill\.tp: prefill\.tp must be one of"),
        (["decode.tp=2", "model.shard.enabled=true"], r"prefill\.tp: 4 differs from decode\.tp 2, and model\.shard"),
        (["decode.replicas=0"], r"decode\.replicas: Must be greater than or equal to 1"),
        (["decode.replica=2"], r"Additional property replica is not allowed"),
        (["gpu.type=h100"], r"gpu\.type: gpu\.type must be one of"),
        (["config.port=80"], r"config: .*port"),
        (["config.router.replicas=3"], r"config\.router"),
        (["router.port=8265"], r"router\.port"),
        (["drainSeconds=-1"], r"drainSeconds: Must be greater"),
        (["decode.maxReplicas=3"], r"decode\.maxReplicas: needs autoscaling\.enabled"),
        (["decode.replicas=4", "decode.maxReplicas=3", "autoscaling.enabled=true"], r"decode\.maxReplicas: 3 with 4"),
        (["model.volume.hostPath=/models"], r"model\.volume: .* exactly one of .* found 2"),
        (["model.volume.existingClaim="], r"model\.volume: .* exactly one of .* found 0"),
        (["model.path=../secret"], r"model\.path: Does not match pattern"),
        (["model.format=gguf"], r"model\.format: model\.format must be one of"),
        (["apiKeys.secretName="], r"apiKeys\.testSecretName: says nothing without"),
        (["ingress.host="], r"ingress\.host: an ingress needs one"),
        (["upgrade.strategy=Hope"], r"upgrade\.strategy"),
        (
            ["model.format=bf16", "gpu.type=h100-80gb", "prefill.tp=2", "decode.tp=2"],
            r"decode\.tp: a worker of 2 h100-80gb has no memory for ling-2\.6-flash in bf16: each card needs \d+ MiB",
        ),
        (["gpu.type=rtx-4090-24gb", "model.format=int4", "prefill.tp=2", "decode.tp=2"], r"no memory for .* in int4"),
        (["gpu.type=h100-80gb", "config.slots=20000"], r"20000 slots"),
        (["gpu.type=h100-80gb", "config.slots=2500"], r"2500 slots, 2500 kept states"),
        (["gpu.type=h100-80gb", "config.cache.device_states=20000"], r"20000 kept states"),
        (["config.max_step_tokens=20000"], r"config\.max_step_tokens: 20000 is more than the 8192"),
        (["config.collectives=gloo"], r"config\.collectives: gloo joins ranks without GPUs"),
        (["config.cache.disk_dir=/x"], r"config\.cache\.disk_dir: files are written from host memory"),
        (
            ["config.cache.disk_dir=/x", "config.cache.host_bytes=9", "config.cache.disk_ttl_s=60"],
            r"config\.cache\.disk_ttl_s: 60 seconds would erase files of sessions",
        ),
        (["config.load=synthetic", "config.verify=true"], r"config\.verify: synthetic weights have no files"),
        (["config.pages=2", "config.max_model_len=4096"], r"config\.pages: 2 of 64 tokens can't hold one sequence"),
        (["decode.resources.limits.memoryX=1Gi"], r"decode\.resources\.limits: .*memoryX is not allowed"),
        (["config.max_model_len=300000"], r"config\.max_model_len: 300000 is more than the 262144"),
    ],
)
def test_values_that_can_not_work_are_refused_by_path(settings: list[str], why: str) -> None:
    assert re.search(why, refusal(*(part for s in settings for part in ("--set", s))), re.DOTALL)


@pytest.mark.parametrize("weights", ["bf16", "fp8", "int4"])
@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("card", ["h100-80gb", "b200-180gb"])
def test_memory_is_refused_where_the_planner_finds_none(weights: str, tp: int, card: str) -> None:
    model = load_model("ling-2.6-flash", weights)  # type: ignore[arg-type]
    layout = Layout(tp, 131072, 1, sessions=128)
    held = capacity(model, find_card(card), layout)
    settings = f"model.format={weights},gpu.type={card},prefill.tp={tp},decode.tp={tp}"
    done = helm("template", "ling", str(CHART), "-f", str(CHART / "examples/1p1d-8gpu.yaml"), "--set", settings)
    assert (done.returncode == 0) == enough(held, layout), done.stderr


def test_without_a_cache_its_states_take_no_memory() -> None:
    values = ("--values", str(CHART / "examples/1p1d-8gpu.yaml"), "--set", "gpu.type=h100-80gb,config.slots=2500")
    assert render(*values, "--set", "config.cache.mode=off").of("RayService")
    assert render(*values, "--set", "config.cache.device_states=64").of("RayService")


def test_a_card_unknown_to_the_planner_is_not_checked() -> None:
    values = ("--values", str(CHART / "examples/1p1d-8gpu.yaml"), "--set", "gpu.type=other,prefill.tp=1,decode.tp=1")
    assert render(*values).of("RayService")


def test_values_and_examples_say_nothing_twice() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(defaults) == set(schema["properties"]) - {"global"}
