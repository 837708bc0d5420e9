"""NNI's grid search, after a look at what the trials need: nnictl then says what is missing before any trial starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from nni.algorithms.hpo.gridsearch_tuner import GridSearchTuner

SECONDS = 7
"""NNI gives up on a tuner that does not connect within 10; a look that takes longer is left to the trials."""


class CheckedGridSearch(GridSearchTuner):
    """Grid search over the search space of an nnictl config.

    Args:
        search: The search config's file beside this one.
    """

    def __init__(self, search: str):
        config = Path(__file__).with_name(search)
        command = [sys.executable, "-W", "ignore", "-m", "proxyless_strategy.trial", str(config), "--check"]
        try:
            subprocess.run(command, check=True, timeout=SECONDS, stderr=subprocess.PIPE, text=True)
        except subprocess.TimeoutExpired:
            pass
        except subprocess.CalledProcessError as error:
            print(f"\n{error.stderr.strip()}\n", file=sys.stderr, flush=True)
            sys.exit(error.returncode)
        super().__init__()
