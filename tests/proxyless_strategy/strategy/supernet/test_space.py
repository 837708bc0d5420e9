"""Which spaces become supernets."""

import pytest
from nni.nas.nn.pytorch import InputChoice, ModelSpace

from hardware.errors import UnsupportedSpaceError
from proxyless_strategy.strategy.proxyless import ProxylessStrategy
from tests.proxyless_strategy.strategy.spaces import Scale


class ThreeInputs(ModelSpace):
    def __init__(self):
        super().__init__()
        self.inputs = InputChoice(3, 2, label="several")

    def forward(self, x):
        return self.inputs([x, x, x])


class Fixed(ModelSpace):
    def __init__(self):
        super().__init__()
        self.layer = Scale(1.0)

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(("space", "words"), [(ThreeInputs, "several"), (Fixed, "nothing to choose")])
def test_unsearchable_spaces_are_refused_by_name(space, words):
    with pytest.raises(UnsupportedSpaceError, match=words):
        ProxylessStrategy().mutate_model(space())
