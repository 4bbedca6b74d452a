from .paired import better_p as better_p
from .paired import compare as compare
from .stage import evaluate as evaluate
