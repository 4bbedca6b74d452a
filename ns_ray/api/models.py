"""`ns_ray.load`: a model, to predict with and to build on."""

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeGuard, overload

from ns_ray.api.caller import kept
from ns_ray.config import PredictConfig, validate
from ns_ray.errors import ConfigError
from ns_ray.store import Bundle, open_bundle

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from PIL.Image import Image
    from torch import nn

    from ns_ray.model import Predictor

DEVICES = re.compile(r"auto|cpu|cuda(:\d+)?")

LONGER = 10
"""Times as many images as before for which it is looked again what runs the model fastest."""


def load(
    path: str | os.PathLike[str],
    *,
    device: str = "auto",
    predict: Mapping[str, Any] | None = None,
) -> "Model":
    """A model, not yet in memory.

    Args:
        path: a run folder (the model that it delivers), a bundle, or a timm local-dir; local or a
            URI.
        device: auto (CUDA where there is some), cpu, cuda, or one of several, such as cuda:1.
        predict: settings of run.yaml's section `predict`, such as `{"precision": "fp32"}`.

    Raises:
        ConfigError: there is no model, or a setting is wrong.
        DataError: it is half-written, or damaged.
    """
    if not DEVICES.fullmatch(str(device)):
        raise ConfigError(f"device={device!r} must be auto, cpu, cuda, or such as cuda:1")
    return Model(
        open_bundle(os.fspath(path)),
        str(device),
        validate(PredictConfig, predict or {}, origin="load"),
    )


@dataclass(frozen=True)
class Prediction:
    """What a model sees in an image.

    Attributes:
        filename: the image's file or URI; `image 3` of one that was given as an object.
        label: the likeliest class; None where the image cannot be used.
        score: its probability.
        top: (class, probability) of the `top_k` likeliest, the likeliest first.
        error: why the image cannot be used; None where it can.
    """

    filename: str
    label: str | None
    score: float | None
    top: tuple[tuple[str, float], ...]
    error: str | None = None


class Predictions(Sequence[Prediction]):
    """What a model sees in images, one after the other. In a notebook it shows a table."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        """
        Args:
            rows: of `to_arrow`, those of each image together.
        """
        from ns_ray.labeling import of_each_image

        self._rows = list(rows)
        self._images = [_prediction(entries) for entries in of_each_image(self._rows)]

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Prediction]: ...
    def __getitem__(self, index: int | slice) -> Prediction | Sequence[Prediction]:
        return self._images[index]

    def __len__(self) -> int:
        return len(self._images)

    def __repr__(self) -> str:
        from ns_ray.labeling import write_rows

        text = io.StringIO()
        write_rows(self._rows, "table", text)
        return text.getvalue().rstrip()

    def _repr_html_(self) -> str:
        return str(self.to_pandas().to_html(index=False))

    def to_arrow(self) -> "pa.Table":
        """A row per image and rank: filename, rank (from 1), index (of the class), label, prob,
        error, as `ns-ray predict --format parquet` writes them."""
        import pyarrow as pa

        from ns_ray.labeling import SCHEMA

        return pa.Table.from_pylist(self._rows, SCHEMA)

    def to_pandas(self) -> "pd.DataFrame":
        """The same as a data frame. pandas comes with ray[data]."""
        return self.to_arrow().to_pandas()


def _prediction(entries: Sequence[Mapping[str, Any]]) -> Prediction:
    first = entries[0]
    top = tuple((e["label"], e["prob"]) for e in entries if e["error"] is None)
    return Prediction(first["filename"], first["label"], first["prob"], top, first["error"])


class Model:
    """A model folder, loaded when it is first asked for something: again in each process that it is
    sent to. It is a path, too: `ns_ray.label` takes it as a bundle, `self_train` as a teacher.

    Attributes:
        bundle: what is known of the folder: its path, classes, and provenance.
    """

    def __init__(self, bundle: Bundle, device: str, config: PredictConfig) -> None:
        self.bundle = bundle
        self._device, self._config = device, config
        self._predictor: Predictor | None = None
        self._for_images = 0

    def __reduce__(self) -> tuple[type["Model"], tuple[Bundle, str, PredictConfig]]:
        return Model, (self.bundle, self._device, self._config)

    def __fspath__(self) -> str:
        return self.path

    @property
    def path(self) -> str:
        """The folder."""
        return self.bundle.path

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the network's outputs."""
        return self.bundle.classes

    def predict(
        self,
        images: "str | os.PathLike[str] | bytes | Image | np.ndarray[Any, Any] | Iterable[Any]",
        *,
        top_k: int = 5,
    ) -> Predictions:
        """What the model sees in images: averaged weights, eval mode, clean center crop.

        Args:
            images: one, or several in a list or an iterator: a path, URL, folder or any other
                source of images; the bytes of an image file; a PIL image; an array, uint8 [height,
                width] or [height, width, 3].
            top_k: classes per image.

        Raises:
            ConfigError: an argument is none of these, there is no such device, or this process was
                forked from one that has predicted.
            DataError: a source is missing. An image that cannot be used is a prediction with an
                `error`.
        """
        asked: Any = top_k
        if not isinstance(asked, Integral) or asked < 1:
            raise ConfigError(f"top_k={top_k!r} must be a whole number, at least 1")
        from ns_ray.labeling import predicted

        several = list(images) if _are_several(images) else [images]
        listed = [item for i, image in enumerate(several) for item in _items(image, i)]
        with kept():
            return Predictions(list(predicted(self._ready(len(listed)), listed, top_k=top_k)))

    def _ready(self, images: int) -> "Predictor":
        """What predicts, made for about so many images."""
        from ns_ray.model import Predictor

        _check_not_forked()
        _check_device(self._device)
        if self._predictor is None or images > LONGER * self._for_images:
            self._for_images = max(images, 1)
            self._predictor = Predictor(
                self.path, config=self._config, device=self._device, images=self._for_images
            )
        self._predictor.take_threads()  # the caller got his own back after the last images
        return self._predictor

    @cached_property
    def network(self) -> "nn.Module":
        """The timm module: float32, in eval mode, on the CPU. Its logits' softmax is calibrated.

        Raises:
            ConfigError: the folder is gone since `load`.
            DataError: timm cannot load it.
        """
        from ns_ray.model import load as load_model

        with kept():
            return load_model(self.bundle)[0]

    @cached_property
    def transform(self) -> Any:
        """PIL image -> float32 tensor [3, size, size] as the network takes it: timm's own
        evaluation transform for it."""
        from timm.data import create_transform, resolve_model_data_config

        return create_transform(**resolve_model_data_config(self.network), is_training=False)

    def __repr__(self) -> str:
        what, classes = self.bundle.architecture, self.classes
        known = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
        return f"Model({self.path!r}: {what}, {len(classes)} classes: {known})"


_predicted_in: int | None = None
"""The process that has predicted first."""


def _check_not_forked() -> None:
    """Fail where torch would wait for ever: for threads that a fork does not have.

    Raises:
        ConfigError: this process was forked from one that has predicted.
    """
    global _predicted_in
    if _predicted_in not in (None, os.getpid()):
        raise ConfigError(
            "this process was forked from one that has predicted, and torch cannot work in it; "
            "start processes with multiprocessing.get_context('spawn')"
        )
    _predicted_in = os.getpid()


def _check_device(device: str) -> None:
    import torch

    name, _, index = device.partition(":")
    if name == "cuda" and int(index or 0) >= (count := torch.cuda.device_count()):
        raise ConfigError(
            f"device={device!r}, but torch sees {count} CUDA devices; 'auto' takes what is there"
        )


def _are_several(images: Any) -> TypeGuard[Iterable[Any]]:
    """Whether images are more than one: a list, or what goes through some, but not an open file,
    which goes through its lines."""
    some = isinstance(images, list | tuple | Iterator)
    return some and not isinstance(images, io.IOBase)


def _items(image: Any, index: int) -> "Iterator[Any]":
    """The images that one argument stands for."""
    from ns_ray.data import Item, in_memory, list_source

    if isinstance(image, str | os.PathLike):
        yield from list_source(os.fspath(image), setting="images").each()
        return
    yield Item(key=str(index), uri=f"image {index}", place=in_memory(image))
