"""A trained model over HTTP, on Ray Serve.

In go a bundle, settings and POSTs of encoded images; out come their most probable classes. Knows
the predictor, and nothing about corpora, runs or training.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
