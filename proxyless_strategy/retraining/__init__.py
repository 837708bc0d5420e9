"""Train an exported network by a recipe, from fresh weights or from its own."""
