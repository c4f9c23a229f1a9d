"""Tests OpenAI's APIs by the openai SDK and plain HTTP, with a served router and fake workers."""

import json
from typing import Any

import httpx
import openai
import pytest

from router.text.tokenizer import Tokenizer
from tests.router.conftest import Stage
from tests.router.fake_worker import VOCAB

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def sdk(stage: Stage) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stage.url}/v1", api_key="-", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def tokenizer(stage: Stage) -> Tokenizer:
    return stage.gateway.tokenizer


def post(stage: Stage, path: str, **body: Any) -> httpx.Response:
    return stage.http.post(f"{stage.url}{path}", json=body)


def complete(stage: Stage, **body: Any) -> dict[str, Any]:
    answer = post(stage, "/v1/completions", **({"model": "tiny", "prompt": "A", "seed": 0} | body))
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def events(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def counted(prompt: tuple[int, ...], seed: int, count: int) -> list[int]:
    start = sum(prompt) + seed
    return [2 + (start + i) % (VOCAB - 2) for i in range(count)]


def test_chat_with_the_sdk(sdk: openai.OpenAI, tokenizer: Tokenizer) -> None:
    answer = sdk.chat.completions.create(model="tiny", messages=HELLO, max_tokens=9, seed=5)
    prompt = tokenizer.encode("<user>hello<assistant>", False)
    assert answer.choices[0].message.content == tokenizer.decode(counted(prompt, 5, 9))
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), 9)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


def test_a_chat_stream_says_the_same(sdk: openai.OpenAI) -> None:
    whole = sdk.chat.completions.create(model="auto", messages=HELLO, max_tokens=20, seed=5)
    chunks = list(
        sdk.chat.completions.create(
            model="auto", messages=HELLO, max_tokens=20, seed=5, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


def test_completions_with_the_sdk(sdk: openai.OpenAI) -> None:
    whole = sdk.completions.create(model="tiny", prompt="hi", max_tokens=15, seed=1)
    stream = sdk.completions.create(model="tiny", prompt="hi", max_tokens=15, seed=1, stream=True)
    assert "".join(c.choices[0].text for c in stream) == whole.choices[0].text != ""


def test_errors_reach_the_sdk_as_its_own(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        sdk.chat.completions.create(model="gpt", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        sdk.chat.completions.create(model="tiny", messages=HELLO, max_tokens=5000)
    assert (bad.value.code, bad.value.param) == ("context_length_exceeded", "max_tokens")
    assert [m.id for m in sdk.models.list()] == ["tiny"]
    assert sdk.models.retrieve("tiny").id == "tiny"


def test_history_reaches_the_template(stage: Stage, tokenizer: Tokenizer) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "short"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "4"},
    ]
    answer = post(
        stage, "/v1/chat/completions", model="tiny", messages=messages, max_tokens=1, return_token_ids=True
    ).json()
    assert tokenizer.decode(answer["prompt_token_ids"]) == (
        "<system>short<user>a\nb<assistant>None[f:{}]<tool>4(1)<assistant>"
    )


def test_a_template_without_a_place_for_tools_is_a_400(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stage.gateway.tokenizer.template is not None
    monkeypatch.setattr(stage.gateway.tokenizer.template, "takes_tools", False)
    tools = [{"type": "function", "function": {"name": "f"}}]
    answer = post(stage, "/v1/chat/completions", model="tiny", messages=HELLO, tools=tools, max_tokens=1)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
    answer = post(
        stage, "/v1/chat/completions", model="tiny", messages=HELLO, tools=tools, max_tokens=1, tool_choice="none"
    )
    assert answer.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_choices_are_sequences_of_their_own(stage: Stage, tokenizer: Tokenizer, stream: bool) -> None:
    prompts = [[5, 6], [9]]
    body = {"model": "tiny", "prompt": prompts, "n": 2, "seed": 3, "max_tokens": 4, "return_token_ids": True}
    answer = post(stage, "/v1/completions", stream=stream, **body)
    parts = [answer.json()] if not stream else events(answer.text)
    got: dict[int, list[int]] = {0: [], 1: [], 2: [], 3: []}
    facts: dict[int, dict[str, Any]] = {0: {}, 1: {}, 2: {}, 3: {}}
    for part in parts:
        for choice in part["choices"]:
            got[choice["index"]] += choice["token_ids"]
            facts[choice["index"]] |= choice
    wanted = [counted(tuple(p), 3 + 2 * i + k, 4) for i, p in enumerate(prompts) for k in range(2)]
    assert list(got.values()) == wanted
    assert [f["prompt_token_ids"] for f in facts.values()] == [[5, 6], [5, 6], [9], [9]]
    assert all(f["timings"]["prefill_worker"] == "p0" for f in facts.values())
    if not stream:
        assert answer.json()["usage"]["prompt_tokens"] == 3
        assert answer.json()["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("stream", [False, True])
def test_proof_of_the_split(stage: Stage, stream: bool) -> None:
    answer = post(stage, "/v1/completions", model="tiny", prompt="x", max_tokens=3, stream=stream)
    assert answer.headers["x-ling-prefill-worker"] == "p0"
    assert answer.headers["x-ling-decode-worker"] == "d0"
    body = events(answer.text)[-1] if stream else answer.json()
    pid = stage["p0"].info.pid
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["timings"] == {
        "queue_s": 0.1, "prefill_s": 0.2, "transfer_s": 0.5, "decode_s": 0.6, "decode_queue_s": 0.4,
        "prefill_worker": "p0", "prefill_pid": pid, "decode_worker": "d0", "decode_pid": pid,
        "cached_from": None,
    }  # fmt: skip


def test_request_ids_go_through(stage: Stage) -> None:
    body = {"model": "tiny", "prompt": "x", "max_tokens": 1}
    given = stage.http.post(f"{stage.url}/v1/completions", json=body, headers={"x-request-id": "abc-1"})
    again = stage.http.post(f"{stage.url}/v1/completions", json=body, headers={"x-request-id": "abc-1"})
    assert given.headers["x-request-id"] == again.headers["x-request-id"] == "abc-1"
    # A trace has one id for many calls; their answers are told apart all the same.
    assert given.json()["id"].startswith("cmpl-")
    assert given.json()["id"] != again.json()["id"]
    own = stage.http.post(f"{stage.url}/v1/completions", json=body)
    assert len(own.headers["x-request-id"]) == 32


def test_settings_reach_both_workers(stage: Stage) -> None:
    complete(
        stage, prompt=[5], max_tokens=7, seed=-1, temperature=0, top_p=0.5, top_k=-1, min_p=0.1, presence_penalty=1,
        frequency_penalty=-1, repetition_penalty=1.5, logit_bias={"7": -100}, stop_token_ids=[9, 1], min_tokens=2,
        logprobs=3, priority=-4, user="u", metadata={"a": "b"}, store=False, service_tier="default",
    )  # fmt: skip
    prefill, decode = stage["p0"].received[-1], stage["d0"].received[-1]
    assert (prefill.handoff, prefill.source, decode.handoff) == (True, None, False)
    assert decode.source == stage["p0"].ref
    s = prefill.sampling
    assert s == decode.sampling
    assert (prefill.request_id, list(prefill.token_ids), prefill.priority) == (decode.request_id, [5], -4)
    assert (s.max_tokens, s.seed, s.temperature, s.top_p, s.top_k, s.min_p) == (7, 2**63 - 1, 0.0, 0.5, 0, 0.1)
    assert (s.presence_penalty, s.frequency_penalty, s.repetition_penalty) == (1.0, -1.0, 1.5)
    assert (s.logit_bias, s.stop_token_ids, s.min_tokens) == (((7, -100.0),), (1, 9), 2)
    assert (s.logprobs, s.prompt_logprobs) == (3, None)


def test_defaults(stage: Stage) -> None:
    seeds = set()
    for _ in range(3):
        body = {"model": "tiny", "prompt": [5] * 1000, "ignore_eos": True}
        assert post(stage, "/v1/completions", **body).json()["usage"]["completion_tokens"] == 16
        s = stage["p0"].received[-1].sampling
        seeds.add(s.seed)
        assert (s.max_tokens, s.temperature, s.top_p, s.top_k, s.stop_token_ids) == (16, 1.0, 1.0, 0, ())
    assert len(seeds) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_and_ids(stage: Stage, tokenizer: Tokenizer, stream: bool) -> None:
    # From "A" the answer counts up through the byte alphabet.
    (a,) = tokenizer.encode("A", False)
    text = tokenizer.decode(counted((a,), 0, 30))
    stop = text[5:8]

    def ask(**body: Any) -> tuple[str, str, int]:
        answer = post(stage, "/v1/completions", model="tiny", prompt="A", seed=0, stream=stream, max_tokens=30,
                      return_token_ids=True, **body)  # fmt: skip
        parts = events(answer.text) if stream else [answer.json()]
        choices = [p["choices"][0] for p in parts]
        return (
            "".join(c["text"] for c in choices),
            choices[-1]["finish_reason"],
            sum(len(c["token_ids"]) for c in choices),
        )

    assert ask() == (text, "length", 30)
    assert ask(stop=stop) == (text[:5], "stop", 8)
    assert ask(stop=["zzz", stop, text[6:8]]) == (text[:5], "stop", 8)
    assert ask(stop=stop, min_tokens=6)[1] == "stop"
    assert ask(stop=stop, min_tokens=7) == (text, "length", 30)
    ninth = counted((a,), 0, 30)[9]
    assert ask(stop_token_ids=[ninth]) == (text[:9], "stop", 10)
    first = counted((a,), 0, 1)[0]
    assert ask(stop_token_ids=[first]) == ("", "stop", 1)
    assert ask(stop=text[0]) == ("", "stop", 1)


def test_chat_logprobs(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=3, seed=5, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(item.token for item in logprobs.content) == answer.choices[0].message.content
    for item in logprobs.content:
        assert item.bytes == list(item.token.encode())
        assert len(item.top_logprobs) == 2
        assert (item.top_logprobs[0].token, item.top_logprobs[0].logprob) == (item.token, item.logprob)
    streamed = sdk.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=3, seed=5, logprobs=True, top_logprobs=2, stream=True
    )
    items = [i for c in streamed for i in (c.choices[0].logprobs.content or [] if c.choices[0].logprobs else [])]
    assert items == logprobs.content


@pytest.mark.parametrize("stream", [False, True])
def test_completion_logprobs_with_the_prompt_s(stage: Stage, stream: bool) -> None:
    body = {"model": "tiny", "prompt": "ABC", "max_tokens": 2, "echo": True, "logprobs": 1, "seed": 194}
    answer = post(stage, "/v1/completions", stream=stream, **body)
    choices = [p["choices"][0] for p in (events(answer.text) if stream else [answer.json()])]
    text = "".join(c["text"] for c in choices)
    got = {key: [x for c in choices for x in c["logprobs"][key]] for key in choices[0]["logprobs"]}
    assert text.startswith("ABC")
    assert got["tokens"] == list(text)
    assert got["text_offset"] == [0, 1, 2, 3, 4]
    assert got["token_logprobs"][0] is None
    assert got["top_logprobs"][0] is None
    assert all(p < 0 for p in got["token_logprobs"][1:])
    assert [list(t) for t in got["top_logprobs"][1:]] == [[t] for t in got["tokens"][1:]]


def test_scoring_a_prompt_generates_nothing(stage: Stage) -> None:
    answer = complete(stage, prompt="AB", max_tokens=0, echo=True, logprobs=0)
    assert answer["choices"][0]["text"] == "AB"
    assert answer["choices"][0]["logprobs"]["tokens"] == ["A", "B"]
    assert answer["usage"]["completion_tokens"] == 0
    assert complete(stage, prompt=[5, 6], max_tokens=0, echo=True)["choices"][0]["text"] == "$%"


def test_tokens_that_are_no_text_have_names_of_their_own(stage: Stage) -> None:
    (byte,) = stage.gateway.tokenizer.encode("é", False)[:1]
    answer = complete(stage, prompt=[byte], max_tokens=0, echo=True, logprobs=0)
    assert answer["choices"][0]["logprobs"]["tokens"] == ["bytes:\\xc3"]


def test_the_router_s_status_metrics_and_models_are_right(stage: Stage) -> None:
    def get(path: str) -> httpx.Response:
        return stage.http.get(f"{stage.url}{path}")

    assert get("/health").json() == {"status": "ok"}
    assert get("/ready").json() == {"ready": True}
    assert "/status" in get("/").json()["paths"]
    assert get("/v1/models").json()["data"][0]["max_model_len"] == 1024
    status = get("/status").json()
    assert status["pools"]["decode"]["live"] == 1
    (decode,) = status["pools"]["decode"]["workers"]
    assert (decode["id"], decode["state"], decode["free_slots"], decode["in_flight"]) == ("d0", "live", 64, 0)
    assert decode["ranks"] == [{"rank": 0, "pid": decode["pid"], "node": "here", "device": "cpu"}]
    metrics = get("/metrics").text
    assert 'ling_worker_free_slots{role="decode",worker="d0"} 64.0' in metrics
    for name in ("ttft", "itl", "request"):
        assert f"# TYPE ling_{name}_seconds histogram" in metrics
        assert f"\nling_{name}_seconds_bucket{{" in metrics
    for name in ("ling_in_flight", "ling_generated_tokens_total", "ling_prompt_tokens_total"):
        assert f"\n{name} " in metrics
    for path, code in (("/nope", 404), ("/v1/chat/completions", 405), ("/v1/models/other", 404)):
        answer = get(path)
        assert (answer.status_code, set(answer.json()["error"])) == (code, {"message", "type", "param", "code"})
