"""Tests that requests made from the published schema work or are refused as it says."""

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode, Response
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import BaseRoute, Route

from router.app import Gateway, Pools, RouterConfig, create_app
from router.openapi.document import document
from tests.router.conftest import Stage, pair, staged

pytestmark = pytest.mark.process

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]


FEW = settings(
    max_examples=12,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def keeping(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A stage with a data folder for files and batches."""
    with staged(checkpoint, pair(), data_dir=str(tmp_path_factory.mktemp("data"))) as stage:
        yield stage


@pytest.fixture(scope="module")
def published(keeping: Stage) -> Any:
    return schemathesis.openapi.from_dict(keeping.http.get(f"{keeping.url}/openapi.json").json())


def operations() -> list[tuple[str, str, GenerationMode]]:
    """Random requests to all operations, by their schemas and, with a body, also against them; files are any bytes."""
    found = []
    for path, methods in document("tiny", keyed=False)["paths"].items():
        for method, operation in methods.items():
            found.append((path, method, GenerationMode.POSITIVE))
            if "requestBody" in operation and "application/octet-stream" not in operation["requestBody"]["content"]:
                found.append((path, method, GenerationMode.NEGATIVE))
    return found


@pytest.mark.parametrize(
    ("path", "method", "mode"), operations(), ids=[f"{m} {p} {mode.value}" for p, m, mode in operations()]
)
def test_no_request_breaks_it(keeping: Stage, published: Any, path: str, method: str, mode: GenerationMode) -> None:
    cases = published[path][method].as_strategy(generation_mode=mode)

    @FEW
    @given(cases)
    def ask(case: schemathesis.Case) -> None:
        # Written by requests, which knows how a case is meant, and sent by the client all tests share.
        asked = requests.Request(**case.as_transport_kwargs(base_url=keeping.url)).prepare()
        head = {k: v.encode("latin-1") if isinstance(v, str) else v for k, v in asked.headers.items()}
        answer = keeping.http.request(str(asked.method), str(asked.url), headers=head, content=asked.body)  # type: ignore[arg-type]
        case.validate_response(Response.from_httpx(answer, verify=False), checks=CHECKS)

    ask()
    # What was asked for in the background may run on for a moment.
    deadline = time.monotonic() + 60
    while keeping.gateway.in_flight:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_every_path_is_described(checkpoint: Path, tmp_path: Path) -> None:
    async def routes() -> list[BaseRoute]:
        gateway = Gateway(RouterConfig("tiny", str(checkpoint), data_dir=str(tmp_path)), Pools())
        await gateway.start()
        try:
            return create_app(gateway).router.routes
        finally:
            await gateway.close()

    served = {
        (re.sub(r":\w+", "", route.path), method.lower())
        for route in asyncio.run(routes())
        if isinstance(route, Route) and not route.path.startswith("/page.")  # what a page is made of
        for method in route.methods or ()
        if method != "HEAD"
    }
    described = {(p, m) for p, methods in document("tiny", keyed=False)["paths"].items() for m in methods}
    assert served == described


def test_keys_are_described_where_they_are_asked_for() -> None:
    paths = document("tiny", keyed=True)["paths"]
    assert "security" in paths["/v1/models"]["get"]
    assert "401" in paths["/v1/messages"]["post"]["responses"]
    assert "security" not in paths["/health"]["get"]
