"""The names of every file in a run folder, in one place."""

from __future__ import annotations

SUMMARY = "summary.json"


MODEL, CHECKPOINT = "model", "retrain.ckpt"


CONFIG_FILE = "config.json"
SEARCH_FILE = "search.json"
TABLE_FILE = "table.yml"


RESULT = "result.json"
OUT_VARIABLE = "PROXYLESS_OUT"
"""Environment variable that replaces the config's `out`; `proxyless experiment --out` sets it."""
PRESET_VARIABLE = "PROXYLESS_PRESET"
"""Environment variable that chooses one of the config's presets, also under plain nnictl."""
