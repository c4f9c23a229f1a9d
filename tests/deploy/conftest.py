"""Fixtures with the chart, rendered with each of its example values."""

import pytest

from tests.deploy.chart import NAMES, Rendered, example


@pytest.fixture(params=NAMES)
def rendered(request: pytest.FixtureRequest) -> Rendered:
    return example(request.param)
