"""Search spaces made of timm's own models: the model is read, declared as data, and inherited weight by weight."""
