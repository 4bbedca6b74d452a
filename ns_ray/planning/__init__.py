"""What can be said about a run without doing it.

In go settings and a run's files; out come findings about what will not work, a plan of images,
memory and time, and what is done and missing. Knows nothing about how a stage works.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
