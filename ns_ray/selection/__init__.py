"""Filtering and balancing: which pseudo-labeled rows train the student.

In go pseudo-labels, settings and what the teacher says of validation images; out come rows with
their classes, and how many copies of each. Knows nothing about images, models or training.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
