"""What joins router and engine starts from the router's own fixtures."""

from tests.router.conftest import checkpoint, stage

__all__ = ["checkpoint", "stage"]
