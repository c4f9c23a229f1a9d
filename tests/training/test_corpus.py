"""Tests the corpus: dialogues are reproducible, consistent, and different from those of evaluation."""

import json
from random import Random
from typing import Any

import pytest
from tokenizers import Tokenizer

from router.text.template import ChatTemplate
from training import cases, toolworld, words
from training.batches import KIND_NAMES, Encoder, mixture, pool
from training.corpus import KINDS, agent, dialogue, formatted, haystack
from training.export import FOLDER
from training.facts import FACTS
from training.template import render
from training.tokenizer import build

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_number_is_always_the_same_dialogue(kind: str) -> None:
    made = [dialogue("s", i, {kind: 1.0}) for i in range(20)]
    assert made == [dialogue("s", i, {kind: 1.0}) for i in range(20)]
    assert made != [dialogue("t", i, {kind: 1.0}) for i in range(20)]


@pytest.mark.parametrize("held_out", [False, True])
def test_tools_keep_to_their_side_of_the_hold_out(held_out: bool) -> None:
    for i in range(50):
        for tool in toolworld.make_tools(Random(i), 3, held_out):
            assert words.held_out(tool.name) is held_out


def _schemas(tools: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {t["function"]["name"]: t["function"]["parameters"]["properties"] for t in tools}


def test_calls_fit_the_schemas_and_copy_what_was_said() -> None:
    types = {"string": str, "integer": int, "number": float, "boolean": bool}
    calls = 0
    for i in range(150):
        made = agent(Random(i))
        schemas = _schemas(made.tools or [])
        for at, message in enumerate(made.messages):
            for call in message.get("tool_calls") or []:
                arguments = json.loads(call["function"]["arguments"])
                properties = schemas[call["function"]["name"]]
                assert arguments.keys() == properties.keys()
                for key, item in arguments.items():
                    assert type(item) is types[properties[key]["type"]]
                    assert item in properties[key].get("enum", [item])
                    assert toolworld.say(item) in made.messages[at - 1]["content"]
                calls += 1
    assert calls > 150


def test_answers_tell_every_value_of_the_results() -> None:
    for i in range(100):
        messages = agent(Random(i)).messages
        for at, message in enumerate(messages):
            if message["role"] != "tool":
                continue
            reply = next(m["content"] for m in messages[at:] if m["role"] == "assistant")
            try:
                found = json.loads(message["content"])
            except ValueError:
                found = message["content"]
            values = found.values() if isinstance(found, dict) else [found]
            assert all(toolworld.say(v) in reply for v in values)


def test_json_answers_have_the_asked_keys_in_order() -> None:
    for i in range(50):
        made = formatted(Random(i))
        asked = made.messages[0]["content"]
        for message in made.messages:
            if message["role"] == "assistant":
                keys = list(json.loads(message["content"]))
                places = [asked.find(k) for k in keys]
                assert -1 not in places


def test_too_small_a_corpus_for_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="more dialogues"):
        build(2000, dialogues=5)


def test_facts_are_a_hundred_and_no_question_has_two_answers() -> None:
    answers: dict[str, set[str]] = {}
    for fact in FACTS:
        for question in fact.questions:
            answers.setdefault(question, set()).add(fact.answer)
    assert len(FACTS) >= 100
    assert all(len(a) == 1 for a in answers.values())


def test_a_needle_occurs_once_and_the_haystack_fits(tokenizer: Tokenizer) -> None:
    made = cases.needle(tokenizer, 900, 0)
    text, answer = made.messages[0]["content"], made.messages[1]["content"]
    assert text.count(answer) == 1
    assert 700 < len(tokenizer.encode(render(made.messages, None)).ids) <= 900
    assert haystack(Random(0), sentences=3).messages[0]["content"].count(".") >= 4


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_mask_is_what_the_assistant_says(tokenizer: Tokenizer, kind: str) -> None:
    for i in range(20):
        made = dialogue("mask", i, {kind: 1.0})
        ids, spoken = Encoder(tokenizer)(made)
        said = tokenizer.decode([t for t, s in zip(ids, spoken, strict=True) if s], skip_special_tokens=False)
        expected = ""
        for at, message in enumerate(made.messages):
            if message["role"] == "assistant":
                before = render(made.messages[:at], made.tools, open_turn=True)
                expected += render(made.messages[: at + 1], made.tools)[len(before) :]
        assert said == expected


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_router_renders_what_training_saw(kind: str) -> None:
    template = ChatTemplate.load(FOLDER)
    assert template is not None
    for i in range(10):
        made = dialogue("render", i, {kind: 1.0})
        prompt = template.render(made.messages[:-1], made.tools).text
        assert prompt == render(made.messages[:-1], made.tools, open_turn=True)


def test_a_word_is_cut_alike_with_and_without_a_space(tokenizer: Tokenizer) -> None:
    alike = 0
    for i in range(100):
        word = words.invented(Random(i))
        bare, spaced = tokenizer.encode(f'"{word}').tokens[1:], tokenizer.encode(f". {word}").tokens[1:]
        alike += spaced in (["Ġ", *bare], ["Ġ" + bare[0], *bare[1:]])
    assert alike == 100
    text = 'a  b\n\n{"x": 1.5} Ünï 漢字 <|role_end|>\t!'
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_pools_hold_each_dialogue_once_and_change_with_progress(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer)
    early = pool(encoder, "s", 0, 0.0, 1500, 3000)
    assert all(b.ids.numel() <= 1500 and b.real[:, 0].all() for b in early)
    assert all((b.spoken & ~b.real).sum() == 0 for b in early)
    late = pool(encoder, "s", 0, 0.9, 1500, 3000)
    assert max(b.ids.shape[1] for b in late) > 0
    assert mixture(0.0)["copying"] > mixture(1.0)["copying"]
    assert sum(mixture(0.5).values()) == pytest.approx(1)
    assert set(mixture(0.3)) == set(KIND_NAMES)
