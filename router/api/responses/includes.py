"""Defines what a client may ask to be included in a response."""

from typing import Literal

LOGPROBS = "message.output_text.logprobs"
# All but log-probabilities change nothing: reasoning is always shown, and no response here has the other parts. Clients
# ask for those beside tools that the server would have to run, which are left out too.
Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
]
