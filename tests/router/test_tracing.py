"""Tests which spans and attributes of a request a trace collector gets, and which it must not get."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.router.conftest import pair, staged

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BODY = {"model": "auto", "max_tokens": 5, "messages": [{"role": "user", "content": "a secret thing"}]}


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """Run a collector; yields its URL, and the spans received so far."""
    spans: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", spans
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def ask(checkpoint: Path, endpoint: str, share: float, *headers: dict[str, str]) -> list[Any]:
    """Send requests; returns the heads of their answers, after all spans were sent."""
    with staged(checkpoint, pair(), otlp_endpoint=endpoint, trace_share=share) as stage:
        url = f"{stage.url}/v1/chat/completions"
        return [stage.http.post(url, json=BODY, headers=given).raise_for_status().headers for given in headers]


def test_a_request_and_what_the_workers_did_for_it(checkpoint: Path) -> None:
    with collector() as (endpoint, spans):
        given = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
        (head,) = ask(checkpoint, endpoint, 0.0, given)
    by_name = {span.name: span for span in spans}
    request = by_name.pop("POST /v1/chat/completions")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert head["traceparent"] == f"00-{TRACE}-{request.span_id.hex()}-01"
    told = {a.key: a.value for a in request.attributes}
    assert told["http.response.status_code"].int_value == 200
    assert told["gen_ai.usage.output_tokens"].int_value == 5
    assert told["ling.request_id"].string_value == "mine"
    for stage in by_name.values():
        assert stage.parent_span_id == request.span_id
        assert stage.trace_id == request.trace_id
        assert stage.start_time_unix_nano < stage.end_time_unix_nano
    assert "decode" in by_name
    assert b"secret" not in b"".join(span.SerializeToString() for span in spans)


def test_the_caller_s_decision_or_the_configured_share_samples_traces(checkpoint: Path) -> None:
    with collector() as (endpoint, spans):
        not_this_one = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
        ask(checkpoint, endpoint, 0.0, not_this_one, {}, {"traceparent": "nonsense"})
        assert not spans
        ask(checkpoint, endpoint, 1.0, {}, {"traceparent": "nonsense"}, not_this_one)
    assert sum(span.name.startswith("POST") for span in spans) == 2


def test_a_collector_that_is_not_there_costs_no_request(checkpoint: Path) -> None:
    heads = ask(checkpoint, "http://127.0.0.1:9/v1/traces", 1.0, {}, {})
    assert all("traceparent" in head for head in heads)
