from .deployment import build_app as build_app
from .launch import Ingress as Ingress
from .launch import ServeSettings as ServeSettings
from .launch import serve_model as serve_model
from .settings import ServeConfig as ServeConfig
from .swap import swap_bundle as swap_bundle
