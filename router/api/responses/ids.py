"""Ids of responses and their items."""

import uuid


def new_id(prefix: str) -> str:
    """An id nobody else has."""
    return f"{prefix}_{uuid.uuid4().hex}"
