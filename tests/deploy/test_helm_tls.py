"""Tests TLS between the chart's pods: their settings, and the certificates that they create."""

import os
import shlex
import ssl
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
from cryptography import x509
from jsonschema import Draft202012Validator

from tests.certificates import authority
from tests.deploy.chart import CHART, NAMES, Manifest, Rendered, example, refusal, render
from tests.deploy.crd import schema_of, strict
from wire.tls import load

ON = ("--set", "tls.enabled=true,tls.caSecretName=ling-ca")
FILES = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")


@pytest.fixture(scope="module")
def encrypted() -> Rendered:
    """The chart with the largest example and TLS."""
    return render("--values", str(CHART / "examples/2p4d.yaml"), *ON)


def variables(container: Manifest) -> dict[str, str]:
    return {e["name"]: e["value"] for e in container["env"] if "value" in e}


def test_every_process_of_ray_gets_the_switch_and_the_files(encrypted: Rendered) -> None:
    containers = [t["spec"]["containers"][0] for t in encrypted.templates.values()]
    assert len(containers) == 4
    for container in [*containers, encrypted.cluster["autoscalerOptions"]]:
        given = variables(container)
        assert given["RAY_USE_TLS"] == "1"
        (mount,) = [m for m in container["volumeMounts"] if m["name"] == "tls"]
        assert mount["readOnly"] is True
        assert {str(Path(given[name]).parent) for name in FILES} == {mount["mountPath"]}


def test_only_the_container_that_makes_certificates_sees_the_authority_s_key(encrypted: Rendered) -> None:
    for template in encrypted.templates.values():
        spec = template["spec"]
        volumes = {v["name"]: v for v in spec["volumes"]}
        assert volumes["ca"]["secret"]["secretName"] == "ling-ca"
        # In memory: the pod's own key is on no disk.
        assert volumes["tls"]["emptyDir"]["medium"] == "Memory"
        everyone = spec["initContainers"] + spec["containers"]
        assert [c["name"] for c in everyone if any(m["name"] == "ca" for m in c["volumeMounts"])] == ["certificate"]
        # Whatever comes after may speak with Ray, KubeRay's own that waits for the head too.
        assert spec["initContainers"][0]["name"] == "certificate"
        security = spec["initContainers"][0]["securityContext"]
        assert security == spec["containers"][0]["securityContext"]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", **template["metadata"]}, "spec": spec}
        kubernetes_validate.validate(pod, "1.33", strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_tls_is_off_by_default(name: str) -> None:
    for template in example(name).templates.values():
        assert not {"RAY_USE_TLS", *FILES} & set(variables(template["spec"]["containers"][0]))
        assert not {"tls", "ca"} & {v["name"] for v in template["spec"]["volumes"]}


def test_kuberay_can_have_the_certificates_made() -> None:
    """With KubeRay's certificates the chart must not set its own variables and mounts, which the operator refuses."""
    rendered = render("--values", str(CHART / "examples/2p4d.yaml"), "--set", "tls.enabled=true,tls.source=kuberay")
    assert rendered.cluster["tlsOptions"] == {"enabled": True}
    for template in rendered.templates.values():
        assert not {"RAY_USE_TLS", *FILES} & set(variables(template["spec"]["containers"][0]))
        assert not {"tls", "ca"} & {v["name"] for v in template["spec"]["volumes"]}
    errors = Draft202012Validator(strict(schema_of("1.7.0"))).iter_errors(rendered.of("RayService")[0])
    assert [error.message for error in errors] == []
    assert "tlsOptions" not in example("2p4d").cluster


@pytest.mark.parametrize(
    "half", ["tls.enabled=true", "tls.caSecretName=ling-ca", "tls.enabled=true,tls.source=kuberay,tls.caSecretName=ca"]
)
def test_incomplete_tls_settings_are_refused(half: str) -> None:
    assert "tls: enabled and caSecretName go together" in refusal("--set", half)


def greets(acceptor: ssl.SSLContext, caller: ssl.SSLContext, name: str) -> bool:
    """Whether a handshake succeeds if the caller compares names, as Ray does."""
    to_acceptor, to_caller = ssl.MemoryBIO(), ssl.MemoryBIO()
    caller.check_hostname = True
    ends = [
        caller.wrap_bio(to_caller, to_acceptor, server_hostname=name),
        acceptor.wrap_bio(to_acceptor, to_caller, server_side=True),
    ]
    for end in ends * 2:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError:
            return False
    return True


def test_the_certificate_is_one_for_the_pod_and_the_head_s_service(encrypted: Rendered, tmp_path: Path) -> None:
    for name, content in authority().items():
        (tmp_path / "ca").mkdir(exist_ok=True)
        (tmp_path / "ca" / name).write_bytes(content)
    (tmp_path / "tls").mkdir()
    made = encrypted.templates["head"]["spec"]["initContainers"][0]
    script = made["args"][0].replace("/etc/ling", shlex.quote(str(tmp_path)))
    done = subprocess.run(
        [*made["command"], script],
        env=os.environ | {"POD_IP": "10.1.2.3"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    given = variables(encrypted.templates["head"]["spec"]["containers"][0])
    leaf = x509.load_pem_x509_certificate((tmp_path / "tls/tls.crt").read_bytes())
    assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    context = load({name: value.replace("/etc/ling", str(tmp_path)) for name, value in given.items()})
    assert context is not None
    service = "ling-raycluster-abcde-head-svc.serving.svc.cluster.local"
    for name in ("10.1.2.3", "127.0.0.1", "localhost", service):
        assert greets(context.acceptor, context.caller, name), name
    for name in ("10.1.2.4", service.replace("serving", "elsewhere")):
        assert not greets(context.acceptor, context.caller, name), name
    assert (tmp_path / "tls/tls.key").stat().st_mode & 0o077 == 0
