"""The demo checkpoint: what `ling serve` serves without --model."""

import json
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors import safe_open
from tokenizers import Tokenizer

from cluster.demo import demo_checkpoint
from workers.config import WorkerConfig
from workers.engine.engine import Engine
from workers.model.config import LingConfig
from workers.protocol import SamplingParams


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_checkpoint(tmp_path_factory.mktemp("cache"))


def test_made_once_and_always_the_same(folder: Path, tmp_path: Path) -> None:
    stamps = {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}
    assert demo_checkpoint(folder.parent) == folder
    assert {f.name: f.stat().st_mtime_ns for f in folder.iterdir()} == stamps
    again = demo_checkpoint(tmp_path)
    assert {f.name: f.read_bytes() for f in again.iterdir()} == {f.name: f.read_bytes() for f in folder.iterdir()}
    assert [f.name for f in tmp_path.iterdir()] == [again.name]


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo_checkpoint().parent == tmp_path / "ling"


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_its_config_loads_and_splits(folder: Path, tp: int) -> None:
    config = LingConfig.load(folder, {})
    config.check_tp(tp)
    assert config.max_model_len == 8192
    assert config.vocab_size == Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()


def test_the_index_lists_what_the_shard_holds(folder: Path) -> None:
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    (shard,) = set(weight_map.values())
    with safe_open(folder / shard, "np") as opened:
        assert set(opened.keys()) == set(weight_map)


def test_the_tokenizer_takes_any_text(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "Grüße, 世界 🙂\n\ttabs  and spaces\x00"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    for special in ("<|role_end|>", "<role>", "<think>", "<tool_call>"):
        assert len(tokenizer.encode(special).ids) == 1


def render(folder: Path, **values: Any) -> str:
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(**values)


CALLS = [
    {"function": {"name": "f", "arguments": {"a": 1}}},
    {"function": {"name": "g", "arguments": '{"b": 2}'}},
]


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (
            [{"role": "user", "content": "hi"}],
            "<role>SYSTEM</role>detailed thinking off<|role_end|><role>HUMAN</role>hi<|role_end|>",
        ),
        (
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
            "<role>SYSTEM</role>Be brief.\ndetailed thinking off<|role_end|><role>HUMAN</role>hi<|role_end|>",
        ),
        (
            [{"role": "system", "content": "detailed thinking on"}, {"role": "user", "content": "hi"}],
            "<role>SYSTEM</role>detailed thinking on\n<|role_end|><role>HUMAN</role>hi<|role_end|>",
        ),
        (
            [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": None, "tool_calls": CALLS},
                {"role": "tool", "content": "1"},
                {"role": "tool", "content": "2"},
                {"role": "assistant", "content": "done"},
            ],
            "<role>SYSTEM</role>detailed thinking off<|role_end|><role>HUMAN</role>hi<|role_end|>"
            '<role>ASSISTANT</role><tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
            '<tool_call>\n{"name": "g", "arguments": {"b": 2}}\n</tool_call><|role_end|>'
            "<role>OBSERVATION</role>\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
            "<|role_end|><role>ASSISTANT</role>done<|role_end|>",
        ),
    ],
    ids=["no system", "system", "thinking said", "tools used"],
)
def test_the_chat_template_writes_the_family_format(folder: Path, messages: list[dict[str, Any]], text: str) -> None:
    assert render(folder, messages=messages, add_generation_prompt=False) == text
    assert render(folder, messages=messages, add_generation_prompt=True) == text + "<role>ASSISTANT</role>"


def test_the_chat_template_lists_tools(folder: Path) -> None:
    tool = {"function": {"name": "f"}, "type": "function"}
    text = render(folder, messages=[{"role": "user", "content": "hi"}], tools=[tool])
    assert f"<tools>\n{json.dumps(tool)}\n</tools>" in text
    assert text.index("</tools>") < text.index("detailed thinking off<|role_end|>")


def test_it_speaks_letters_and_ends(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    engine = Engine(WorkerConfig(str(folder), slots=8, max_model_len=512))
    eos = tokenizer.encode("<|role_end|>").ids
    prompts = [tokenizer.encode(f"Hello {i}").ids for i in range(8)]
    answers = engine.generate(prompts, [SamplingParams(96, seed=i, stop_token_ids=tuple(eos)) for i in range(8)])
    text = "".join(tokenizer.decode(list(a.token_ids)) for a in answers)
    assert sum(c.isalpha() or c in " .," for c in text) > 0.9 * len(text)
    assert any(a.finish == "stop" for a in answers)
