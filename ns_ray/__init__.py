"""Noisy Student self-training for image classification, distributed with Ray.

Importing this package pulls in neither torch nor ray; import the stage you need.
"""

__version__ = "0.1.0"
