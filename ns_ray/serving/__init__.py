"""A trained model over HTTP, on Ray Serve."""

from ns_ray.serving.deployment import build_app
from ns_ray.serving.settings import ServeConfig

__all__ = ["ServeConfig", "build_app"]
