"""Tests the sources of the chart's weights, and that contradictory settings are refused."""

import re
from typing import Any

import pytest

from cluster.fetch.location import Hub, Store, remote
from cluster.parse import parse
from tests.deploy.chart import CHART, Rendered, example, helm, render

HUB = ("--values", str(CHART / "examples/hub-1p1d.yaml"))
STORE = (
    "--values", str(CHART / "examples/1p1d-8gpu.yaml"), "--set", "model.source=store,model.prefix=s3://bucket/ling",
    "--set", "model.volume.existingClaim=,serviceAccount.name=reader,model.env.AWS_REGION=us-west-2",
)  # fmt: skip


def args(rendered: Rendered) -> dict[str, Any]:
    found: dict[str, Any] = rendered.serve["applications"][0]["args"]
    return found


def volume(rendered: Rendered, pod: str, name: str) -> dict[str, Any]:
    (found,) = [v for v in rendered.pods[pod]["volumes"] if v["name"] == name]
    return {kind: what for kind, what in found.items() if kind != "name"}


def test_a_hub_fills_every_node_s_disk_before_workers_need_it() -> None:
    rendered = example("hub-1p1d")
    config = parse(args(rendered))
    assert remote(str(config.model)) == Hub("inclusionAI/Ling-2.6-flash-FP8")
    assert config.model_cache == "/cache"
    for pool in ("prefill", "decode", "ling-prepull"):
        assert volume(rendered, pool, "cache") == {"hostPath": {"path": "/var/lib/ling", "type": "Directory"}}
    # Nodes without GPUs need no such folder for what describes the checkpoint.
    for pod in ("head", "router"):
        assert volume(rendered, pod, "cache") == {"emptyDir": {}}
    (daemons,) = rendered.of("DaemonSet")
    pod = daemons["spec"]["template"]["spec"]
    assert daemons["spec"]["selector"]["matchLabels"] == daemons["spec"]["template"]["metadata"]["labels"]
    (fetch,) = pod["initContainers"]
    assert fetch["command"] == ["ling", "fetch", config.model, "--cache", "/cache"]
    assert pod["tolerations"] == rendered.pods["decode"]["tolerations"]
    fetching = [fetch, *(p["containers"][0] for n, p in rendered.pods.items() if n in ("head", "router", "decode"))]
    assert len(fetching) == 4
    assert all(c["envFrom"] == [{"secretRef": {"name": "ling-hub"}}] for c in fetching)
    assert not any(v["name"] == "models" for p in rendered.pods.values() for v in p["volumes"])


@pytest.mark.parametrize(
    ("cache", "volumes"),
    [
        ("model.cache.existingClaim=weights", {"persistentVolumeClaim": {"claimName": "weights"}}),
        ("model.cache.emptyDir.enabled=true", {"emptyDir": {"sizeLimit": "300Gi"}}),
    ],
)
def test_a_store_with_either_cache(cache: str, volumes: dict[str, Any]) -> None:
    rendered = render(*STORE, "--set", cache)
    assert remote(str(parse(args(rendered)).model)) == Store("s3://bucket/ling")
    for name in ("head", "router", "decode"):
        assert volume(rendered, name, "cache") == volumes
        assert rendered.pods[name]["serviceAccountName"] == "reader"
        (container,) = rendered.pods[name]["containers"]
        assert {"name": "AWS_REGION", "value": "us-west-2"} in container["env"]
    assert rendered.of("DaemonSet") == []


def test_folders_are_mounted_and_never_written() -> None:
    rendered = example("1p1d-8gpu")
    assert volume(rendered, "decode", "models") == {"persistentVolumeClaim": {"claimName": "models"}}
    assert "model_cache" not in args(rendered)
    assert remote(args(rendered)["model"]) is None
    host = ("--set", "model.volume.existingClaim=,model.volume.hostPath=/models")
    rendered = render("--values", str(CHART / "examples/1p1d-8gpu.yaml"), *host)
    assert volume(rendered, "decode", "models") == {"hostPath": {"path": "/models", "type": "Directory"}}


@pytest.mark.parametrize(
    ("base", "settings", "why"),
    [
        (HUB, "model.repository=", r"model\.repository: source hub needs it"),
        (HUB, "model.repository=noslash", r"model\.repository: Does not match pattern"),
        (HUB, "model.prefix=s3://a/b", r"model\.prefix: source hub does not read it"),
        (HUB, "model.volume.existingClaim=x", r"model\.volume: source hub fetches into model\.cache; leave x out"),
        (HUB, "model.cache.existingClaim=x", r"model\.cache: source hub needs exactly one of .* found 2"),
        (HUB, "model.cache.hostPath=", r"model\.cache: source hub needs exactly one of .* found 0"),
        (HUB, "model.shard.enabled=true", r"model\.shard\.enabled: needs model\.source folder"),
        (HUB, "config.model_cache=/x", r"config: .*model_cache"),
        (STORE, "model.prefix=", r"model\.prefix: source store needs it"),
        (STORE, "model.prefix=ftp://a/b", r"model\.prefix: Does not match pattern"),
        (STORE, "model.cache.existingClaim=x,model.prepull.enabled=true", r"model\.prepull\.enabled: needs model\.cac"),
        (HUB, "gpu.type=rtx-4090-24gb", r"decode\.tp: a worker of 4 rtx-4090-24gb has no memory"),
        (HUB, "model.source=folder,model.path=a", r"model\.volume: model\.path needs exactly one"),
    ],
)
def test_contradictory_sources_of_weights_are_refused_by_path(base: tuple[str, ...], settings: str, why: str) -> None:
    done = helm("template", "ling", str(CHART), *base, "--set", settings)
    assert done.returncode != 0
    assert re.search(why, done.stderr, re.DOTALL), done.stderr


@pytest.mark.parametrize("setting", ["repository=a/b", "secretName=s", "env.A=b", "cache.hostPath=/x"])
def test_a_folder_is_not_fetched(setting: str) -> None:
    base = ("--values", str(CHART / "examples/1p1d-8gpu.yaml"))
    done = helm("template", "ling", str(CHART), *base, "--set", f"model.{setting}")
    name = re.split(r"[.=]", setting)[0]
    assert f"model.{name}: a folder is not fetched; set model.source to hub or store" in done.stderr
