from .scores import better_p as better_p
from .scores import compare as compare
from .stage import evaluate as evaluate
