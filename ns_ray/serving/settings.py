"""The settings of a server. Knows nothing about torch, Ray or HTTP."""

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ns_ray.config import PredictConfig, Settings

PORTS = {"http": 80, "https": 443}
"""Which browsers leave out."""


def _origin(text: str) -> str:
    """An origin as browsers send it.

    Raises:
        ValueError: it is none.
    """
    if text == "*":
        return text
    scheme, host, *rest = urlsplit(text.strip().lower().rstrip("/"))
    if scheme not in PORTS or not host or set(host) & set("*@ ") or any(rest):
        raise ValueError(
            "must be scheme and host, such as https://shop.example or http://localhost:3000, "
            "without a path; * alone stands for all"
        )
    return f"{scheme}://" + host.removesuffix(f":{PORTS[scheme]}")


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Origin = Annotated[str, AfterValidator(_origin)]


class ServeConfig(Settings):
    """How a model is served: `args` of serve/config.yaml, and `--set serve.key=value` of
    `ns-ray serve`."""

    bundle: str | None = None
    """A run folder, a bundle, or a timm local-dir. null: `user_config.bundle` names it, which can
    be changed without restarting a replica."""
    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "classifier"
    """Name of the model in the paths of the Open Inference Protocol, /v2/models/{model_name}."""
    api_key_file: str | None = None
    """File with one API key per line; every replica reads it when it starts. null: no key asked."""
    allow_origins: Annotated[tuple[Origin, ...], BeforeValidator(_listed)] = ()
    """Origins, such as https://shop.example, whose pages may ask and read answers in a browser; *
    for all. Empty: only the page of the server itself."""
    top_k: int = Field(default=5, ge=1)
    """Classes in an answer when the request doesn't say how many."""
    max_bytes: int = Field(default=20 * 2**20, ge=1024)
    """Largest body of a request, in bytes; more is a 413."""
    max_pixels: int = Field(default=50_000_000, ge=1, le=178_956_970)
    """Largest image, in pixels; more is a 413. An RGB image takes three bytes per pixel."""
    max_images: int = Field(default=64, ge=1)
    """Most images in one request; more is a 413."""
    max_batch: int = Field(default=16, ge=1)
    """Most images in one forward pass."""
    max_queue: int = Field(default=256, ge=1)
    """Images that a replica holds at once; what comes on top is a 429 with Retry-After."""
    max_queue_bytes: int = Field(default=512 * 2**20, ge=1024)
    """Bytes of request bodies that a replica holds at once; what comes on top is a 429."""
    deadline: float = Field(default=30.0, gt=0)
    """Seconds from a request's first byte to its answer; after that a 504, or a 408 when it was
    the body that didn't come."""
    min_rate: float = Field(default=1024, gt=0)
    """Least bytes per second of a body, on average and after 5 s of grace; less is a 408."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where the replica has one."""
    cpus: int | None = Field(default=None, ge=1)
    """CPUs of a replica: its decoding threads, and the threads of the model without a GPU. null:
    those of the machine where the application is built, at most 8."""
    gpus: float = Field(default=0.0, ge=0)
    """GPUs of a replica; a fraction lets several share one."""
    replicas: int = Field(default=1, ge=1)
    """Replicas, or the fewest when `max_replicas` is larger."""
    max_replicas: int | None = Field(default=None, ge=1)
    """Most replicas: Ray Serve adds and removes them by load. null: `replicas`, always."""
    target_ongoing_requests: float = Field(default=16, gt=0)
    """Requests in flight per replica that autoscaling aims at."""
    predict: PredictConfig = PredictConfig()
    """Runtime, precision and decoding, as for labeling."""

    @model_validator(mode="after")
    def _range(self) -> "ServeConfig":
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas={self.max_replicas} must be at least replicas={self.replicas}"
            )
        if self.max_images > self.max_queue:
            raise ValueError(
                f"max_images={self.max_images} must be at most max_queue={self.max_queue}"
            )
        return self
