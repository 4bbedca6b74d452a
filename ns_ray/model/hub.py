"""A bundle on the Hugging Face Hub, or on a server that speaks as it does (HF_ENDPOINT)."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    disable_progress_bars,
    validate_repo_id,
)

from ns_ray import __version__, store
from ns_ray.errors import ConfigError, NsRayError, StageError, first_line
from ns_ray.model.card import CARD, hub_card
from ns_ray.store import CONFIG, PROVENANCE, WEIGHTS, Bundle, check_bundle, open_bundle


@dataclass(frozen=True)
class Pushed:
    """A model on the Hub.

    Attributes:
        name: OWNER/NAME.
        url: its page.
        bytes: of its files.
        private: whether only those can see it who may.
    """

    name: str
    url: str
    bytes: int
    private: bool


def push(
    bundle: str, to: str, *, private: bool = False, license: str | None = None,
    datasets: Sequence[str] = (),
) -> Pushed:  # fmt: skip
    """Upload a bundle in one commit: its weights, config.json, ns_ray.json where it has one, and a
    model card. `timm.create_model("hf-hub:OWNER/NAME", pretrained=True)` loads it from there. Other
    files of a repository that is there already stay; one that is private stays so.

    Args:
        bundle: a bundle, a run folder, or a timm local-dir.
        to: OWNER/NAME.
        private: make the repository private, or fail where it is public.
        license: for the model card, as the Hub names it.
        datasets: of the Hub, that the model has learnt from.

    Raises:
        ConfigError: the name is none, there is no token, the Hub does not take it, or the
            repository is public and `private` asked for.
        DataError: the bundle is damaged.
        StageError: the Hub cannot be reached, or fails.
    """
    _check_name(to)
    if get_token() is None:
        raise ConfigError(
            f"no token for {constants.ENDPOINT}: set HF_TOKEN to one that may write, or log in "
            "with `hf auth login`"
        )
    found = open_bundle(bundle)
    check_bundle(found.path)
    text = hub_card(found, to, license=license, datasets=datasets).encode()
    files = {name: _content(found, name) for name in _names(found)} | {CARD: text}
    adding = [CommitOperationAdd(name, content) for name, content in files.items()]
    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi(library_name="ns-ray", library_version=__version__)
    with _errors_of(to):
        api.create_repo(to, private=private or None, exist_ok=True)
        there = bool(api.repo_info(to).private)
        if private and not there:
            raise ConfigError(
                f"{to} is public on {api.endpoint}, and --private given: make it private in its "
                "settings there, or leave out --private"
            )
    plain = api.endpoint == "https://huggingface.co" or constants.HF_HUB_DISABLE_XET
    with _errors_of(to, hint="" if plain else "; a server without Xet needs HF_HUB_DISABLE_XET=1"):
        message = f"Upload a model with ns-ray {__version__}"
        api.create_commit(to, adding, commit_message=message)
    size = sum(one.upload_info.size for one in adding)
    return Pushed(to, f"{api.endpoint}/{to}", size, there)


def _check_name(to: str) -> None:
    try:
        validate_repo_id(to)
        fits = to.count("/") == 1
    except HFValidationError:
        fits = False
    if not fits:
        raise ConfigError(
            f"--to {to!r} is no OWNER/NAME: two words of letters, digits, - _ and ., 96 characters "
            "at most, such as me/birds"
        )


def _names(bundle: Bundle) -> list[str]:
    return [WEIGHTS, CONFIG, *([PROVENANCE] if bundle.provenance else [])]


def _content(bundle: Bundle, name: str) -> str | bytes:
    """A file: by its path, so that it is not held in memory, or its bytes from an object store."""
    path = store.join(bundle.path, name)
    return store.read_bytes(path) if store.is_uri(path) else path


@contextmanager
def _errors_of(to: str, *, hint: str = "") -> Iterator[None]:
    """What any HTTP client of huggingface_hub raises, as errors of ours.

    Raises:
        ConfigError: the Hub refuses.
        StageError: it cannot be reached, or fails.
    """
    try:
        yield
    except NsRayError:
        raise
    except Exception as error:
        status, said = _answer(error)
        hub, owner = constants.ENDPOINT, to.split("/")[0]
        if status == 401:
            raise ConfigError(
                f"{hub} does not know the token ({said}); set HF_TOKEN to a valid one that may "
                "write"
            ) from None
        if status == 403:
            raise ConfigError(
                f"{hub} does not let this token write to {to} ({said}); set HF_TOKEN to one that "
                f"may write to {owner}, or --to to a name of yours"
            ) from None
        if 400 <= status < 500:
            raise ConfigError(f"{hub} refuses {to}: {said}") from None
        raise StageError(
            f"{to} could not be pushed to {hub}: {said}; the same command tries again{hint}"
        ) from None


def _answer(error: BaseException) -> tuple[int, str]:
    """The status of the answer that an error is about, 0 where there was none, and what it says."""
    while getattr(error, "response", None) is None and error.__cause__ is not None:
        error = error.__cause__
    status = int(getattr(getattr(error, "response", None), "status_code", 0))
    said = getattr(error, "server_message", None) or first_line(error)
    return status, str(said).strip().splitlines()[0]
