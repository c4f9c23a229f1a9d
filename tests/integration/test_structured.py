"""Tests grammars with the real engine: each answer follows its grammar, whatever the sampling."""

import json
import random
import re
from array import array
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from router.text.grammar import Form, Schema, Thinking, grammar_of, json_form
from router.text.grammar_texts import Tagged, choice_form, client_form, regex_form, tagged_form
from router.text.parts import CallEnd, CallPart, CallStart, Part, Reasoning, Text
from router.text.reader import Reader
from router.text.tokenizer import Tokenizer
from router.text.tools import Hermes
from router.text.tools.form import OfferedFunction, answer_form
from tests.router.schemas import schema
from wire.protocol import SamplingParams
from workers.config import WorkerConfig
from workers.rank.engine import Completion, Engine

NANO = str(Path(__file__).parents[2] / "checkpoints" / "ling-nano")
TURN = "<role>HUMAN</role>{}<|role_end|><role>ASSISTANT</role>"


class Writer:
    """The bare engine, with a tokenizer for prompts and answers."""

    def __init__(self) -> None:
        self.tokenizer = Tokenizer(NANO)
        self.engine = Engine(WorkerConfig(NANO, slots=48, max_model_len=1024))

    def ask(
        self, forms: Seq[Form | None], *, thinking: Thinking = Thinking.NONE, turn: str = "Go on.", **sampling: Any
    ) -> list[Completion]:
        """Answers to each grammar; every fifth is greedy, the others are sampled at temperature 1."""
        prompt = self.tokenizer.encode(TURN.format(turn), False)
        return self.engine.generate(
            [prompt] * len(forms),
            [
                SamplingParams(
                    **{
                        "max_tokens": 200,
                        "seed": i,
                        "temperature": float(i % 5 > 0),
                        "stop_token_ids": self.tokenizer.eos_ids,
                        "grammar": form.grammar(self.tokenizer.marks, thinking) if form else None,
                        **sampling,
                    }
                )
                for i, form in enumerate(forms)
            ],
        )

    def text(self, answer: Completion) -> str:
        """The text without the token that ended it, with markers shown."""
        ids = answer.token_ids[:-1] if answer.finish == "stop" else answer.token_ids
        return self.tokenizer.decode(ids, skip_special=False)

    def whole(self, form: Form, count: int = 10, **options: Any) -> list[str]:
        """The texts of those answers that ended by themselves; at least some must."""
        answers = self.ask([form] * count, **options)
        texts = [self.text(a) for a in answers if a.finish == "stop"]
        assert texts, [self.text(a) for a in answers]
        return texts

    def bias(self, *texts: str, by: float) -> tuple[tuple[int, float], ...]:
        """A logit bias for each token of these texts."""
        return tuple((t, by) for t in dict.fromkeys(i for x in texts for i in self.tokenizer.encode(x, False)))

    def parts(self, text: str, **options: Any) -> list[Part]:
        """The parts of a text, as the router splits them."""
        reader = Reader(Hermes(), **options)
        return reader.push(text) + reader.flush()


@pytest.fixture(scope="module")
def writer() -> Writer:
    return Writer()


@pytest.mark.process
def test_answers_to_100_schemas_are_valid(writer: Writer) -> None:
    schemas = [schema(seed) for seed in range(100)]
    # The penalty ends fractions that would have no end.
    answers = writer.ask([json_form(Schema(s, "x")) for s in schemas], frequency_penalty=0.7, max_tokens=150)
    cut = 0
    for content, answer in zip(schemas, answers, strict=True):
        assert answer.finish in ("stop", "length")
        if answer.finish == "length":
            cut += 1
            continue
        jsonschema.Draft202012Validator(content).validate(json.loads(writer.text(answer)))
    assert cut < 25


def test_json_is_on_one_line_as_calls_are_written(writer: Writer) -> None:
    content = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}, "b": {}},
        "required": ["a", "b"],
    }
    content["properties"]["b"] = {"type": "null"}  # type: ignore[index]
    for text in writer.whole(json_form(Schema(content | {"additionalProperties": False}, "x"))):
        assert re.fullmatch(r'\{"a": ?\[(true|false), ?(true|false)\], ?"b": ?null\}', text)


def test_any_object_and_lenient_schemas(writer: Writer) -> None:
    form = grammar_of({"type": "json_object"}, "x")
    assert form is not None
    closing = writer.bias('"', '": ', '"}', "}", "1", by=12.0)
    for text in writer.whole(form, 4, logit_bias=closing, frequency_penalty=0.5, max_tokens=80):
        assert isinstance(json.loads(text), dict)
    loose = {"type": "object", "properties": {"a": {"type": "integer", "not": {"const": 1}}}, "required": ["a"]}
    form = grammar_of({"type": "json_schema", "json_schema": {"schema": loose | {"additionalProperties": False}}}, "x")
    assert form is not None
    for text in writer.whole(form, count=4):
        assert isinstance(json.loads(text)["a"], int)
    assert grammar_of({"type": "text"}, "x") is None


@pytest.mark.parametrize("pattern", [r"[a-c]{3}/\d", r"(yes|no)\n", r'"[^"]{0,3}"', "é+😀?"])
def test_regular_expressions(writer: Writer, pattern: str) -> None:
    for text in writer.whole(regex_form(pattern, "x"), frequency_penalty=1.0):
        assert re.fullmatch(pattern, text)


def test_choices(writer: Writer) -> None:
    options = ["yes", "no", 'it\'s "so"', "größer\n", "😀", "<tool_call>"]
    assert set(writer.whole(choice_form(options, "x"), count=30)) <= set(options)


@pytest.mark.parametrize(
    "text",
    [
        'root ::= greeting " " name "!"\ngreeting ::= "Hello" | "Bye"\nname ::= [A-Z] [a-z]{2,4}\n',
        'start: greeting " " NAME "!"\ngreeting: "Hello" | "Bye"\nNAME: /[A-Z][a-z]{2,4}/',
    ],
)
def test_grammars_of_the_clients(writer: Writer, text: str) -> None:
    for answer in writer.whole(client_form(text, "x")):
        assert re.fullmatch("(Hello|Bye) [A-Z][a-z]{2,4}!", answer)


def test_tags_are_enforced_once_their_trigger_is_written(writer: Writer) -> None:
    content = {"type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"]}
    inner = Schema(content | {"additionalProperties": False}, "x")
    tags = [Tagged("<fn=a>", inner, "</fn>"), Tagged("<fn=b>", inner, "</fn>")]
    for text in writer.whole(
        tagged_form(tags, ("<fn=",), "x"), logit_bias=writer.bias("<fn=", by=9.0), frequency_penalty=2.0, max_tokens=100
    ):
        assert not re.sub(r'<fn=(a|b)>\{"n": ?(true|false)\}</fn>', "", text).count("<fn=")


ADD = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["a"]}
FUNCTIONS = [
    OfferedFunction("add", ADD | {"additionalProperties": False}, "tools[0].function.parameters", strict=True),
    OfferedFunction("time", None, "tools[1].function.parameters", strict=False),
]


def check_calls(parts: list[Part]) -> list[str]:
    """The names of an answer's calls, each of which must be valid."""
    names: list[str] = []
    arguments = ""
    for part in parts:
        match part:
            case CallStart(name):
                names.append(name)
                arguments = ""
            case CallPart(more):
                arguments += more
            case CallEnd(valid):
                assert valid
                wanted = FUNCTIONS[0].parameters if names[-1] == "add" else {"type": "object", "maxProperties": 0}
                jsonschema.validate(json.loads(arguments), wanted)
    return names


@pytest.mark.parametrize("single", [False, True])
def test_calls_that_must_be_made(writer: Writer, single: bool) -> None:
    form = answer_form(Hermes, FUNCTIONS, None, must_call=True, single=single)
    assert form is not None
    for text in writer.whole(form, frequency_penalty=0.5):
        parts = writer.parts(text)
        names = check_calls(parts)
        assert names
        assert not single or len(names) == 1
        assert not any(isinstance(part, Text) for part in parts)


def test_a_named_call(writer: Writer) -> None:
    form = answer_form(Hermes, FUNCTIONS[1:], None, must_call=True, single=True)
    assert form is not None
    assert set(writer.whole(form)) == {'<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'}


def test_strict_calls_amid_free_text(writer: Writer) -> None:
    form = answer_form(Hermes, FUNCTIONS, None, must_call=False, single=False)
    assert form is not None
    texts = [
        text
        for by in (0.0, 6.0, 12.0, 18.0)  # from a model that says what it likes to one that always calls
        for text in writer.whole(form, logit_bias=writer.bias("<tool_call>", by=by), frequency_penalty=0.5)
    ]
    names = [check_calls(writer.parts(text)) for text in texts]
    assert any(names)
    assert any(isinstance(part, Text) for text in texts for part in writer.parts(text))


def test_a_format_or_calls(writer: Writer) -> None:
    content = json_form(Schema({"type": "boolean"}, "x"))
    form = answer_form(Hermes, FUNCTIONS, content, must_call=False, single=True)
    assert form is not None
    for text in writer.whole(form, count=20):
        parts = writer.parts(text)
        assert check_calls(parts) or text in ("true", "false")


def test_no_tools_leave_the_content_as_it_is() -> None:
    content = json_form(Schema({}, "x"))
    assert answer_form(Hermes, [], content, must_call=False, single=False) is content
    assert answer_form(Hermes, FUNCTIONS[1:], None, must_call=False, single=False) is None


@pytest.mark.parametrize("thinking", [Thinking.MAY, Thinking.BEGUN])
def test_reasoning_precedes_the_constrained_text(writer: Writer, thinking: Thinking) -> None:
    begun = thinking is Thinking.BEGUN
    bias = writer.bias("<think>", by=20.0) + writer.bias("</think>", by=11.0)
    texts = writer.whole(regex_form("[0-9]{2}", "x"), thinking=thinking, logit_bias=bias, count=6, max_tokens=40)
    thoughts = 0
    for text in texts:
        parts = writer.parts(text, thinking=begun)
        thoughts += any(isinstance(part, Reasoning) for part in parts)
        assert re.fullmatch("[0-9]{2}", "".join(part.text for part in parts if isinstance(part, Text)))
    assert thoughts


def test_log_probabilities_are_those_of_the_model(writer: Writer) -> None:
    options: dict[str, Any] = {"max_tokens": 1, "logprobs": 5}
    free, kept = writer.ask([None, None], **options)[0], writer.ask([regex_form("[0-9]", "x")], **options)[0]
    assert kept.logprobs[0].top_ids == free.logprobs[0].top_ids
    assert kept.logprobs[0].top_logprobs == pytest.approx(free.logprobs[0].top_logprobs, abs=1e-5)
    assert kept.token_ids[0] != kept.logprobs[0].top_ids[0]


def test_rows_with_and_without_a_form_do_not_touch_each_other(writer: Writer) -> None:
    form = regex_form("[a-z]{5}", "x")
    alone = writer.ask([None] * 6, max_tokens=20)
    mixed = writer.ask([None, form, None, form, None, form], max_tokens=20)
    assert [a.token_ids for a in mixed[::2]] == [a.token_ids for a in alone[::2]]
    assert all(re.fullmatch("[a-z]{5}", writer.text(a)) for a in mixed[1::2])


def test_a_sequence_that_can_not_continue_fails_without_harming_others(writer: Writer) -> None:
    form = regex_form("[0-9]{2}", "x")
    for options in ({"min_tokens": 9}, {"stop_token_ids": ()}):
        assert [a.finish for a in writer.ask([form], **options)] == ["error"]
    stuck, fine = writer.ask([form, None], min_tokens=30, max_tokens=40)
    assert (stuck.finish, len(stuck.token_ids)) == ("error", 2)
    assert len(fine.token_ids) >= 30


def test_preempted_sequences_continue_under_their_grammar(writer: Writer) -> None:
    forms = [regex_form("([a-z]{3}[0-9]){20}", "x")] * 8
    expected = [a.token_ids for a in writer.ask(forms, max_tokens=40)]
    cramped = Writer.__new__(Writer)
    cramped.tokenizer = writer.tokenizer
    cramped.engine = Engine(WorkerConfig(NANO, slots=8, page_size=16, pages=16, max_model_len=256, max_step_tokens=32))
    preempted = []
    inner = cramped.engine.scheduler._places.preempt
    cramped.engine.scheduler._places.preempt = lambda seq, now: preempted.append(seq.generated) or inner(seq, now)  # type: ignore
    assert [a.token_ids for a in cramped.ask(forms, max_tokens=40)] == expected
    assert any(preempted)


def test_a_decode_worker_can_continue_at_any_token(writer: Writer) -> None:
    """A decode worker continues from the generated tokens alone."""
    form = json_form(Schema(schema(7), "x"))
    (whole,) = writer.ask([None, form], max_tokens=40)[1:]
    rng = random.Random(1)
    tokenizer = writer.tokenizer
    prompt = tokenizer.encode(TURN.format("Go on."), False)
    for kept in {1, rng.randrange(2, len(whole.token_ids) - 1)}:
        sampling = SamplingParams(
            max_tokens=40, seed=1, stop_token_ids=tokenizer.eos_ids, grammar=form.grammar(tokenizer.marks)
        )
        request_id = writer.engine.add(prompt, sampling)
        writer.engine.scheduler.sequences[request_id].tokens.extend(array("i", whole.token_ids[:kept]))
        rest = []
        while writer.engine.scheduler.sequences:
            rest += [token for output in writer.engine.step() for token in output.token_ids]
        assert tuple(rest) == whole.token_ids[kept:]
