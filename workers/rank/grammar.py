"""Grammars at rank 0: compiles them in a thread, with a matcher for each sequence and masks for a step's rows."""

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from wire.protocol import Grammar

# Messages go to clients, so they must not contain the engine's state.
_LIMITS = LLParserLimits(verbose_errors=False)


class GrammarError(ValueError):
    """A grammar can't be compiled."""


@dataclass(slots=True)
class Matcher:
    """The position of one sequence in its grammar."""

    inner: LLMatcher

    def advance(self, token_ids: Sequence[int]) -> None:
        """Advance by tokens; if one does not fit, the next `Grammars.masks` reports it."""
        self.inner.consume_tokens(list(token_ids))


class Grammars:
    """The compiled grammars of one worker. `folder` holds the tokenizer; `vocab` is the model's, which may be larger.

    The tokenizer's index (about 1.5 s and 115 MB for 157k tokens) is made with the first grammar. `compile`, `submit`
    and `forget` may be called beside `start` and `masks`, which belong to the thread that steps.
    """

    def __init__(self, folder: Path, vocab: int) -> None:
        self._folder = folder
        self._vocab = vocab
        self._tokenizer: LLTokenizer | None = None
        self._compiled: dict[Grammar, LLMatcher] = {}
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._masking: LLExecutor | None = None

    def submit(self, grammar: Grammar, done: Callable[[Grammar, str | None], None]) -> None:
        """Compile in the background, and then call `done` there, with the grammar's fault if it has one."""

        def work() -> None:
            try:
                self.compile(grammar)
            except Exception as error:  # after any error somebody waits for an answer
                done(grammar, str(error))
            else:
                done(grammar, None)

        self._thread.submit(work)

    def compile(self, grammar: Grammar) -> None:
        """Prepare a grammar for `start`; GrammarError if it can't be compiled."""
        if grammar in self._compiled:
            return
        matcher = LLMatcher(self._index(), grammar.text, log_level=0, limits=_LIMITS)
        # The first mask builds tables that all later masks share.
        matcher.compute_bitmask()
        if matcher.is_error():
            raise GrammarError(f"the grammar can't be compiled: {_brief(matcher.get_error())}")
        self._compiled[grammar] = matcher

    def forget(self, grammar: Grammar) -> None:
        """Free a grammar; running matchers keep what they need."""
        self._compiled.pop(grammar, None)

    def start(self, grammar: Grammar, generated: Sequence[int]) -> Matcher:
        """Start a matcher after these tokens.

        KeyError if the grammar is not compiled; `masks` reports tokens that do not fit.
        """
        inner = self._compiled[grammar].deep_copy()
        inner.consume_tokens(list(generated))
        return Matcher(inner)

    def masks(
        self, matchers: Sequence[Matcher | None], stops: Sequence[Sequence[int]], may_end: Sequence[bool]
    ) -> tuple[NDArray[np.int32], dict[int, str]]:
        """Which tokens may come next in each row: [R, ceil(vocab / 32)] int32, bit v % 32 of word v // 32 is token v.

        stops: the tokens that end each row, allowed if its text is complete and it `may_end`. A row without a matcher
        allows all tokens. Also returns the rows without any possible token, with the reason; these allow all tokens
        too.
        """
        words = np.full((len(matchers), -(-self._vocab // 32)), -1, dtype=np.int32)
        rows = [(m.inner, i) for i, m in enumerate(matchers) if m is not None]
        if self._masking is None:
            self._masking = LLExecutor()
        self._masking.unsafe_compute_mask_ptr(rows, words.ctypes.data, words.shape[1] * 4, len(matchers))
        eos = self._index().eos_tokens
        failed: dict[int, str] = {}
        for matcher, i in rows:
            whole = bool(words[i, eos[0] >> 5] >> (eos[0] & 31) & 1)
            _set(words[i], eos, False)
            _set(words[i], stops[i], whole and may_end[i])
            if matcher.is_error():
                failed[i] = f"its grammar can't go on: {_brief(matcher.get_error())}"
            elif not words[i].any():
                failed[i] = "its text is whole, but it may not end" if whole else "its grammar allows no token here"
            if i in failed:
                words[i] = -1
        return words, failed

    def close(self) -> None:
        """Stop compiling."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _index(self) -> LLTokenizer:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._read()
            return self._tokenizer

    def _read(self) -> LLTokenizer:
        file = self._folder / "tokenizer.json"
        if not file.is_file():
            raise GrammarError(f"{self._folder} has no tokenizer.json: grammars need it beside the weights")
        config = json.loads((self._folder / "config.json").read_text())
        try:
            # The request names its end tokens; the engine needs one token to mark where the text may end.
            return LLTokenizer(file.read_text(), n_vocab=self._vocab, eos_token=config.get("eos_token_id"))
        except ValueError as error:
            raise GrammarError(f"grammars do not work with the tokenizer of {self._folder}: {error}") from error


def _set(words: NDArray[np.int32], token_ids: Sequence[int], allowed: bool) -> None:
    bits = words.view(np.uint32)
    for token in token_ids:
        bit = np.uint32(1 << (token & 31))
        bits[token >> 5] = bits[token >> 5] | bit if allowed else bits[token >> 5] & ~bit


def _brief(message: str) -> str:
    return message.split("\n", 1)[0][:200]
