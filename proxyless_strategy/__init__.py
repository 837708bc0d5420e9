"""How a space is searched."""
