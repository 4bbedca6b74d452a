"""How much a model bears: common corruptions, small perturbations, and attacks.

In go bundles and a test corpus; out come error rates, mCE and mFR. Knows nothing about training or
the driver. Definitions and sources: docs/robustness.md.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
