"""`python -m ns_ray` is the `ns-ray` command."""

from ns_ray.cli import main

if __name__ == "__main__":
    main()
