"""A corpus through a model on a training worker: for what is fitted before and after a training.

The images are those of evaluation, the arithmetic is fp32. Knows nothing about Ray.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ns_ray.data import Normalize, eval_pixels
from ns_ray.model import preprocessing
from ns_ray.store import Corpus

BATCH = 64

Array = np.ndarray[Any, Any]


def forward(
    model: nn.Module,
    corpus: Corpus,
    device: torch.device,
    answer: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[Array, Array]:
    """What a model makes of labeled images.

    Args:
        model: of timm, on the device; in eval mode meanwhile.
        corpus: labeled images.
        device: where it computes.
        answer: normalized images [batch, 3, height, width] -> rows [batch, ...].

    Returns:
        float32 [rows, ...], and labels int64 [rows].

    Raises:
        ImageError: an image cannot be decoded.
    """
    spec = preprocessing(model)
    normalize = Normalize(spec, device)
    training, found, labels = model.training, [], []
    model.eval()
    for _, table in corpus.scan(["image", "label"]):
        labels.append(table["label"].to_numpy())
        images = [image.as_buffer().to_pybytes() for image in table["image"]]
        for at in range(0, len(images), BATCH):
            pixels = np.stack([eval_pixels(data, spec) for data in images[at : at + BATCH]])
            with torch.inference_mode():
                rows = answer(normalize(torch.from_numpy(pixels).to(device)))
            found.append(rows.float().cpu().numpy())
    model.train(training)
    return np.concatenate(found), np.concatenate(labels)
