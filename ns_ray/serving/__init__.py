"""A trained model over HTTP, on Ray Serve.

A bundle and settings come in; out goes an application whose replicas answer POSTs of encoded images
with their most probable classes. It knows the predictor, and nothing of corpora, runs or training.
"""

from typing import TYPE_CHECKING

from ns_ray.serving.settings import ServeConfig

if TYPE_CHECKING:
    from ray.serve import Application

__all__ = ["ServeConfig", "build_app"]


def build_app(args: ServeConfig) -> "Application":
    """The application for Ray Serve: `import_path: ns_ray.serving:build_app`, with the settings as
    `args`. (The annotation is how Serve knows to validate them: it must stay a class.)"""
    from ns_ray.serving.deployment import build_app as build  # Ray, which the settings do without

    return build(args)
