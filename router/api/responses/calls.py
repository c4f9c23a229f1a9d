"""Converts calls of tools that are no functions to the client, from the model's JSON to the client's items and back."""

import json
from collections.abc import Mapping
from typing import Any

from router.api.answers.items import ClientCall, CustomCallItem, ShellAction, Status
from router.api.request import Call
from router.api.responses.ids import ItemIds
from router.api.responses.tools import SHELL, Origin, function_name
from router.errors import Path

Item = Mapping[str, Any]  # as it is stored


def client_call(origin: Origin, arguments: str, status: Status, new_id: ItemIds) -> ClientCall:
    """The client's item for a call that the model made of a tool that is no function to the client."""
    content = _object(arguments)
    if origin.kind == "local_shell":
        head, call_id = new_id("lsh"), new_id("call")
        action = _action(content, arguments)
        return {"id": head, "type": "local_shell_call", "status": status, "call_id": call_id, "action": action}
    given = content.get("input")
    item: CustomCallItem = {
        "id": new_id("ctc"),
        "type": "custom_tool_call",
        "status": status,
        "call_id": new_id("call"),
        "name": origin.name,
        "input": given if isinstance(given, str) else arguments,
    }
    if origin.namespace is not None:
        item["namespace"] = origin.namespace
    return item


def lowered_call(item: Item, at: Path) -> Call:
    """The call as the model made it, from the client's item."""
    match item["type"]:
        case "custom_tool_call":
            name, arguments = item["name"], json.dumps({"input": item["input"]}, ensure_ascii=False)
        case "local_shell_call":
            action = item["action"]
            asked = {k: action[k] for k in ("command", "working_directory", "timeout_ms") if action.get(k) is not None}
            name, arguments = SHELL, json.dumps(asked, ensure_ascii=False)
        case _:
            name, arguments = item["name"], item["arguments"]
    return Call(item["call_id"], function_name(name, item.get("namespace")), arguments, at)


def _object(arguments: str) -> dict[str, Any]:
    try:
        content = json.loads(arguments)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _action(content: dict[str, Any], arguments: str) -> ShellAction:
    """The command to run. If the model wrote a single text or unreadable arguments, a shell runs that text."""
    command, folder, timeout = content.get("command"), content.get("working_directory"), content.get("timeout_ms")
    if not isinstance(command, list):
        command = ["bash", "-lc", command if isinstance(command, str) else arguments]
    return {
        "type": "exec",
        "command": [str(part) for part in command],
        "env": {},
        "timeout_ms": timeout if isinstance(timeout, int) else None,
        "user": None,
        "working_directory": folder if isinstance(folder, str) else None,
    }
