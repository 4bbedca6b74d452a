from .pictures import corrupted_again as corrupted_again
from .suites import check_suites as check_suites
from .suites import evaluate_beside as evaluate_beside
from .suites import evaluate_robustness as evaluate_robustness
from .units import Unit as Unit
