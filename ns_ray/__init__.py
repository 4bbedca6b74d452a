"""Noisy Student self-training for image classification, distributed with Ray.

    import ns_ray

    run = ns_ray.self_train("data/train", "data/pile", test="data/test",
                            teacher="efficientnet_b0", out="runs/birds")
    model = ns_ray.load("runs/birds")
    labels = ns_ray.label("runs/birds", "data/pile", out="labels")

Importing this package pulls in neither torch nor ray.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
