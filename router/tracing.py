"""Traces by OpenTelemetry: a span for each request, and below it what the workers did for it.

Workers know nothing of tracing: they report how many seconds each stage took, and the spans are laid one after the
other from the moment of submission. Handing a snapshot over overlaps with computing the prompt, so its span, which
begins after that, shows what was left to wait for. Nothing of what was asked or answered is in a span.
"""

import time
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from router.relay.choice import Choice

_NS = 1_000_000_000
# For a batch of spans and its retries; `close` waits for the last one.
_SEND_S = 1.0
_CONTEXT = TraceContextTextMapPropagator()


class Tracing:
    """One router's spans. They leave in the background; when the collector does not keep up, the newest are dropped.

    endpoint: where OTLP over HTTP is taken, e.g. http://collector:4318/v1/traces. share: of the requests that come
    without a trace of their own, how many are traced; one that comes with one is as its caller decided.
    """

    def __init__(self, endpoint: str, share: float, router: str, exporter: SpanExporter | None = None) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "ling-router", "service.instance.id": router}),
            sampler=ParentBased(TraceIdRatioBased(share)),
            shutdown_on_exit=False,
        )
        exporter = exporter or OTLPSpanExporter(endpoint, timeout=_SEND_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("ling")

    def begin(self, method: str, path: str, traceparent: str | None) -> "RequestSpan":
        """A request has come, with or without a trace it belongs to."""
        parent = _CONTEXT.extract({"traceparent": traceparent} if traceparent else {})
        span = self._tracer.start_span(
            f"{method} {path}",
            parent,
            trace.SpanKind.SERVER,
            {"http.request.method": method, "url.path": path},
        )
        return RequestSpan(self._tracer, span)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class RequestSpan:
    """The span of one request."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span
        self._began = time.time_ns()

    @property
    def traceparent(self) -> str:
        """What others say to be part of this request's trace."""
        carrier: dict[str, str] = {}
        _CONTEXT.inject(carrier, trace.set_span_in_context(self._span))
        return carrier["traceparent"]

    def computed(self, model: str, choices: list[Choice]) -> None:
        """What the workers did, a group of spans a choice."""
        if not self._span.is_recording():
            return
        prompts = {id(choice.prompt): choice.prompt for choice in choices}.values()
        self._span.set_attributes(
            {
                "gen_ai.request.model": model,
                "gen_ai.usage.input_tokens": sum(len(prompt.token_ids) for prompt in prompts),
                "gen_ai.usage.output_tokens": sum(c.generated for c in choices),
                "gen_ai.response.finish_reasons": [c.finish or "" for c in choices],
            }
        )
        below = trace.set_span_in_context(self._span)
        for choice in choices:
            served = choice.served_by
            if served is None:
                continue
            at = self._began
            for name, seconds, worker in (
                ("queue", served.queue_s, served.prefill_worker),
                ("prefill", served.prefill_s, served.prefill_worker),
                ("transfer", served.transfer_s, served.decode_worker),
                ("decode", served.decode_s, served.decode_worker),
            ):
                if seconds <= 0:
                    continue
                stage = self._tracer.start_span(name, below, start_time=at)
                stage.set_attributes({"ling.worker": worker, "ling.choice": choice.index})
                at += int(seconds * _NS)
                stage.end(at)

    def end(self, status: int, attributes: Mapping[str, str]) -> None:
        """The request is over. status: of the answer, 0 if none began."""
        self._span.set_attributes({"http.response.status_code": status, **attributes})
        if status == 0 or status >= 500:
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()
