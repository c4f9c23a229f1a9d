"""ling-nano's chat template, in the model family's format, and its rendering for the corpus."""

import json
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

START = "<|startoftext|>"
END_OF_TEXT = "<|endoftext|>"
ROLE_END = "<|role_end|>"
HIDDEN = (END_OF_TEXT, START, ROLE_END, "<role>", "</role>")
SHOWN = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<tools>",
    "</tools>",
)

CHAT_TEMPLATE = """\
{%- set first = (messages[0].content or '') if messages[0].role == 'system' else '' -%}
<role>SYSTEM</role>
{%- if first %}{{ first }}{{ '\\n' }}{% endif -%}
{%- if tools -%}
{{ '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n<tools>' }}
{%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor -%}
{{ '\\n</tools>\\n\\nFor each function call, return a json object within <tool_call></tool_call> tags:\\n' }}
{{- '<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>\\n' }}
{%- endif -%}
{%- if 'detailed thinking on' not in first and 'detailed thinking off' not in first -%}
detailed thinking off
{%- endif -%}
<|role_end|>
{%- for message in messages -%}
{%- if message.role == 'user' -%}
<role>HUMAN</role>{{ message.content }}<|role_end|>
{%- elif message.role == 'system' and not loop.first -%}
<role>SYSTEM</role>{{ message.content }}<|role_end|>
{%- elif message.role == 'assistant' -%}
<role>ASSISTANT</role>{{ message.content or '' }}
{%- for call in message.tool_calls or [] -%}
{%- if message.content or not loop.first %}{{ '\\n' }}{% endif -%}
{%- set arguments = call.function.arguments -%}
{{ '<tool_call>\\n{"name": ' }}{{ call.function.name | tojson }}{{ ', "arguments": ' }}
{{- arguments if arguments is string else arguments | tojson }}{{ '}\\n</tool_call>' }}
{%- endfor -%}
<|role_end|>
{%- elif message.role == 'tool' -%}
{%- if loop.previtem is undefined or loop.previtem.role != 'tool' %}<role>OBSERVATION</role>{% endif -%}
{{ '\\n<tool_response>\\n' }}{{ message.content }}{{ '\\n</tool_response>' }}
{%- if loop.nextitem is undefined or loop.nextitem.role != 'tool' %}<|role_end|>{% endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<role>ASSISTANT</role>{% endif -%}
"""


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


_environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
_environment.filters["tojson"] = _to_json
_template = _environment.from_string(CHAT_TEMPLATE)


def render(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, open_turn: bool = False) -> str:
    """Render a dialogue as text. open_turn: whether to end it with the beginning of an assistant's turn."""
    return _template.render(messages=messages, tools=tools, add_generation_prompt=open_turn)
