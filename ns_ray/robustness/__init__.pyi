from .suites import check_suites as check_suites
from .suites import evaluate_one as evaluate_one
from .suites import evaluate_robustness as evaluate_robustness
