"""The algorithm: gates, update rules, supernet, exact derivation. Knows no config, no data, no files."""
