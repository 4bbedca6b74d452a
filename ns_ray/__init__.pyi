from .api import Model as Model
from .api import Prediction as Prediction
from .api import Predictions as Predictions
from .api import Run as Run
from .api import label as label
from .api import load as load
from .api import self_train as self_train

__version__: str
