"""How models are scored, on test images as they are and changed."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from ns_ray.config.validation import Settings

Suite = Literal["corruptions", "perturbations", "adversarial"]
Severity = Annotated[int, Field(ge=1, le=5)]


class RobustnessConfig(Settings):
    """What is done to test images to see how much a model bears (docs/robustness.md). Needs the
    extra `robustness` for corruptions and perturbations."""

    suites: tuple[Suite, ...] = ("corruptions", "perturbations", "adversarial")
    """corruptions: ImageNet-C. perturbations: ImageNet-P. adversarial: FGSM and PGD."""
    images: int = Field(default=500, ge=1)
    """Test images that are corrupted and attacked: those with the lowest hash of key and seed."""
    sequences: int = Field(default=100, ge=1)
    """Test images that are made into perturbation sequences of 16 to 41 frames."""
    severities: tuple[Severity, ...] = (1, 2, 3, 4, 5)
    """How strongly each corruption is applied."""
    extra: bool = True
    """Also the 4 extra corruptions and 4 extra perturbations, which no mean counts."""
    constants: Literal["auto", "imagenet", "cifar"] = "auto"
    """Strengths for 224 pixels (ImageNet-C) or 32 pixels (CIFAR-C). auto: by the size of the test
    images, those for 32 pixels where the median short side is below 85."""
    released_corruptions: str | None = None
    """Folder of the released ImageNet-C (name/severity/class/image), used instead of making them.
    """
    released_perturbations: str | None = None
    """Folder of the released ImageNet-P (name/class/video), used instead of making them."""
    baseline: str | None = None
    """Bundle that errors are related to. null: the first teacher, in a run."""
    before_fixres: bool = False
    """In a run: also score models with `fixres` as they were before it, at the resolution of their
    training. The paper scores ImageNet-C and -P without it."""
    epsilons: tuple[Annotated[float, Field(gt=0)], ...] = (2, 4, 8, 16)
    """Largest change of a pixel by an attack, on the scale 0 to 255."""
    pgd_steps: int = Field(default=10, ge=1)
    """Steps of PGD, each 2.5 * epsilon / steps long."""
    seed: int = Field(default=0, ge=0)
    """Decides, with the key of an image, which images are taken and how each is corrupted."""

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is as it always was is not written: a run from before stays valid."""
        values: dict[str, Any] = dump(self)
        if not self.before_fixres:
            values.pop("before_fixres", None)
        return values


class EvaluateConfig(Settings):
    """How models are scored."""

    batch_size: int = Field(default=64, ge=1)
    """Images in one forward pass."""
    top_k: int = Field(default=5, ge=1)
    """The k of top-k accuracy (less with fewer classes)."""
    subset: bool = False
    """Choose among the classes of the scored images only, not all that the model knows: ImageNet-A,
    -O and -R are scored so."""
    robustness: RobustnessConfig | None = None
    """Also score corrupted, perturbed and attacked test images. null: no."""
