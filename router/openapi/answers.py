"""What each path answers with 200, as types: those of the dicts its code makes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.api.answers.anthropic import (
    AnthropicMessage,
    AnthropicModel,
    AnthropicModelList,
    MessageEvent,
    TokenCount,
)
from router.api.answers.generated import ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk
from router.api.answers.items import KeptItem
from router.api.answers.records import BatchRecord, Deleted, FileRecord, Page
from router.api.answers.server import ClusterStatus, Detokenized, Health, Model, ModelList, Ready, Root, Tokenized
from router.api.responses.answers import Response, ResponseEvent
from router.errors import OpenAIError
from router.history import Series


@dataclass(frozen=True, slots=True)
class Answer:
    """One path's. whole: its JSON. event: the JSON of an event's data, where the answer may be a stream."""

    whole: Any
    event: Any = None


_RESPONSE = Answer(Response, ResponseEvent)
ANSWERS: Mapping[tuple[str, str], Answer] = {
    ("post", "/v1/chat/completions"): Answer(ChatCompletion, ChatCompletionChunk | OpenAIError),
    ("post", "/v1/completions"): Answer(Completion, CompletionChunk | OpenAIError),
    ("post", "/v1/messages"): Answer(AnthropicMessage, MessageEvent),
    ("post", "/v1/messages/count_tokens"): Answer(TokenCount),
    ("post", "/v1/responses"): _RESPONSE,
    ("get", "/v1/responses/{response_id}"): _RESPONSE,
    ("delete", "/v1/responses/{response_id}"): Answer(Deleted),
    ("post", "/v1/responses/{response_id}/cancel"): Answer(Response),
    ("get", "/v1/responses/{response_id}/input_items"): Answer(Page[KeptItem]),
    ("post", "/v1/files"): Answer(FileRecord),
    ("get", "/v1/files"): Answer(Page[FileRecord]),
    ("get", "/v1/files/{file_id}"): Answer(FileRecord),
    ("delete", "/v1/files/{file_id}"): Answer(Deleted),
    ("post", "/v1/batches"): Answer(BatchRecord),
    ("get", "/v1/batches"): Answer(Page[BatchRecord]),
    ("get", "/v1/batches/{batch_id}"): Answer(BatchRecord),
    ("post", "/v1/batches/{batch_id}/cancel"): Answer(BatchRecord),
    ("get", "/v1/models"): Answer(ModelList | AnthropicModelList),
    ("get", "/v1/models/{name}"): Answer(Model | AnthropicModel),
    ("post", "/tokenize"): Answer(Tokenized),
    ("post", "/detokenize"): Answer(Detokenized),
    ("get", "/"): Answer(Root),
    ("get", "/health"): Answer(Health),
    ("get", "/ready"): Answer(Ready),
    ("get", "/status"): Answer(ClusterStatus),
    ("get", "/live"): Answer(Series),
    ("get", "/openapi.json"): Answer(dict[str, Any]),
}
