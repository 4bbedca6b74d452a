"""How good a model is on labeled images.

In go a bundle and a labeled corpus; out come accuracy and its relatives, with the predictions they
come from for paired tests. Knows nothing about training or the driver.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
