from .study import ablate as ablate
from .table import Measured as Measured
