"""The over-parameterised network: NNI's choices, each running the one path that it is told to run."""
