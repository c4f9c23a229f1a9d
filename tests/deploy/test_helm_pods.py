"""Tests the chart's settings of pods, and that each changes nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.chart import CHART, Rendered, example, refusal, render
from tests.deploy.scripts import load

COMPONENTS = ("head", "router", "prefill", "decode")
EXTRA: dict[str, Any] = {
    "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
    "envFrom": [{"configMapRef": {"name": "tuning"}}],
    "extraVolumes": [{"name": "scratch", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
    "initContainers": [{"name": "first", "image": "busybox:1.37"}],
    "sidecars": [{"name": "beside", "image": "busybox:1.37"}],
    "podAnnotations": {"team/owner": "serving"},
    "podLabels": {"team": "serving"},
    "priorityClassName": "high",
    "runtimeClassName": "nvidia",
    "schedulerName": "volcano",
    "hostNetwork": True,
    "capabilities": {"add": ["IPC_LOCK"]},
    "shmSize": "16Gi",
}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    path = tmp_path_factory.mktemp("values") / "values.yaml"
    account = {"create": True, "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/models"}}
    path.write_text(yaml.safe_dump(dict.fromkeys(COMPONENTS, EXTRA) | {"serviceAccount": account}))
    return render("--values", str(path))


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_pod_takes_the_platform_s_settings(tuned: Rendered, component: str) -> None:
    template = tuned.templates[component]
    spec, main = template["spec"], template["spec"]["containers"][0]
    assert EXTRA["env"][0] in main["env"]
    assert main["envFrom"] == EXTRA["envFrom"]
    assert {v["name"] for v in spec["volumes"]} >= {"tmp", "scratch", "shm"}
    assert EXTRA["extraVolumeMounts"][0] in main["volumeMounts"]
    assert {"name": "shm", "mountPath": "/dev/shm"} in main["volumeMounts"]
    assert [c["name"] for c in spec["initContainers"]] == ["first"]
    assert [c["name"] for c in spec["containers"]][1:] == ["beside"]
    assert template["metadata"]["annotations"]["team/owner"] == "serving"
    assert (
        template["metadata"]["labels"].items() >= {"team": "serving", "app.kubernetes.io/component": component}.items()
    )
    for name in ("priorityClassName", "runtimeClassName", "schedulerName", "hostNetwork"):
        assert spec[name] == EXTRA[name]
    assert spec["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert main["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert spec["serviceAccountName"] == "ling"


def test_the_account_is_made_with_its_annotations(tuned: Rendered) -> None:
    (account,) = tuned.of("ServiceAccount")
    assert account["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/models"}
    assert "serviceAccountName" not in render("--set", "serviceAccount.name=").templates["head"]["spec"]


def test_labels_that_select_pods_can_not_be_changed() -> None:
    rendered = render("--set", r"decode.podLabels.app\.kubernetes\.io/component=other")
    assert rendered.templates["decode"]["metadata"]["labels"]["app.kubernetes.io/component"] == "decode"


def test_infiniband_reaches_the_ranks() -> None:
    for component in ("prefill", "decode"):
        (main,) = example("infiniband").templates[component]["spec"]["containers"]
        assert main["resources"]["limits"]["rdma/rdma_shared_device_a"] == 1
        assert main["resources"]["limits"]["nvidia.com/gpu"] == 4
        assert {"NCCL_IB_HCA", "NCCL_SOCKET_IFNAME"} <= {e["name"] for e in main["env"]}
    packages = (CHART.parent / "Dockerfile").read_text()
    assert re.search(r"libibverbs1 ibverbs-providers librdmacm1", packages)


def test_compiled_kernels_outlive_the_pods_of_ranks() -> None:
    claimed = render("--values", str(CHART / "examples/1p1d-8gpu.yaml"), "--set", "compileCache.existingClaim=kernels")
    source = {"persistentVolumeClaim": {"claimName": "kernels"}}
    folder = {"hostPath": {"path": "/var/lib/ling-kernels", "type": "Directory"}}
    for rendered, volume in ((claimed, source), (example("hub-1p1d"), folder)):
        for component, template in rendered.templates.items():
            (main,) = template["spec"]["containers"]
            given = {e["name"]: e.get("value") for e in main["env"]}.get("TRITON_CACHE_DIR")
            mounts = [m["mountPath"] for m in main["volumeMounts"] if m["name"] == "kernels"]
            volumes = [v for v in template["spec"]["volumes"] if v["name"] == "kernels"]
            if component in ("prefill", "decode"):
                assert (mounts, volumes) == ([given], [{"name": "kernels"} | volume])
            else:
                assert (given, mounts, volumes) == (None, [], [])


def test_without_values_it_is_ling_nano_on_cpus() -> None:
    rendered = render()
    args = rendered.serve["applications"][0]["args"]
    assert args["device"] == "cpu"
    assert "model" not in args
    assert {m["kind"] for m in rendered.manifests} == {"NetworkPolicy", "PodDisruptionBudget", "Pod", "RayService"}
    for template in rendered.templates.values():
        (main,) = template["spec"]["containers"]
        assert main["image"] == "ling-cluster:0.1.0-cpu"
        assert main["resources"]["limits"].keys() == {"cpu", "memory"}
        assert {v["name"] for v in template["spec"]["volumes"]} == {"tmp"}
    claimed = [t["spec"]["containers"][0]["resources"]["requests"]["memory"] for t in rendered.templates.values()]
    assert sorted(claimed) == ["1Gi", "2Gi", "2Gi", "2Gi"]


@pytest.mark.parametrize(
    ("settings", "image"),
    [
        ([], "ling-cluster:0.1.0-cuda"),
        (["image.tag=1.2"], "ling-cluster:1.2"),
        (["image.tag=1.2", f"image.digest=sha256:{'a' * 64}"], f"ling-cluster@sha256:{'a' * 64}"),
    ],
)
def test_an_image_is_named_by_tag_or_digest(settings: list[str], image: str) -> None:
    words = [word for setting in settings for word in ("--set", setting)]
    rendered = render("--values", str(CHART / "examples/1p1d-8gpu.yaml"), *words)
    assert {c["image"] for pod in rendered.pods.values() for c in pod["containers"]} == {image}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (["config.slotz=3"], r"config: Additional property slotz is not allowed"),
        (["config.handoff.chanel=shm"], r"config\.handoff: Additional property chanel"),
        (["config.handoff.channel=rdma"], r"config\.handoff\.channel: .* must be one of"),
        (["config.slots=many"], r"config\.slots: .*Invalid type"),
        (["config.router.port=1"], r"config\.router: Additional property port"),
        (["prefill.affinity.nodeAffinity=3"], r"prefill\.affinity\.nodeAffinity: Invalid type"),
        (["head.affinty=3"], r"head: Additional property affinty"),
        (["decode.env[0].value=x"], r"decode\.env\.0: name is required"),
        (["decode.extraVolumes[0].name=a", "decode.extraVolumes[0].emptyDr.a=b"], r"Additional property emptyDr"),
        (["decode.sidecars[0].image=x"], r"decode\.sidecars\.0: name is required"),
        (["router.tolerations[0].operater=Exists"], r"router\.tolerations\.0: Additional property operater"),
        (["image.digest=sha256:12"], r"image\.digest: Does not match"),
        (["image.tag=sha256:12"], r"image\.tag: Does not match"),
        (["upgrade.strategy=NewClusterWithIncrementalUpgrade"], r"needs autoscaling\.enabled and upgrade\.incremental"),
        (["headState.storage=redis"], r"headState\.redis\.address: goes with"),
        (["httpRoute.enabled=true"], r"httpRoute\.parentRefs: a route needs"),
        (["compileCache.existingClaim=a", "compileCache.hostPath=/b"], r"compileCache: give existingClaim or hostPath"),
        (["compileCache.hostPath=/b", "device=cpu"], r"compileCache: nothing is compiled without GPUs"),
        (["networkPolicy.source=cilium"], r"networkPolicy\.source: .* must be one of"),
        (["decode.tp=null"], r"decode: tp is required"),
        (["model.shard.enabled=true", "model.volume.existingClaim=", "model.volume.hostPath=/m"], r"needs a claim"),
    ],
)
def test_a_wrong_value_is_refused_by_its_path(settings: list[str], why: str) -> None:
    assert re.search(why, refusal(*(part for s in settings for part in ("--set", s))), re.DOTALL)


def test_a_null_leaves_the_user_to_the_cluster_and_is_never_root() -> None:
    rendered = render("--set", "securityContext.runAsUser=null,securityContext.fsGroup=null")
    for pod in rendered.pods.values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert not {"runAsUser", "fsGroup"} & set(pod["securityContext"])


def test_the_schema_is_current_and_asks_for_every_default() -> None:
    script = load("chart-schema")
    assert (CHART / "values.schema.json").read_text() == script.made(), "run: python .ci/chart-schema"
    assert json.loads(script.made())["properties"]["router"]["required"]


@pytest.mark.parametrize("change", ["model.shard.resources.limits.memory=64Gi", "securityContext.runAsUser=12345"])
def test_another_template_is_another_job(change: str, tmp_path: Path) -> None:
    """A job's template is immutable, so an upgrade that changed it under the same name would fail."""
    base = ("--values", str(CHART / "examples/2p4d.yaml"))
    (before,), (after,) = (render(*base, *more).of("Job") for more in ((), ("--set", change)))
    assert before["spec"]["template"] != after["spec"]["template"]
    assert before["metadata"]["name"] != after["metadata"]["name"]
    assert render(*base).of("Job")[0] == before
    waiting = render(*base, "--set", change).templates["head"]["spec"]["initContainers"][0]
    assert after["metadata"]["name"] in waiting["args"][0]


def test_routers_share_a_database_and_a_volume() -> None:
    rendered = example("stateful")
    router = rendered.serve["applications"][0]["args"]["router"]
    (main,) = rendered.templates["router"]["spec"]["containers"]
    assert router["replicas"] > 1
    assert router["database_url"].startswith("postgresql://")
    assert router["data_dir"] in [mount["mountPath"] for mount in main["volumeMounts"]]
    assert next(e for e in main["env"] if e["name"] == "PGPASSWORD")["valueFrom"]["secretKeyRef"]["name"]
    # Without a database a client can be kept at one router.
    assert (
        render("--set", "service.sessionAffinity=ClientIP").service["serveService"]["spec"]["sessionAffinity"]
        == "ClientIP"
    )
