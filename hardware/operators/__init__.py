"""Operators as what runs: their primitives, weights, ONNX graphs and torch modules."""
