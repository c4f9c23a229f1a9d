"""What the chat API says is wrong with messages, in this API's words."""

import re
from collections.abc import Sequence

from router.errors import ApiError

_WORDS = (("tool_call_id", "tool_use_id"), ("].tool_calls", "].content"), ("a tool message", "a tool_result"))
# Where the chat API names the field, at the beginning: what follows may quote the client.
_PLACE = re.compile(r"^('?)messages\[(\d+)\]")


def in_these_words(error: ApiError, places: Sequence[str]) -> ApiError:
    """The same error about the fields a client of this API sent. places: where each of the chat's messages stood."""

    def reworded(text: str) -> str:
        text = _PLACE.sub(lambda found: found[1] + places[int(found[2])], text)
        for word, own in _WORDS:
            text = text.replace(word, own)
        return text

    param = reworded(error.param) if error.param is not None else None
    return ApiError(error.status, reworded(error.message), param=param, code=error.code)
