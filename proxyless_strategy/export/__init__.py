"""A trained network as files that others open: timm folder, torch.hub, ONNX."""
