from .printing import MOST_FOREIGN as MOST_FOREIGN
from .printing import foreign_words as foreign_words
from .stage import seconds as seconds
from .stage import select as select
