"""Tests that Kubernetes, KubeRay, Ray and Serve accept what the chart renders."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import validate_config
from ray.serve.schema import ServeDeploySchema

from cluster.dashboards.alerts import ALERTS
from cluster.parse import parse
from cluster.pool import actor_options
from tests.deploy.chart import CHART, NAMES, Rendered, example, helm, render, selects
from tests.deploy.crd import schema_of, strict
from wire.protocol import Role

KUBERNETES = ("1.27", "1.33")
CUSTOM = {"RayService", "PodMonitor", "PrometheusRule", "HTTPRoute"}


@pytest.mark.parametrize("name", NAMES)
def test_helm_lints_it(name: str) -> None:
    done = helm("lint", "--strict", str(CHART), "--values", str(CHART / f"examples/{name}.yaml"))
    assert done.returncode == 0, done.stdout


def test_there_is_an_example_for_each_documented_size() -> None:
    assert set(NAMES) == {"1p1d-8gpu", "2p4d", "single-node", "cpu-mini", "hub-1p1d", "infiniband", "stateful"}


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_accepts_every_manifest(rendered: Rendered, version: str) -> None:
    for manifest in rendered.manifests:
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, version, strict=True)
    for name, template in rendered.templates.items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **template["metadata"]}}
        kubernetes_validate.validate(pod | {"spec": template["spec"]}, version, strict=True)


def test_ray_s_autoscaler_reads_the_cluster_and_finds_room_for_every_worker(rendered: Rendered) -> None:
    resource = {"metadata": {"name": "ling", "namespace": "serving"}, "spec": rendered.cluster}
    derived = _derive_autoscaling_config_from_ray_cr(json.loads(json.dumps(resource)))
    validate_config(derived)
    types = derived["available_node_types"]
    config = parse(rendered.serve["applications"][0]["args"])
    assert types["headgroup"]["resources"]["CPU"] == 0
    roles: list[Role] = ["prefill", "decode"] if config.prefill.replicas else ["decode"]
    for role in roles:
        pool, node = config.pool(role), types[role]
        options = actor_options(config, role)
        need = {"CPU": options["num_cpus"], "GPU": options["num_gpus"], **options["resources"]}
        assert all(node["resources"].get(name, 0) >= amount for name, amount in need.items())
        assert node["resources"].get("GPU", 0) == (pool.tp if config.device == "cuda" else 0)
        assert (node["min_workers"], node["max_workers"]) == (pool.replicas, pool.max_replicas or pool.replicas)
    assert types["router"]["resources"]["router"] == config.router.resources["router"] == 1
    assert types["router"]["min_workers"] == config.router.replicas


def test_serve_and_the_schema_read_the_settings(rendered: Rendered) -> None:
    deployed = ServeDeploySchema.model_validate(rendered.serve)
    assert deployed.proxy_location == "Disabled"
    config = parse(deployed.applications[0].args)
    (port,) = rendered.service["serveService"]["spec"]["ports"]
    assert (config.host, config.port) == ("0.0.0.0", port["port"])
    assert config.device != "auto"
    ports = {n: [p["name"] for p in t["spec"]["containers"][0]["ports"]] for n, t in rendered.templates.items()}
    # The Service takes every pod of the cluster with a port of that name.
    assert [name for name, names in ports.items() if port["targetPort"] in names] == ["router"]
    assert "serve" in ports["head"]


def test_ranks_stay_on_one_node_and_pods_of_a_pool_spread(rendered: Rendered) -> None:
    for group in rendered.cluster["workerGroupSpecs"]:
        assert group["numOfHosts"] == 1
        (spread,) = group["template"]["spec"]["topologySpreadConstraints"]
        assert spread["labelSelector"]["matchLabels"] == group["template"]["metadata"]["labels"]


def test_a_pod_has_longer_to_end_than_its_streams(rendered: Rendered) -> None:
    drain = parse(rendered.serve["applications"][0]["args"]).drain_s
    for name, template in rendered.templates.items():
        if name == "head":
            continue
        command = template["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert command[:-1] == ["python", "-m", "cluster.leave"]
        # Serve gives a replica 10 s on top of draining; leaving waits for that, and Kubernetes for leaving.
        assert drain + 10 < int(command[-1]) < template["spec"]["terminationGracePeriodSeconds"]
    assert rendered.service["rayClusterDeletionDelaySeconds"] > drain


def test_changed_settings_make_a_second_cluster_beside_the_old_one() -> None:
    def annotations(*arguments: str) -> dict[str, str]:
        found: dict[str, str] = render(*arguments).templates["head"]["metadata"].get("annotations", {})
        return found

    one = ("--values", str(CHART / "examples/1p1d-8gpu.yaml"))
    assert annotations(*one) == annotations(*one)
    assert annotations(*one) != annotations(*one, "--set", "config.slots=64")
    assert annotations(*one, "--set", "upgrade.strategy=None") == {}


def test_disruption_budgets_allow_one_pod_of_many_to_end() -> None:
    found = {
        m["metadata"]["name"].removeprefix("ling-"): m["spec"]["minAvailable"]
        for m in example("2p4d").of("PodDisruptionBudget")
    }
    assert found == {"head": 1, "router": 3, "prefill": 1, "decode": 3}
    for budget in example("2p4d").of("PodDisruptionBudget"):
        component = budget["metadata"]["name"].removeprefix("ling-")
        labels = example("2p4d").templates[component]["metadata"]["labels"]
        assert budget["spec"]["selector"]["matchLabels"] == labels
    assert {m["metadata"]["name"] for m in example("single-node").of("PodDisruptionBudget")} == {
        "ling-head", "ling-router", "ling-decode"
    }  # fmt: skip


def test_weights_are_sharded_once_before_the_head_starts() -> None:
    rendered = example("2p4d")
    (job,) = rendered.of("Job")
    (script,) = job["spec"]["template"]["spec"]["containers"][0]["args"]
    source, made = "/models/Ling-2.6-flash-FP8", "/models/Ling-2.6-flash-FP8-tp4"
    assert f"ling convert '{source}' '{made}' --shard-for tp=4" in script
    assert rendered.serve["applications"][0]["args"]["model"] == made
    assert rendered.serve["applications"][0]["args"]["served_name"] == "Ling-2.6-flash-FP8"
    (waiting,) = rendered.templates["head"]["spec"]["initContainers"]
    assert f"test -d '{made}'" in waiting["args"][0]
    assert example("1p1d-8gpu").of("Job") == []


def test_a_job_for_other_weights_is_another_job() -> None:
    base = ("--values", str(CHART / "examples/2p4d.yaml"))
    names = {
        render(*base, *more).of("Job")[0]["metadata"]["name"]
        for more in ((), ("--set", "model.path=Other"), ("--set", "prefill.tp=2", "--set", "decode.tp=2"))
    }
    assert len(names) == 3


def test_a_monitor_reads_the_ports_that_pods_have() -> None:
    (monitor,) = example("2p4d").of("PodMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    ports = {e["port"] for e in monitor["spec"]["podMetricsEndpoints"]}
    for name, template in example("2p4d").templates.items():
        assert selects(monitor["spec"]["selector"], template["metadata"]["labels"])
        offered = {p["name"] for p in template["spec"]["containers"][0]["ports"]}
        assert ports & offered == {"metrics"}, name
    assert example("cpu-mini").of("PodMonitor") == []


def test_dashboards_travel_with_a_packaged_chart(tmp_path: Path) -> None:
    chart = tmp_path / "helm"
    shutil.copytree(CHART, chart, symlinks=True, ignore=shutil.ignore_patterns("dashboards"))
    (tmp_path / "dashboards").mkdir()
    board = {"title": "Fleet", "panels": [{"expr": 'sum(x{a="{{b}}"})'}]}
    (tmp_path / "dashboards/fleet.json").write_text(json.dumps(board, indent=2))
    (chart / "dashboards").symlink_to("../dashboards")
    done = helm("package", str(chart), "--destination", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (package,) = tmp_path.glob("ling-*.tgz")
    shutil.rmtree(tmp_path / "dashboards")
    values = ("--values", str(CHART / "examples/cpu-mini.yaml"), "--set", "dashboards.enabled=true")
    rendered = render(*values, chart=package)
    found = rendered.named("ConfigMap", "ling-fleet")
    assert json.loads(found["data"]["fleet.json"]) == board
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_the_chart_s_dashboards_are_the_project_s() -> None:
    assert (CHART / "dashboards").resolve() == CHART.parent / "dashboards"


@pytest.mark.parametrize("version", ["1.6.2", "1.7.0"])
def test_kuberay_s_schema_takes_the_cluster(rendered: Rendered, version: str) -> None:
    """It is checked strictly by the CRD's schema, because KubeRay silently drops unknown fields."""
    (service,) = rendered.of("RayService")
    validator = Draft202012Validator(strict(schema_of(version)))
    assert [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in validator.iter_errors(service)] == []


def test_alerts_are_a_release_s_own() -> None:
    (rule,) = example("1p1d-8gpu").of("PrometheusRule")
    found = [r["expr"] for group in rule["spec"]["groups"] for r in group["rules"]]
    assert len(found) == len(ALERTS)
    for expr in found:
        selectors = re.findall(r"ray_\w+(\{[^}]*\})?", expr)
        assert all(s.startswith('{cluster="ling",namespace="serving"') for s in selectors), expr
    (monitor,) = example("1p1d-8gpu").of("PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["relabelings"] == [{"targetLabel": "cluster", "replacement": "ling"}]


def test_the_card_is_known_to_the_workers_where_the_planner_knows_it() -> None:
    base = ("--values", str(CHART / "examples/1p1d-8gpu.yaml"))

    def args(*more: str) -> dict[str, Any]:
        found: dict[str, Any] = render(*base, *more).serve["applications"][0]["args"]
        return found

    assert args()["card"] == "h200-141gb"
    assert "card" not in args("--set", "gpu.type=other")
    assert "card" not in render().serve["applications"][0]["args"]


UPGRADE = "upgrade.strategy=NewClusterWithIncrementalUpgrade,autoscaling.enabled=true"


@pytest.mark.parametrize(
    ("settings", "versions", "path", "value"),
    [
        ("headState.storage=redis,headState.redis.address=redis:6379", ("1.6.2", "1.7.0"), "rayClusterConfig",
         {"redisAddress": "redis://redis:6379"}),
        ("headState.storage=rocksdb,headState.rocksdb.storageClass=fast", ("1.7.0",), "rayClusterConfig",
         {"backend": "rocksdb", "storage": {"size": "1Gi", "accessModes": ["ReadWriteOnce"],
          "deletionPolicy": "DeleteWithCluster", "storageClassName": "fast"}}),
        (f"{UPGRADE},upgrade.incremental.gatewayClassName=istio", ("1.6.2", "1.7.0"), "upgradeStrategy",
         {"gatewayClassName": "istio", "stepSizePercent": 10, "intervalSeconds": 60, "maxSurgePercent": 100}),
    ],
)  # fmt: skip
def test_kuberay_takes_a_kept_head_and_a_gradual_upgrade(
    settings: str, versions: tuple[str, ...], path: str, value: dict[str, Any]
) -> None:
    rendered = render("--set", settings)
    (service,) = rendered.of("RayService")
    assert value in rendered.service[path].values()
    for version in versions:
        errors = Draft202012Validator(strict(schema_of(version))).iter_errors(service)
        assert [error.message for error in errors] == []


def test_a_gateway_exposes_the_same_paths_as_an_ingress() -> None:
    route = "httpRoute.enabled=true,httpRoute.parentRefs[0].name=gateway,httpRoute.hostnames[0]=ling.example.com"
    rendered = render("--values", str(CHART / "examples/1p1d-8gpu.yaml"), "--set", route)
    (ingress,), (shown,) = rendered.of("Ingress"), rendered.of("HTTPRoute")
    (rule,) = shown["spec"]["rules"]
    inside = {p["path"] for p in ingress["spec"]["rules"][0]["http"]["paths"]}
    assert {m["path"]["value"] for m in rule["matches"]} == inside
    assert rule["backendRefs"] == [{"name": "ling-serve-svc", "port": 8000}]
    assert rule["timeouts"] == {"request": "0s", "backendRequest": "0s"}


def test_two_releases_of_a_namespace_share_no_name() -> None:
    values = ("--values", str(CHART / "examples/2p4d.yaml"))

    def names(release: str) -> set[tuple[str, str]]:
        done = helm("template", release, str(CHART), "--namespace", "serving", *values)
        found = [m for m in yaml.safe_load_all(done.stdout) if m]
        return {(m["kind"], m["metadata"]["name"]) for m in found}

    one, two = names("red"), names("blue")
    assert one
    assert not one & two
