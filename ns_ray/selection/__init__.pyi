from .stage import seconds as seconds
from .stage import select as select
