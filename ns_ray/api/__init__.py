"""What a program asks for, and what the commands do: a whole run, a labeling, a model.

In go settings, by the names that run.yaml has for them; out come values with the result, and files
on the way. Knows nothing about the method, the words of a command line, or exit codes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
