"""What a person should look at: images of the pile to label next, labels that may be wrong.

In go a run, or the labeled images of a config; out come folders with a table and a page for people.
Knows nothing about how a student is taught.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
