"""`python -m proxyless_strategy.cli`."""

from .main import main

main()
