"""The paper's step 2: a teacher labels the pile.

In go a bundle and a corpus; out come the probabilities of every image, in a file per shard. Knows
nothing about what is done with them, or about generations.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
