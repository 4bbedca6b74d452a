"""The noises of training as settings: which act, how strongly, and on which images (paper, 2).

Knows nothing about how they are carried out (see data/augment.py and model/networks.py).
"""

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from ns_ray.config.validation import Fraction, Settings

Stream = Literal["labeled", "unlabeled"]
NoiseName = Literal[
    "randaugment", "erase", "crop", "flip", "dropout", "stochastic_depth", "mixup", "cutmix"
]


class NoiseConfig(Settings):
    """Student noise (paper section 2). On in training only; never while labeling or evaluating."""

    randaugment: str | None = "rand-m9-mmax30-n2-p1.0"
    """timm's RandAugment string. `p1.0` applies every drawn operation and `mmax30` lifts the cap
    on the magnitude: plain `rand-m27-n2` is silently magnitude 10 at probability 0.5. null: off."""
    translate: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Share of the width by which RandAugment shifts an image at magnitude 10; it grows with the
    magnitude. null: as the authors have it, 4 px of 32 for images of at most 64 px, otherwise 100
    px, but at most 0.45. Images that were smaller before they were enlarged need it."""
    erase: Fraction = 0.0
    """Probability of erasing a random rectangle (timm's RandomErasing; stands in for Cutout)."""
    crop_scale: tuple[float, float] | None = (0.08, 1.0)
    """Area range of the random resized crop. null: no resized crop."""
    crop_padding: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Shift by padding this fraction of the image size on each side (reflected) and cropping back;
    the usual augmentation of small images, used instead of `crop_scale`."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Dropout before the classifier."""
    stochastic_depth: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Drop rate of the last block; linear over the blocks (survival 0.8 in the paper)."""
    mixup: float = Field(default=0.0, ge=0.0)
    """Mixup (arXiv 1710.09412): images and targets are averaged with those of another image of the
    batch, labeled with labeled and pseudo-labeled with pseudo-labeled. The parameter of its Beta
    distribution, such as 0.2. 0: off. With `cutmix` above 0 too, each batch gets one of the two."""
    cutmix: float = Field(default=0.0, ge=0.0)
    """CutMix (arXiv 1905.04899): the same, but a rectangle of the other image is pasted in. The
    parameter of its Beta distribution, such as 1. 0: off."""
    off_labeled: tuple[NoiseName, ...] = ()
    """Noises that labeled images do without."""
    off_unlabeled: tuple[NoiseName, ...] = ()
    """Noises that pseudo-labeled images do without (the paper's ablation)."""

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Runs from before there were these stay what they are, and are not made again."""
        values: dict[str, Any] = dump(self)
        for name, default in (("translate", None), ("mixup", 0.0), ("cutmix", 0.0)):
            if getattr(self, name) == default:
                values.pop(name, None)
        return values

    @field_validator("randaugment")
    @classmethod
    def _timm_string(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("rand"):
            raise ValueError(
                f"{value!r} is not a RandAugment string such as rand-m9-mmax30-n2-p1.0"
            )
        return value

    @model_validator(mode="after")
    def _one_crop(self) -> "NoiseConfig":
        if self.crop_scale is not None:
            low, high = self.crop_scale
            if not 0 < low <= high <= 1:
                raise ValueError(f"crop_scale {self.crop_scale} must be 0 < low <= high <= 1")
        return self

    def mixing(self, stream: Stream) -> tuple[float, float]:
        """Parameters of mixup and CutMix on a stream, 0 where they are off."""
        off = self._off(stream)
        return ("mixup" not in off) * self.mixup, ("cutmix" not in off) * self.cutmix

    def unmixed(self) -> "NoiseConfig":
        """The same without what mixes images."""
        return self.model_copy(update={"mixup": 0.0, "cutmix": 0.0})

    def live(self, stream: Stream) -> str:
        """The noises that act on a stream in training, in words."""
        crop = None
        if self.crop_padding:
            crop = f"shift {self.crop_padding:g}"
        elif self.crop_scale is not None:
            crop = "crop {:g}-{:g}".format(*self.crop_scale)
        words: dict[NoiseName, str | None] = {
            "crop": crop,
            "flip": f"flip {self.flip:g}" if self.flip else None,
            "randaugment": self.randaugment,
            "erase": f"erase {self.erase:g}" if self.erase else None,
            "dropout": f"dropout {self.dropout:g}" if self.dropout else None,
            "stochastic_depth": f"stochastic depth {self.stochastic_depth:g}"
            if self.stochastic_depth
            else None,
            "mixup": f"mixup {self.mixup:g}" if self.mixup else None,
            "cutmix": f"cutmix {self.cutmix:g}" if self.cutmix else None,
        }
        off = self._off(stream)
        return ", ".join(w for n, w in words.items() if w and n not in off) or "none"

    def _off(self, stream: Stream) -> tuple[NoiseName, ...]:
        return self.off_labeled if stream == "labeled" else self.off_unlabeled
