"""`python -m proxyless_strategy.cli`."""

import sys

from .main import main

sys.exit(main())
