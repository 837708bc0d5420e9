"""Options are checked once; former names go on working."""

import pytest

from hardware.errors import ConfigError
from proxyless_strategy.strategy.proxyless import ProxylessStrategy


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "darts"},
        {"estimator": "best"},
        {"paths": "some"},
        {"steps_per_update": 0},
        {"samples": 1},
        {"warmup_epochs": -1},
        {"target": 0.5},
        {"slack": 1.5},
        {"finalists": 0},
        {"weight_paths": "best"},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError):
        ProxylessStrategy(**options)
