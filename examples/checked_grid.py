"""NNI's grid search, after a look at what the trials need: nnictl then says what is missing before any trial starts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from nni.algorithms.hpo.gridsearch_tuner import GridSearchTuner

SECONDS = 6
"""After the start of this process; NNI gives up on a tuner that does not connect within 10. A look that takes longer
is left to the trials."""


class CheckedGridSearch(GridSearchTuner):
    """Grid search over the search space of an nnictl config.

    Args:
        search: The search config's file beside this one.
    """

    def __init__(self, search: str):
        if "PROXYLESS_EXPERIMENT" not in os.environ:  # `proxyless experiment` has looked more closely
            self._look(Path(__file__).with_name(search))
        super().__init__()

    def _look(self, config: Path) -> None:
        left = psutil.Process().create_time() + SECONDS - time.time()
        command = [sys.executable, "-W", "ignore", "-m", "proxyless_strategy.trial", str(config), "--check"]
        try:
            subprocess.run(command, check=True, timeout=max(left, 0), stderr=subprocess.PIPE, text=True)
        except subprocess.TimeoutExpired:
            pass
        except subprocess.CalledProcessError as error:
            print(f"\n{error.stderr.strip()}\n", file=sys.stderr, flush=True)
            sys.exit(error.returncode)
