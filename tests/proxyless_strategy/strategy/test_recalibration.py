"""Batch-norm statistics of one subnet."""

import pytest
import torch

from hardware.errors import ConfigError
from proxyless_strategy.strategy.recalibration import first_of_batch


def test_batches_without_a_clear_input_are_refused_with_a_way_out():
    with pytest.raises(ConfigError, match="inputs="):
        first_of_batch({"image": torch.zeros(1)})
