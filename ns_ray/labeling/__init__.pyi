from .inference import infer as infer
from .inference import seconds as seconds
from .predictions import predict as predict
from .stage import pseudo_label as pseudo_label
