"""OpenTelemetry traces: a span for each request, with spans of its stages at workers below it.

Workers do not trace: they report the seconds of each stage, and the router lays the stages' spans one after another
from the submission on. A hand-off overlaps with the computing of the prompt, so its span begins after the prompt's and
shows only the wait that was left. No span contains prompts or answers.
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
# Seconds for sending a batch of spans, with retries; `close` waits for the last batch.
_SEND_S = 1.0
_CONTEXT = TraceContextTextMapPropagator()


class Tracing:
    """The spans of one router.

    They are sent in the background; if the collector is too slow, the newest are dropped.

    endpoint: of OTLP over HTTP, e.g. http://collector:4318/v1/traces. share: the share of requests without a trace of
    their own that are traced; for a request with a trace, its caller decides.
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
        """Begin the span of a request. traceparent: the trace that it belongs to; None if it has none."""
        parent = _CONTEXT.extract({"traceparent": traceparent} if traceparent else {})
        span = self._tracer.start_span(
            f"{method} {path}",
            parent,
            trace.SpanKind.SERVER,
            {"http.request.method": method, "url.path": path},
        )
        return RequestSpan(self._tracer, span)

    def close(self) -> None:
        """Send the remaining spans."""
        self._provider.shutdown()


class RequestSpan:
    """The span of one request."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span
        self._began = time.time_ns()

    @property
    def traceparent(self) -> str:
        """The header by which others can join this request's trace."""
        carrier: dict[str, str] = {}
        _CONTEXT.inject(carrier, trace.set_span_in_context(self._span))
        return carrier["traceparent"]

    def computed(self, model: str, choices: list[Choice]) -> None:
        """Add the workers' stages: a group of spans for each choice."""
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
        """End the request's span. status: of the answer; 0 if none began."""
        self._span.set_attributes({"http.response.status_code": status, **attributes})
        if status == 0 or status >= 500:
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end()
