"""What an inference job is told to do, as plain values."""

from dataclasses import dataclass

from ns_ray.config import Decode, NoiseConfig, PredictConfig


@dataclass(frozen=True)
class InferenceJob:
    """A packed corpus through a model: what goes in, and what is written of it.

    Attributes:
        bundle, corpus: folders of the model and of the images.
        out: folder of the files of probabilities.
        fingerprint: of the job's inputs; part of the file names.
        batch_size: images in a forward pass.
        predict: how images go through the model.
        top_k: probabilities kept per row; None keeps all.
        noise: for model and images; None, but for an ablation.
        among: write probabilities among these classes only. None: all.
        others: folders of further models of the same classes; the mean of the probabilities of all
            is written.
        known: folders of labeled images of the model's classes, those it has learnt and those that
            were held out: write how foreign each row is to them.
        decode: where images are decoded; see `label.decode`.
    """

    bundle: str
    corpus: str
    out: str
    fingerprint: str
    batch_size: int
    predict: PredictConfig
    top_k: int | None = None
    noise: NoiseConfig | None = None
    among: tuple[int, ...] | None = None
    others: tuple[str, ...] = ()
    known: tuple[str, str] | None = None
    decode: Decode = "auto"

    @property
    def bundles(self) -> tuple[str, ...]:
        """Folders of all models."""
        return (self.bundle, *self.others)
