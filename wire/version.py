"""The version of the whole: pyproject.toml and /openapi.json take it from here."""

VERSION = "0.1.0"
