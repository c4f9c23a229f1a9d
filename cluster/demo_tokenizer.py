"""The demo checkpoint's tokenizer and chat template, in the family's format."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

END_OF_TEXT = "<|endoftext|>"
ROLE_END = "<|role_end|>"
_HIDDEN = ["<|startoftext|>", END_OF_TEXT, ROLE_END, "<role>", "</role>"]
_SHOWN = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
_SHOWN += ["<tools>", "</tools>"]
# Up to a multiple of 8, so that the vocabulary splits over ranks.
_SPARE = [f"<|reserved_{i}|>" for i in range(3)]

CHAT_TEMPLATE = """\
{%- set opening = messages[0].content if messages[0].role == 'system' else '' -%}
<role>SYSTEM</role>
{%- if opening %}{{ opening }}{{ '\\n' }}{% endif -%}
{%- if tools -%}
{{ '# Tools\\n\\nYou may call one or more of these functions to help the user. Their signatures:\\n<tools>' }}
{%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}
{{- '\\n</tools>\\n\\nFor each call give its name and arguments as one JSON object within <tool_call> tags:\\n' }}
{{- '<tool_call>\\n{"name": <function>, "arguments": <object>}\\n</tool_call>\\n' }}
{%- endif -%}
{%- if 'detailed thinking on' not in opening and 'detailed thinking off' not in opening -%}
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


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE without merges: a token a byte, then the family's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in _HIDDEN + _SPARE])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in _SHOWN])
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|startoftext|>",
        "eos_token": ROLE_END,
        "pad_token": END_OF_TEXT,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
