"""Ids of responses and their items."""

import uuid


def new_id(prefix: str) -> str:
    """A new, unique id."""
    return f"{prefix}_{uuid.uuid4().hex}"
