"""Writes the log records of the cluster's own packages to standard error, as text or as one JSON object per line.

A record's `fields` (given as `extra={"fields": {...}}`) become members of that object; text lines end with them.
"""

import datetime
import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

PACKAGES = ("cluster", "router", "workers", "kernels")
Format = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error"]


def describe(error: BaseException) -> str:
    """An error in words: its message, or its type's name if the message is empty, as timeouts' messages are."""
    return str(error) or type(error).__name__


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How a process logs. format: "text" or "json". level: the lowest level that is written."""

    format: Format = "text"
    level: Level = "info"


class JsonLines(logging.Formatter):
    """Formats a record as a JSON object. always: members of every object, e.g. the writing process's name."""

    def __init__(self, always: Mapping[str, Any]) -> None:
        super().__init__()
        self._always = dict(always)
        self._encode = json.JSONEncoder(ensure_ascii=False, default=str).encode

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON, without a line break."""
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._always,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return self._encode(line)


class TextLines(logging.Formatter):
    """Formats a record as a line of text. always: values that precede each logger's name."""

    def __init__(self, always: Mapping[str, Any]) -> None:
        who = " ".join(str(value) for value in always.values())
        super().__init__(f"%(asctime)s %(levelname)s {who + ' ' if who else ''}%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The record as text, without a final line break."""
        fields = getattr(record, "fields", {})
        return super().format(record) + "".join(f" {key}={value}" for key, value in fields.items())


def set_up(settings: LogSettings, **always: str) -> None:
    """From now on write this process's records to standard error only. always: fields of every record."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter((JsonLines if settings.format == "json" else TextLines)(always))
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.handlers = [handler]
        logger.setLevel(settings.level.upper())
        logger.propagate = False
