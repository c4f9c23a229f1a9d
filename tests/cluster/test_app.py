"""Tests the settings of the application's Serve deployments."""

from typing import Any

import pytest

from cluster.app import application
from cluster.parse import parse
from cluster.resolve import resolve


def options(gpus: int, **settings: Any) -> dict[str, Any]:
    """Each deployment's settings, by name."""
    found: dict[str, Any] = {}
    waiting: list[Any] = [application(resolve(parse({"model": "tests/golden/tp4", **settings}), gpus))]
    while waiting:
        bound = waiting.pop()._bound_deployment
        found[bound.name] = bound._deployment_config
        for argument in bound.init_args:
            waiting += [
                a for a in (argument if isinstance(argument, list) else [argument]) if hasattr(a, "_bound_deployment")
            ]
    return found


@pytest.mark.parametrize(
    ("gpus", "settings", "pools", "router"),
    [
        (0, {}, 100, 100),
        (8, {}, 0, 100),  # a worker beyond the pool's number may find no GPU, and would be waited for
        (8, {"surge": "50"}, 50, 50),
        (0, {"surge": 0}, 0, 0),
    ],
)
def test_new_workers_serve_before_old_ones_end_if_there_is_room(
    gpus: int, settings: dict[str, Any], pools: int, router: int
) -> None:
    found = options(gpus, **settings)
    surges = {name: config.max_surge_percent for name, config in found.items()}
    assert surges == {"Prefill": pools, "Decode": pools, "Router": router, "Directory": 0}
    assert all(config.rolling_update_percentage < 0.5 for config in found.values())
    # Draining comes to its end before Serve cuts it off.
    assert all(found[n].graceful_shutdown_timeout_s > 5.0 for n in ("Prefill", "Decode", "Router"))
