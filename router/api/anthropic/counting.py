"""/v1/messages/count_tokens."""

from functools import partial

from router.api.answering import check_model
from router.api.answers.anthropic import TokenCount
from router.api.anthropic.schema import NAMES, CountRequest
from router.api.render import conversation_prompt
from router.relay.gateway import Gateway


async def count_tokens(request: CountRequest, gateway: Gateway, tenant: str) -> TokenCount:
    """Count the tokens of the prompt that /v1/messages would compute."""
    check_model(request.model, gateway.config)
    asked = request.conversation()
    recall = partial(gateway.exact.recall, tenant)
    prompt = await gateway.apart(asked.characters, conversation_prompt, asked, NAMES, gateway.tokenizer, recall)
    return {"input_tokens": len(prompt.token_ids)}
