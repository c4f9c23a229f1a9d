"""Checks grammars before a request goes to workers: each once, and not on the event loop."""

import asyncio
import hashlib
import re
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from router.errors import invalid
from router.text.grammar import Form, Marks
from router.text.schema_endless import endless
from router.text.schema_fault import SchemaFault, brief, fault_of

_LIMITS = LLParserLimits(verbose_errors=False)
_PLACE = re.compile(r"^(at )?\d+\(\d+\): ")
_KEEP = 4096
# The longest grammar in characters, which takes about a second to compile at worst.
_LONGEST = 256 * 1024


class GrammarCheck:
    """Checks forms and remembers the results. folder: the checkpoint's, with tokenizer.json."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._tokenizer: LLTokenizer | None = None
        self._known: OrderedDict[bytes, SchemaFault | None] = OrderedDict()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="grammar")

    def close(self) -> None:
        """End the thread."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, form: Form, marks: Marks) -> None:
        """Check a form. The 400 names the part of the schema that workers could not enforce."""
        text = form.grammar(marks).text
        if len(text) > _LONGEST:
            reason = f"it makes a grammar of {len(text)} characters, at most {_LONGEST} are taken"
            raise invalid(f"'{form.param}': {reason}", form.param)
        # In another request the same grammar may come from another field, which the error then names.
        places = "\n".join((form.param, *(s.param for s in form.schemas)))
        key = hashlib.blake2b(f"{places}\0{text}".encode(), digest_size=16).digest()
        if key in self._known:
            self._known.move_to_end(key)
        else:
            loop = asyncio.get_running_loop()
            self._known[key] = await loop.run_in_executor(self._threads, self._fault, form, text)
            if len(self._known) > _KEEP:
                self._known.popitem(last=False)
        fault = self._known[key]
        if fault is not None:
            raise invalid(f"'{fault.param}': {fault.reason}", fault.param, "invalid_grammar")

    async def text(self, text: str) -> str | None:
        """Why workers could not enforce a grammar that a router made earlier; None if they can."""
        if len(text) > _LONGEST:
            return f"it has {len(text)} characters, at most {_LONGEST} are taken"
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._message, text)

    def _message(self, text: str) -> str | None:
        message: str | None = LLMatcher.validate_grammar(text, self._index(), limits=_LIMITS)
        return brief(message) if message and not message.startswith("WARNING") else self._first_mask(text)

    def _fault(self, form: Form, text: str) -> SchemaFault | None:
        for schema in form.schemas:
            if (reference := endless(schema.content)) is not None:
                return SchemaFault(schema.param, f"nothing can satisfy it: {reference!r} is required within itself")
        # Only a client's own grammar can name tokens that do not exist.
        message: str | None = LLMatcher.validate_grammar(text, self._index() if form.given else None, limits=_LIMITS)
        if not message or message.startswith("WARNING"):
            message = self._first_mask(text)
        if message is None:
            return None
        for schema in form.schemas:
            if (fault := fault_of(schema)) is not None:
                return fault
        if len(form.schemas) == 1:
            return SchemaFault(form.schemas[0].param, _PLACE.sub("", brief(message)))
        # Positions in a grammar that the router made mean nothing to clients.
        return SchemaFault(form.param, brief(message if form.given else _PLACE.sub("", message)))

    def _first_mask(self, text: str) -> str | None:
        """The fault of a well-formed grammar that allows no first token, such as an endless reference; None if fine."""
        matcher = LLMatcher(self._index(), text, log_level=0, limits=_LIMITS)
        matcher.compute_bitmask()
        return f"nothing can satisfy it: {brief(matcher.get_error())}" if matcher.is_error() else None

    def _index(self) -> LLTokenizer:
        if self._tokenizer is None:
            self._tokenizer = LLTokenizer((self._folder / "tokenizer.json").read_text())
        return self._tokenizer
