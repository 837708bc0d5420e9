"""Data in parts: from a folder, a torchvision data set or a function to batches."""
