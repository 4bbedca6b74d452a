"""`python -m ns_ray.run` is `ns-ray run`: a whole run from one config."""

from ns_ray.commands import run_app as app

if __name__ == "__main__":
    app()
