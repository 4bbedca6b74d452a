"""Grids of runs over seeds, which share all the work they have in common.

In go a recipe and named lists of settings; out come a run for each, and a table, CSV and plot of
the outcomes. Knows the driver, and nothing about what the settings mean.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
