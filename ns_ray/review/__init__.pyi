from .asking import TABLE as TABLE
from .asking import Asked as Asked
from .asking import label_next as label_next
from .suspecting import SUSPECTS as SUSPECTS
from .suspecting import Found as Found
from .suspecting import find_suspects as find_suspects
