"""The version of the whole project; pyproject.toml and /openapi.json read it from here."""

VERSION = "0.1.0"
