"""Images on their way in, and what training does to them.

In go folders, tables, tars and packed corpora; out come corpora of verified images in Parquet
shards, and later the pixels of an image, plain or with input noise. Knows nothing about models,
generations or pseudo-labels.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
