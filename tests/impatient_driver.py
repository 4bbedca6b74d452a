"""`ns_ray.run` that gives a lost node 2 s to come back:

python tests/impatient_driver.py --config run.yaml
"""

from ns_ray.commands import run_app
from ns_ray.compute import environment

environment.prepare()  # before anything imports ray

from ns_ray.training import workers  # noqa: E402

if __name__ == "__main__":
    workers.PATIENCE = 2.0
    run_app()
