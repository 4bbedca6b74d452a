"""timm models, and the folders they are kept in.

In go settings, weights and encoded images; out come networks, bundles and class probabilities: the
one path by which labeling, scoring and serving predict. Knows nothing about who asks, Ray or runs.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
