"""Tests decoding in steps, stop strings, and templates."""

import itertools
import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from router.text.detokenizer import Detokenizer, StopStrings
from router.text.template import ChatTemplate
from router.text.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "base"


def _save(folder: Path, inner: tokenizers.Tokenizer) -> Tokenizer:
    inner.save(str(folder / "tokenizer.json"))
    return Tokenizer(str(folder))


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A byte-level tokenizer with merges, special and plain added tokens, one beyond the byte alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(alphabet)}
    merges = [("Ġ", "a"), ("â", "Ĥ"), ("âĤ", "¬"), ("h", "e")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken("<|end|>", special=True)])
    inner.add_tokens([AddedToken("<tool call>"), AddedToken("語")])
    return _save(tmp_path_factory.mktemp("bytes"), inner)


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """A tokenizer whose decoder joins words with spaces."""
    return Tokenizer(str(GOLDEN))


@pytest.fixture(scope="module")
def metaspace(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer that drops the first word's space."""
    vocab = {t: i for i, t in enumerate(("▁a", "b", "▁c", "▁", "d▁e", "<s>"))}
    inner = tokenizers.Tokenizer(models.WordLevel(vocab=vocab, unk_token="b"))
    inner.decoder = decoders.Metaspace()
    inner.add_special_tokens([AddedToken("<s>", special=True)])
    return _save(tmp_path_factory.mktemp("meta"), inner)


def check_split(tokenizer: Tokenizer, ids: list[int], cuts: list[int]) -> None:
    detokenizer = Detokenizer(tokenizer)
    bounds = [0, *sorted(c % (len(ids) + 1) for c in cuts), len(ids)]
    pieces = [detokenizer.push(ids[a:b]) for a, b in itertools.pairwise(bounds)]
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(ids)


CUTS = st.lists(st.integers(0, 1000), max_size=8)


@given(ids=st.lists(st.integers(0, 262), max_size=40), cuts=CUTS)
def test_any_bytes_in_any_steps(byte_level: Tokenizer, ids: list[int], cuts: list[int]) -> None:
    check_split(byte_level, ids, cuts)


@given(text=st.text(max_size=30), cuts=CUTS)
def test_any_text_in_any_steps_comes_back(byte_level: Tokenizer, text: str, cuts: list[int]) -> None:
    ids = byte_level.encode(text, False)
    check_split(byte_level, list(ids), cuts)
    if "<|end|>" not in text:
        assert byte_level.decode(ids) == text


@settings(max_examples=50)
@given(ids=st.lists(st.integers(0, 255), max_size=20), cuts=CUTS)
def test_words_in_any_steps(words: Tokenizer, ids: list[int], cuts: list[int]) -> None:
    check_split(words, ids, cuts)


@settings(max_examples=50)
@given(ids=st.lists(st.integers(0, 5), max_size=20), cuts=CUTS)
def test_metaspace_in_any_steps(metaspace: Tokenizer, ids: list[int], cuts: list[int]) -> None:
    check_split(metaspace, ids, cuts)


def test_half_a_character_waits(byte_level: Tokenizer) -> None:
    detokenizer = Detokenizer(byte_level)
    first, second = byte_level.encode("é", False)
    assert [detokenizer.push((first,)), detokenizer.push((second,))] == ["", "é"]
    assert (detokenizer.push((first,)), detokenizer.flush()) == ("", "\ufffd")


def test_ids_beyond_the_tokenizer_are_nothing(byte_level: Tokenizer) -> None:
    detokenizer = Detokenizer(byte_level)
    assert detokenizer.push((9999,)) + detokenizer.push((9999, byte_level.encode("x", False)[0])) == "x"
    assert byte_level.piece(9999) == ("", b"")


def test_special_tokens_are_hidden_in_text_and_named_in_pieces(byte_level: Tokenizer) -> None:
    (end,) = byte_level.special_ids
    assert Detokenizer(byte_level).push((end,)) == ""
    assert byte_level.piece(end) == ("<|end|>", b"<|end|>")


def test_markers_show_even_where_they_are_special(byte_level: Tokenizer, metaspace: Tokenizer) -> None:
    (end,) = byte_level.special_ids
    ids = byte_level.encode("a", False)
    assert Detokenizer(byte_level, ("<|end|>", "<no token>")).push((*ids, end, *ids)) == "a<|end|>a"
    assert Detokenizer(byte_level, ("<other>",)).push((*ids, end, *ids)) == "aa"
    shown, hidden = Detokenizer(metaspace, ("<s>",)), Detokenizer(metaspace)
    assert shown.push((0, 5, 1, 5)) + shown.flush() == "a<s>b<s>"
    assert hidden.push((0, 5, 1, 5)) + hidden.flush() == "ab"


PIECES = st.lists(st.text("abc", max_size=4), max_size=12)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3)


@given(PIECES, STOPS)
def test_stop_strings_cut_whole_and_never_leak(pieces: list[str], stops: list[str]) -> None:
    finder, out, stopped = StopStrings(stops), "", False
    for piece in pieces:
        text, stopped = finder.push(piece)
        out += text
        if stopped:
            break
    if not stopped:
        out += finder.flush()
    whole = "".join(pieces)
    ends = [(whole.find(s) + len(s), whole.find(s)) for s in stops if s in whole]
    assert stopped == bool(ends)
    assert out == (whole[: min(ends)[1]] if ends else whole)


@given(st.text("abc", max_size=30), STOPS)
def test_text_is_held_no_longer_than_needed(text: str, stops: list[str]) -> None:
    finder = StopStrings(stops)
    out, stopped = finder.push(text)
    if not stopped:
        held = finder.flush()
        assert out + held == text
        assert not held or any(s.startswith(held) for s in stops)


def _template(folder: Path, **config: object) -> ChatTemplate | None:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return ChatTemplate.load(folder)


def test_the_checkpoints_own_template() -> None:
    template = ChatTemplate.load(GOLDEN)
    assert template is not None
    text = template.render(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "<b>"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}],
            },
            {"role": "tool", "content": "2"},
        ]
    ).text
    assert text == (
        "<role>SYSTEM</role>Be brief.\ndetailed thinking off<|role_end|><role>HUMAN</role><b><|role_end|>"
        '<role>ASSISTANT</role><tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call><|role_end|>'
        "<role>OBSERVATION</role><tool_response>\n2\n</tool_response><|role_end|><role>ASSISTANT</role>"
    )


def test_templates_get_tools_and_other_variables(tmp_path: Path) -> None:
    template = _template(tmp_path, chat_template="{{ tools | length }}{{ mood }}{{ eos_token }}", eos_token="<e>")
    assert template is not None
    assert template.takes_tools
    assert template.render([], [{}, {}], {"mood": "x", "eos_token": "y"}).text == "2x<e>"
    plain = _template(tmp_path, chat_template="{{ messages }}")
    assert plain is not None
    assert not plain.takes_tools


def test_templates_are_found_in_all_usual_places(tmp_path: Path) -> None:
    assert _template(tmp_path) is None
    listed = [{"name": "tools", "template": "no"}, {"name": "default", "template": "{{ eos_token }}!"}]
    named = _template(tmp_path, chat_template=listed, eos_token={"content": "<e>"})
    assert named is not None
    assert named.render([]).text == "<e>!"
    (tmp_path / "chat_template.jinja").write_text("{% if true %}\nfile{{ strftime_now('') }}{% endif %}")
    filed = ChatTemplate.load(tmp_path)
    assert filed is not None
    assert filed.render([]).text == "file"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content + 1 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__()[0] }}",
        "{{ messages.append(1) }}",
        "{{ messages[7].role.x }}",
    ],
)
def test_a_template_that_refuses_is_a_400(tmp_path: Path, source: str) -> None:
    template = _template(tmp_path, chat_template=source)
    assert template is not None
    with pytest.raises(ValueError, match="chat template refuses"):
        template.render([{"role": "user", "content": "x"}])


def test_tojson_keeps_text_readable(tmp_path: Path) -> None:
    template = _template(tmp_path, chat_template="{{ messages[0].content | tojson }}")
    assert template is not None
    assert template.render([{"role": "user", "content": "<é'>"}]).text == '"<é\'>"'


def test_a_folder_without_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        Tokenizer(str(tmp_path))


def test_all_ends_count(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text((GOLDEN / "tokenizer.json").read_text())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 8}')
    assert Tokenizer(str(tmp_path)).eos_ids == (7, 8, 9)
