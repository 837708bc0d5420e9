"""One export folder for all tests that only read it."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from tests.proxyless_strategy.export.samples import a_subnet, export


@pytest.fixture(scope="package")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    return export(tmp_path_factory.mktemp("export") / "net", a_subnet(stem_stride=1))
