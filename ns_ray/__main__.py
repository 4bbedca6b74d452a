"""`python -m ns_ray` is the `ns-ray` command."""

from ns_ray.commands import main

if __name__ == "__main__":
    main()
