"""Files of a run, on a local disk or in an object store.

In go bytes, tables and facts; out come files that appear whole or not at all, and light frozen
values read back from them: Corpus, Bundle, PseudoLabels, Selection, Evaluation. Knows where
everything of a run lies and how its tables look, and nothing about how their content is made.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
