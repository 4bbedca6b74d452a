"""The paper's steps 1 and 3: teacher, student and control arm are trained by one `fit`.

In go a labeled corpus, a selection where there is one, and settings; out comes a bundle. Knows
nothing about generations, labeling or scores.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
