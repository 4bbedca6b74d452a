from .head import out_of_fold as out_of_fold
from .job import Limits as Limits
from .job import lane_sizes as lane_sizes
from .job import total_steps as total_steps
from .losses import mixed_loss as mixed_loss
from .stage import before_fixres as before_fixres
from .stage import fit as fit
