"""Images for a search, from the name in a config to seeded batches.

`sources.load_data` is the way in. It asks one module per kind of source, which knows `pictures` (decoding, channels,
moments) and `images` (the parts and their loaders); those know `datasets`, `transforms`, `batches` and `split`.
"""
