"""Train an exported network from fresh weights, by a recipe."""
