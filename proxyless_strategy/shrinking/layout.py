"""The names of what a shrinking writes into its folder; beside them lie those of `proxyless_strategy.layout`."""

from __future__ import annotations

SETTINGS_FILE = "shrink.json"
"""What the user has set; only a shrinking with the same goes on there."""
TABLE_FILE = "table.yml"
"""The latency table, unless `hardware.table` names another one."""
START, ORIGINAL = "start", "original"
"""timm's export folders of the original: from which the search starts, and which the subnet is compared with."""
SEARCH = "search"
"""The run folder of the search; the subnet is its `model`."""
COMPARISON_FILE, PICTURE_FILE = "comparison.json", "comparison.png"
"""The result; the presence of the first says that nothing is left to do."""
