from .paired import better_p as better_p
from .paired import compare as compare
from .scores import interval as interval
from .stage import evaluate as evaluate
