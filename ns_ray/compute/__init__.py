"""The machine or cluster that work is done on.

In go settings, calls and Ray Data pipelines; out come workers' sizes, results as they finish, and
errors of ours in place of Ray's. Starts and finds Ray. Knows nothing about what the work is.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
