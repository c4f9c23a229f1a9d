"""Tests API keys, and requests from web pages of other origins."""

import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from router.access.keys import Keys, hashed, make_key
from router.access.limits import KeyLimits
from tests.router.conftest import LoopThread, Stage, pair, served

OLD, NEW = make_key(), make_key()
ORIGIN = "https://app.example"


def write(file: Path, *entries: tuple[str, str]) -> None:
    file.write_text("# tenants\n\n" + "".join(f"{tenant} sha256:{hashed(key)}\n" for tenant, key in entries))


@pytest.fixture
def guarded(checkpoint: Path, tmp_path: Path) -> Iterator[tuple[Stage, Path]]:
    file = tmp_path / "keys"
    write(file, ("acme", OLD))
    thread, opened = LoopThread(), AsyncExitStack()

    async def enter() -> Stage:
        options: dict[str, Any] = {"api_keys": str(file), "cors_origins": (ORIGIN,)}
        return await opened.enter_async_context(served(checkpoint, pair(), **options))

    try:
        yield thread.run(enter()), file
    finally:
        thread.run(opened.aclose())
        thread.close()


def test_both_sdks_need_a_key_and_keys_rotate(guarded: tuple[Stage, Path]) -> None:
    stage, file = guarded

    def status(key: str, header: str = "authorization") -> int:
        value = f"Bearer {key}" if header == "authorization" else key
        return stage.http.get(f"{stage.url}/v1/models", headers={header: value}).status_code

    with openai.OpenAI(base_url=f"{stage.url}/v1", api_key="wrong", max_retries=0) as sdk:
        with pytest.raises(openai.AuthenticationError) as refused:
            sdk.models.list()
        assert refused.value.code == "invalid_api_key"
        assert [m.id for m in sdk.with_options(api_key=OLD).models.list()] == ["tiny"]
    with anthropic.Anthropic(base_url=stage.url, api_key="wrong", max_retries=0) as messages:
        with pytest.raises(anthropic.AuthenticationError):
            messages.messages.count_tokens(model="tiny", messages=[{"role": "user", "content": "x"}])
        right = messages.with_options(api_key=OLD).messages
        assert right.count_tokens(model="tiny", messages=[{"role": "user", "content": "x"}]).input_tokens > 0
    write(file, ("acme", OLD), ("other", NEW))
    assert (status(OLD), status(NEW), status(NEW, "x-api-key")) == (200, 200, 200)
    write(file, ("other", NEW))
    assert (status(OLD), status(NEW)) == (401, 200)
    file.write_text("nonsense")
    assert (status(OLD), status(NEW)) == (401, 200)
    for path in ("/health", "/ready", "/status", "/metrics"):
        assert stage.http.get(f"{stage.url}{path}").status_code == 200
    for path in ("/v1/chat/completions", "/v1/messages", "/tokenize", "/detokenize"):
        assert stage.http.post(f"{stage.url}{path}", json={}).status_code == 401
    assert 'ling_tenant_requests_total{tenant="other"} 4.0' in stage.http.get(f"{stage.url}/metrics").text


def test_tokens_are_counted_for_their_tenant(guarded: tuple[Stage, Path]) -> None:
    stage, _ = guarded
    with openai.OpenAI(base_url=f"{stage.url}/v1", api_key=OLD, max_retries=0) as sdk:
        answered = sdk.completions.create(model="tiny", prompt=["Hello there", "Hi"], n=2, max_tokens=3)
    assert answered.usage is not None
    page = stage.http.get(f"{stage.url}/metrics").text
    assert "ling_answer_length_tokens_count 4.0" in page
    assert f"ling_answer_length_tokens_sum {float(answered.usage.completion_tokens)}" in page
    counted = {"prompt": answered.usage.prompt_tokens, "generated": answered.usage.completion_tokens}
    for kind, tokens in counted.items():
        assert f'ling_tenant_tokens_total{{kind="{kind}",tenant="acme"}} {float(tokens)}' in page


def test_pages_of_a_listed_origin_may_call(guarded: tuple[Stage, Path]) -> None:
    stage, _ = guarded
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    allowed = stage.http.options(f"{stage.url}/v1/models", headers={"origin": ORIGIN} | asks)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, ORIGIN)
    other = stage.http.options(f"{stage.url}/v1/models", headers={"origin": "https://evil.example"} | asks)
    assert "access-control-allow-origin" not in other.headers
    refused = stage.http.get(f"{stage.url}/v1/models", headers={"origin": ORIGIN})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ORIGIN)


def test_an_invalid_keys_file_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Keys(str(tmp_path / "none"))
    (tmp_path / "bad").write_text("acme plain-key\n")
    with pytest.raises(ValueError, match="bad:1"):
        Keys(str(tmp_path / "bad"))


def test_a_made_key_opens(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["keys", "acme", "--requests", "60", "--concurrent", "3"])
    runpy.run_path(str(Path(__file__).parents[2] / "router" / "access" / "keys.py"), run_name="__main__")
    line, said = capsys.readouterr()
    (tmp_path / "keys").write_text(line)
    keys = Keys(str(tmp_path / "keys"))
    key = said.split()[-1]

    def found() -> tuple[str, KeyLimits]:
        holder = keys.holder(key)
        assert holder is not None
        assert holder.account is not None
        return holder.tenant, holder.account.limits

    assert found() == ("acme", KeyLimits(requests=60, concurrent=3))
    assert keys.holder("") is None
    os.remove(tmp_path / "keys")
    assert found()[0] == "acme"


@pytest.mark.parametrize("arguments", [["*"], ["#x"], ["a b"], ["acme", "--tokens", "0"], ["acme", "--tokens", "-1"]])
def test_an_unreadable_tenant_makes_no_line_of_the_keys_file(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["keys", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(Path(__file__).parents[2] / "router" / "access" / "keys.py"), run_name="__main__")
    assert ended.value.code == 2
