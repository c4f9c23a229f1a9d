"""Tests `ling serve` with Ray's TLS variables, which Ray's and the cluster's own connections share."""

import socket
import ssl
from pathlib import Path

import pytest

from tests.certificates import environment
from tests.cluster import doors
from tests.cluster.serving import serving

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def speaks_tls(port: int) -> bool:
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(("127.0.0.1", port), 20) as plain, anyone.wrap_socket(plain):
            return True
    except (ssl.SSLError, ConnectionError):
        return False


def test_a_cluster_answers_and_only_http_is_in_the_clear(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    with serving() as cluster:
        ask = {"model": "auto", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
        answer = cluster.client.post("/v1/chat/completions", json=ask)
        assert answer.status_code == 200
        assert answer.json()["timings"]["transfer_s"] > 0
        leaders = {w["port"] for role in ("prefill", "decode") for w in cluster.workers(role)}
        ports = {port for _, port in doors.listening(cluster.family)}
        sealed = {port for port in ports if speaks_tls(port)}
        assert len(leaders) == 2
        assert leaders <= sealed
        assert all(doors.http_get(port) is not None for port in ports - sealed)
