"""Tests the chart's network policies and the rights of its containers."""

import tomllib
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.deploy.chart import CHART, NAMES, Rendered, example, render, selects
from tests.deploy.crd import schema_of, strict

DROPPED = {"drop": ["ALL"]}


def test_no_container_has_more_rights_than_it_needs(rendered: Rendered) -> None:
    for name, pod in rendered.pods.items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is (name == "head" and rendered.cluster["enableInTreeAutoscaling"])
        assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
        contexts = [c["securityContext"] for c in pod["containers"] + pod.get("initContainers", [])]
        if name == "head" and rendered.cluster["enableInTreeAutoscaling"]:
            contexts.append(rendered.cluster["autoscalerOptions"]["securityContext"])
        for context in contexts:
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == DROPPED
            assert context["runAsNonRoot"] is True
            assert "privileged" not in context
        assert all(c["volumeMounts"] for c in pod["containers"])
        written = [m for c in pod["containers"] for m in c["volumeMounts"] if not m.get("readOnly")]
        shard = {"/models"} if "-shard-" in name else set()
        fetched = {"/cache"} if any(m["name"] == "cache" for m in written) else set()
        stored = {"/data"} if any(m["name"] == "data" for m in written) else set()
        kernels = {"/kernels"} if any(m["name"] == "kernels" for m in written) else set()
        assert {m["mountPath"] for m in written} - {"/dev/shm"} - kernels == {"/tmp"} | shard | fetched | stored


def test_secrets_are_only_referred_to() -> None:
    rendered = example("2p4d")
    assert rendered.cluster["authOptions"] == {"mode": "token", "secretName": "ling-ray-token"}
    assert rendered.of("Secret") == []
    args = rendered.serve["applications"][0]["args"]
    assert args["router"]["api_keys"] == "/etc/ling/api-keys/keys"
    holders = {
        name
        for name, pod in rendered.pods.items()
        if any(v.get("secret", {}).get("secretName") == "ling-api-keys" for v in pod["volumes"])
    }
    assert holders == {"head", "router"}
    (chat,) = example("1p1d-8gpu").of("Pod")
    (key,) = [e for e in chat["spec"]["containers"][0]["env"] if e["name"] == "LING_API_KEY"]
    assert key["valueFrom"]["secretKeyRef"] == {"name": "ling-test-key", "key": "key"}


@pytest.mark.parametrize("name", NAMES)
def test_ray_asks_for_the_token(name: str) -> None:
    assert example(name).cluster["authOptions"]["mode"] == "token"
    wanted = tomllib.loads((CHART.parent / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"ray[serve]=={example(name).cluster['rayVersion']}" in wanted


def allowed(rendered: Rendered, component: str) -> list[tuple[Any, Any]]:
    """(from, ports) of each rule of the network policies for a component's pods."""
    labels = rendered.templates[component]["metadata"]["labels"]
    rules = []
    for policy in rendered.of("NetworkPolicy"):
        selector = policy["spec"]["podSelector"]
        if selects(selector, labels):
            assert policy["spec"]["policyTypes"] == ["Ingress"]
            rules += [(rule.get("from"), rule.get("ports")) for rule in policy["spec"].get("ingress", [])]
    return rules


def namespaces(peers: list[dict[str, Any]] | None) -> set[str]:
    return {
        p["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        for p in peers or []
        if "namespaceSelector" in p
    }


def test_only_the_routers_port_is_open_and_the_rest_is_for_the_cluster(rendered: Rendered) -> None:
    for component, template in rendered.templates.items():
        inside = 0
        for peers, ports in allowed(rendered, component):
            named = {p["port"] for p in ports or []}
            if not ports:
                # All ports: for pods of this very release, in this namespace.
                (peer,) = peers
                assert set(peer) == {"podSelector"}
                assert selects(peer["podSelector"], template["metadata"]["labels"])
                assert not selects(peer["podSelector"], {"app.kubernetes.io/name": "ling"})
                inside += 1
            elif named == {"http"}:
                assert component == "router"
            elif named == {"metrics"}:
                assert namespaces(peers) == {"monitoring"}
            else:
                assert (component, named) == ("head", {"dashboard"})
                assert namespaces(peers) == {"kuberay-operator"}
                assert "podSelector" in peers[0]
        assert inside == 1


def test_kuberay_can_make_the_same_policies() -> None:
    """The test ignores the rule that KubeRay's operator adds: all ports among pods of a cluster."""
    path = str(CHART / "examples/2p4d.yaml")
    rendered = render("--values", path, "--set", "networkPolicy.source=kuberay")
    given = rendered.cluster["networkPolicy"]
    assert given["mode"] == "DenyAllIngress"
    (router,) = given["workerGroups"]
    assert router["groupName"] == "router"
    theirs = {
        "head": given["head"]["ingressRules"],
        "router": router["ingressRules"],
        "prefill": given["worker"]["ingressRules"],
        "decode": given["worker"]["ingressRules"],
    }
    for component, rules in theirs.items():
        ours = [(peers, ports) for peers, ports in allowed(example("2p4d"), component) if ports]
        assert sorted(map(str, ((rule.get("from"), rule["ports"]) for rule in rules))) == sorted(map(str, ours))
    # Jobs and test pods are not KubeRay's.
    assert [policy["metadata"]["name"] for policy in rendered.of("NetworkPolicy")] == ["ling-jobs"]
    errors = Draft202012Validator(strict(schema_of("1.7.0"))).iter_errors(rendered.of("RayService")[0])
    assert [error.message for error in errors] == []
    assert "networkPolicy" not in example("2p4d").cluster


def test_clients_can_be_named() -> None:
    http = [{"port": "http", "protocol": "TCP"}]
    (named,) = [peers for peers, ports in allowed(example("2p4d"), "router") if ports == http]
    assert namespaces(named) == {"ingress-nginx", "monitoring"}
    (anybody,) = [peers for peers, ports in allowed(example("cpu-mini"), "router") if ports == http]
    assert anybody is None


def test_the_ingress_has_tls_and_shows_only_the_apis() -> None:
    (ingress,) = example("1p1d-8gpu").of("Ingress")
    assert ingress["spec"]["tls"] == [{"hosts": ["ling.example.com"], "secretName": "ling-tls"}]
    (rule,) = ingress["spec"]["rules"]
    for path in rule["http"]["paths"]:
        assert path["backend"]["service"] == {"name": "ling-serve-svc", "port": {"number": 8000}}
    assert not {"/", "/metrics", "/status"} & {p["path"] for p in rule["http"]["paths"]}
