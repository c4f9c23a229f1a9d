"""A checkpoint's tokenizer configuration, for clients that tokenize or render by themselves."""

import json
from pathlib import Path
from typing import Any


def tokenizer_info(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json with special tokens as texts, and with the `chat_template` that is in use."""
    file = folder / "tokenizer_config.json"
    info: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    for name, value in info.items():
        if isinstance(value, dict) and isinstance(value.get("content"), str):
            info[name] = value["content"]
    template = folder / "chat_template.jinja"
    if template.is_file():
        info["chat_template"] = template.read_text()
    return info
