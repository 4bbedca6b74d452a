"""The settings of a run.

In go YAML files, recipes and `--set` values; out come frozen, validated models, one per stage, and
what each stage takes from them. Knows nothing about files of a run, Ray, torch or images.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
