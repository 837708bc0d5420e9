"""How operators and whole nets are timed, and how true the resulting table is."""
