from .foreign import FEWEST as FEWEST
from .foreign import scale_of as scale_of
from .inference import Inferred as Inferred
from .inference import infer as infer
from .inference import seconds as seconds
from .job import InferenceJob as InferenceJob
from .predictions import predict as predict
from .stage import pseudo_label as pseudo_label
