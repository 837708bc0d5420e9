"""Learning-rate schedulers of every kind and form."""

import pytest

from tests.proxyless_strategy import tiny
from tests.proxyless_strategy.tiny import STEPS


@pytest.mark.parametrize(
    ("kind", "rates"),
    [
        ("step", [0.05 * 0.9**n for n in range(1, 1 + 3 * STEPS)]),
        ("epoch", [0.05 * 0.5 ** (n // STEPS) for n in range(3 * STEPS)]),
        ("plateau", [0.05, 0.025, 0.0125]),
    ],
)
def test_schedulers_of_every_kind(kind, rates):
    module = tiny.Module(kind)
    tiny.searched(module=module, epochs=3, warmup_epochs=0)
    found = module.rates if kind != "plateau" else module.rates[::STEPS]
    assert found == pytest.approx(rates)
