"""Compares grammar engines: the time to compile a schema, and to make a token's mask, with two vocabularies.

`python -m benchmarks.grammar` prints a table of medians over three rounds. In each round both engines compile the same
schema and walk the same text. xgrammar is not a dependency: without it (`pip install --no-deps xgrammar
apache-tvm-ffi`, beside torch and transformers) its columns stay empty. The vocabularies are ling-nano's and a made-up
one of syllables, white space and Chinese, as large as the model family's.
"""

import importlib.util
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

_NANO = Path(__file__).parents[1] / "checkpoints" / "ling-nano" / "tokenizer.json"
_FAMILY = 157_184
_END = "<|role_end|>"
_ROUNDS = 3
_STREET = {"type": "object", "properties": {"street": {"type": "string"}, "zip": {"pattern": "^[0-9]{5}$"}}}
_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}},
        "address": {**_STREET, "required": ["street", "zip"], "additionalProperties": False},
    },
    "required": ["name", "age", "tags", "address"],
    "additionalProperties": False,
}
_TEXT = (
    '{"name": "banana cola 你好", "age": 42, "tags": ["some words", "melon"], '
    '"address": {"street": "Main Road 12", "zip": "12345"}}'
)
# Seconds of compiling a grammar, and of each mask.
Round = tuple[float, list[float]]


def _made_up(size: int) -> tokenizers.Tokenizer:
    """A byte-level vocabulary of about this many tokens, always the same."""
    rng = random.Random(0)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens = dict.fromkeys(sorted(pre_tokenizers.ByteLevel.alphabet()))
    syllables = [c + v + e for c in "bcdfghjklmnprstvwz" for v in "aeiou" for e in ("", "n", "r", "s")]
    edges = ("", "", " ", " ", " ", "_", ".", ' "', '", ', '": ', "\n    ", "();\n")

    def add(text: str) -> None:
        tokens["".join(piece for piece, _ in byte_level.pre_tokenize_str(text))] = None

    for width in range(1, 64):
        add(" " * width)
        add("\n" + " " * width)
    while len(tokens) < size * 6 // 10:
        word = "".join(rng.choices(syllables, k=rng.randint(1, 4)))
        add(rng.choice(edges) + word + (rng.choice(edges) if rng.random() < 0.1 else ""))
    while len(tokens) < size - 8:
        add("".join(chr(0x4E00 + int(6000 * rng.random() ** 3)) for _ in range(rng.choice((1, 2, 2, 3, 4)))))
    inner = tokenizers.Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    inner.pre_tokenizer = byte_level
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(_END, special=True)])
    return inner


def _llguidance(tokenizer: tokenizers.Tokenizer, vocab: int) -> Callable[[list[int]], Round]:
    from llguidance import LLMatcher, LLTokenizer

    index = LLTokenizer(tokenizer.to_str(), n_vocab=vocab, eos_token=tokenizer.token_to_id(_END))

    def walk(ids: list[int]) -> Round:
        begun = time.perf_counter()
        matcher = LLMatcher(index, LLMatcher.grammar_from_json_schema(_SCHEMA))
        compiled = time.perf_counter() - begun
        return compiled, list(_timed(ids, matcher.compute_bitmask, matcher.consume_token))

    return walk


def _xgrammar(tokenizer: tokenizers.Tokenizer, vocab: int) -> Callable[[list[int]], Round]:
    import xgrammar

    ids = {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    info = xgrammar.TokenizerInfo(
        [ids.get(i, "") for i in range(vocab)],
        vocab_type=xgrammar.VocabType.BYTE_LEVEL,
        vocab_size=vocab,
        stop_token_ids=[tokenizer.token_to_id(_END)],
    )
    mask = xgrammar.allocate_token_bitmask(1, vocab)

    def walk(ids: list[int]) -> Round:
        begun = time.perf_counter()
        grammar = xgrammar.GrammarCompiler(info, cache_enabled=False).compile_json_schema(json.dumps(_SCHEMA))
        compiled = time.perf_counter() - begun
        matcher = xgrammar.GrammarMatcher(grammar)
        return compiled, list(_timed(ids, lambda: matcher.fill_next_token_bitmask(mask), matcher.accept_token))

    return walk


def _timed(ids: list[int], mask: Callable[[], Any], accept: Callable[[int], bool]) -> Iterator[float]:
    """Yield the seconds that the mask before each token takes."""
    for token in ids:
        begun = time.perf_counter()
        mask()
        yield time.perf_counter() - begun
        assert accept(token)


def _figures(walk: Callable[[list[int]], Round], ids: list[int]) -> dict[str, float]:
    """Each figure's median over the rounds."""
    rounds = [walk(ids) for _ in range(_ROUNDS)]
    of_masks: tuple[tuple[str, Callable[[list[float]], float]], ...] = (
        ("median", statistics.median),
        ("mean", statistics.fmean),
        ("longest", max),
    )
    figures = {"compile, ms": statistics.median(r[0] for r in rounds) * 1e3}
    for name, of in of_masks:
        figures[f"mask, {name} µs"] = statistics.median(of(r[1]) for r in rounds) * 1e6
    return figures


def main() -> None:
    """Measure both engines and print the table."""
    small = tokenizers.Tokenizer.from_file(str(_NANO))
    print(f"{'vocabulary':>10}  {'figure':<16}{'llguidance':>12}{'xgrammar':>12}{'ratio':>8}")
    for tokenizer, vocab in ((_made_up(_FAMILY), _FAMILY), (small, 1280)):
        ids = tokenizer.encode(_TEXT, add_special_tokens=False).ids
        ours = _figures(_llguidance(tokenizer, vocab), ids)
        has_other = importlib.util.find_spec("xgrammar") is not None
        theirs = _figures(_xgrammar(tokenizer, vocab), ids) if has_other else None
        for name, own in ours.items():
            beside = f"{theirs[name]:12.1f}{theirs[name] / own:8.1f}" if theirs else ""
            print(f"{vocab:>10}  {name:<16}{own:12.1f}{beside}")


if __name__ == "__main__":
    main()
