"""Makes the router's fixtures available to tests of router and engine together."""

from tests.router.conftest import checkpoint, stage

__all__ = ["checkpoint", "stage"]
