"""`ns-ray push`: a model for others, on the Hugging Face Hub."""

import re
from typing import Annotated, Any

import typer

from ns_ray import store
from ns_ray.commands.options import Bundle, Debug
from ns_ray.config import recorded
from ns_ray.log import say
from ns_ray.store import resolve

NAMED = {
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "svhn": "ufldl-stanford/svhn",
}
"""Named sets as the Hub calls them."""


def push(
    bundle: Bundle,
    to: Annotated[
        str, typer.Option(metavar="OWNER/NAME", help="Its name on the Hub.", show_default=False)
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Only those can see it whom you let.")
    ] = False,
    license_: Annotated[
        str | None,
        typer.Option(
            "--license",
            help="For the model card, as the Hub names it, such as apache-2.0.",
            show_default=False,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Upload a model to the Hugging Face Hub, for timm.create_model("hf-hub:OWNER/NAME"). HF_TOKEN
    says who you are, HF_ENDPOINT where another Hub is."""
    from ns_ray.model import push as upload

    done = upload(
        bundle, to, private=private, license=license_, datasets=learnt_from(resolve(bundle))
    )
    seen = "private" if done.private else "public"
    say(f'{done.url}: {seen}, {done.bytes / 1e6:,.1f} MB; timm has it as "hf-hub:{done.name}"')


def learnt_from(bundle: str) -> list[str]:
    """Data sets of the Hub that the model of a run has learnt from, by the config.yaml of the run:
    OWNER/NAME each. None where the folder is no run's.

    Args:
        bundle: the model folder: RUN/model or RUN/gen-01/bundle.
    """
    above = bundle.rpartition("/")[0]
    for run in (above, above.rpartition("/")[0]):
        path = store.join(run, "config.yaml")
        if run and store.exists(path):
            data = (recorded(store.read_bytes(path)) or {}).get("data")
            return _named_by(data) if isinstance(data, dict) else []
    return []


def _named_by(data: dict[str, Any]) -> list[str]:
    values = [data.get("labeled"), data.get("unlabeled")]
    sources = [one for value in values for one in (value if isinstance(value, list) else [value])]
    found = []
    for source in map(str, sources):
        match = re.match("hf://datasets/([^/@]+/[^/@]+)", source)
        found.append(match[1] if match else NAMED.get(source.split(":")[0], ""))
    return list(dict.fromkeys(name for name in found if name))
