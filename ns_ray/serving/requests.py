"""What a POST asks: its body, read within the limits of the server, as encoded images.

Nothing here trusts a header: bytes are counted as they come. No URL is ever fetched.
"""

import asyncio
import codecs
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import Request

from ns_ray.errors import ImageError, nearest
from ns_ray.serving.counts import FORM, JSON, counts_of
from ns_ray.serving.encodings import HEADER, binary_files, from_base64, header_of
from ns_ray.serving.forms import boundary_of, read_form
from ns_ray.serving.settings import ServeConfig
from ns_ray.serving.totals import Totals

CURL = "application/x-www-form-urlencoded"  # what curl says of any body
RAW = ("application/octet-stream", "application/x-image", "binary/octet-stream", CURL)
"""Content types, beside image/*, whose body is the file itself."""
TEXT = (
    "; the body is text: with curl, send a file by --data-binary or -T (-d changes it), and JSON "
    "with -H 'Content-Type: application/json'"
)
INLINE = 256 * 1024
"""JSON and forms up to this many bytes are parsed on the event loop; larger ones in a thread."""
GRACE = 5.0
"""Seconds for a body beside those that `min_rate` gives it."""
RETRY_SECONDS = 1
"""What a 429 says: a full queue of default size is worked off in about a second."""
INPUT, OUTPUTS = "image", ("label", "score")
"""Of a model of ns_ray in the Open Inference Protocol."""


@dataclass(frozen=True)
class Question:
    """What a request asks.

    Attributes:
        images: encoded files, or why one is none; at least one.
        top_k: how many classes.
        several: whether the answer of /predict is a list of answers.
        model: name of the model,
        id: of the request, and
        outputs: names of the outputs, in the Open Inference Protocol.
        advice: what is said beside the error of an only image.
    """

    images: Sequence[bytes | ImageError]
    top_k: int
    several: bool = True
    model: str = ""
    id: str | None = None
    outputs: Sequence[str] = OUTPUTS
    advice: str = ""


Reader = Callable[[Request, bytes, ServeConfig], Awaitable[Question]]
"""Makes a question of a request and its whole body."""


class _Held:
    """What one request holds of a replica: bytes of its body, and places in the queue."""

    def __init__(self, config: ServeConfig, totals: Totals) -> None:
        self._config, self._totals = config, totals
        self._images = self._bytes = 0

    def check(self, images: int = 0, size: int = 0) -> None:
        """
        Raises:
            HTTPException: 429 when the replica has no room for so much more.
        """
        if (
            self._totals.queue + images > self._config.max_queue
            or self._totals.body_bytes + size > self._config.max_queue_bytes
        ):
            headers = {"Retry-After": str(RETRY_SECONDS), "Connection": "close"}
            raise HTTPException(429, "the queue is full; try again", headers)

    def take(self, images: int = 0, size: int = 0) -> None:
        """
        Raises:
            HTTPException: 429 when there is no room.
        """
        self.check(images, size)
        self._add(images, size)

    def give_back(self) -> None:
        """Everything."""
        self._add(-self._images, -self._bytes)

    def _add(self, images: int, size: int) -> None:
        self._images += images
        self._bytes += size
        self._totals.queue += images
        self._totals.body_bytes += size


def _kind(request: Request) -> str:
    """The content type without its parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


@asynccontextmanager
async def held(
    request: Request, read: Reader, config: ServeConfig, totals: Totals
) -> AsyncIterator[Question]:
    """The question of a request. Until the block ends, however it ends, its bytes and its images
    count as held by the replica; the block may take what is left of the deadline.

    Raises:
        HTTPException: 400, 413, 415 or 422 for what is wrong with the request; 429 for a replica
            that holds too much; 408 when the body and 504 when the answer takes too long.
    """
    own = _Held(config, totals)
    arrived = False
    try:
        async with asyncio.timeout(config.deadline):
            infers = read is infer_question and HEADER not in request.headers
            kind = JSON if infers else _kind(request)
            body = await _body(request, kind, config, own)
            arrived = True
            question = await read(request, body, config)
            own.take(images=len(question.images))
            yield question
    except TimeoutError:
        seconds = f"{config.deadline:g} s"
        if arrived:
            error = HTTPException(504, f"no answer within {seconds}", {"Retry-After": "5"})
        else:
            text = f"the body did not arrive within {seconds}"
            error = HTTPException(408, text, {"Connection": "close"})
        raise error from None
    finally:
        own.give_back()


async def _body(request: Request, kind: str, config: ServeConfig, own: _Held) -> bytes:
    """The whole body, counted while it comes, and given up when it comes too slowly."""
    limit = config.max_bytes
    too_large = HTTPException(
        413,
        f"the body has more than {limit:,} bytes; send a smaller image, or raise max_bytes",
        {"Connection": "close"},
    )
    if request.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise HTTPException(415, "Content-Encoding is not supported; send the body as it is")
    declared = request.headers.get("content-length", "0")
    if not (declared.isascii() and declared.isdigit()):
        raise HTTPException(400, "Content-Length must be a number")
    length = int(declared.lstrip("0")[:20] or "0")
    if length > limit:
        raise too_large
    own.check(1, length)
    counts = counts_of(kind, request.headers.get("content-type", ""), config)
    chunks: list[bytes] = []
    size = 0
    patience = asyncio.get_running_loop().time() + GRACE
    try:
        async with asyncio.timeout_at(patience) as timeout:
            async for chunk in request.stream():
                chunks.append(chunk)
                size += len(chunk)
                if size > limit:
                    raise too_large
                own.take(size=len(chunk))
                for count in counts:
                    count.add(chunk)
                timeout.reschedule(patience + size / config.min_rate)
    except TimeoutError:
        text = f"the body comes at less than min_rate={config.min_rate:g} bytes/s"
        raise HTTPException(408, text, {"Connection": "close"}) from None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def predict_question(request: Request, body: bytes, config: ServeConfig) -> Question:
    """What a request to /predict asks, by its content type: the file itself, a form, or JSON.

    Raises:
        HTTPException: 400, 413, 415 or 422.
    """
    kind = _kind(request)
    if kind == JSON:
        return await _from_json(request, body, config)
    if kind == FORM:
        return await _from_form(request, body, config)
    if kind and kind not in RAW and not kind.startswith("image/"):
        raise HTTPException(
            415,
            f"Content-Type {kind[:100]!r} is not supported; send image/* or "
            'application/octet-stream (the file itself), multipart/form-data (field "file"), or '
            'application/json ({"inputs": "<base64>"})',
        )
    if not body:
        raise HTTPException(400, "the body is empty; it must be an image file")
    # No header of an image file is without a zero, and `curl -d` takes them out.
    advice = TEXT if kind == CURL and b"\0" not in body else ""
    return Question([body], _top_k(None, request, config), several=False, advice=advice)


async def _from_json(request: Request, body: bytes, config: ServeConfig) -> Question:
    parsed = await _json_object(body)
    _known(parsed, ("inputs", "parameters"), "the JSON body")
    parameters = _parameters(parsed)
    _known(parameters, ("top_k", "function_to_apply"), "parameters")
    if parameters.get("function_to_apply") not in (None, "softmax"):
        raise HTTPException(422, "function_to_apply must be softmax")
    top_k = _top_k(parameters.get("top_k"), request, config)
    inputs = parsed.get("inputs")
    if isinstance(inputs, str):
        return Question(await _files([inputs], "inputs", config), top_k, several=False)
    if not isinstance(inputs, list):
        raise HTTPException(422, "inputs must be a base64 string, or a list of them")
    if not inputs:
        raise HTTPException(422, "inputs is an empty list; it must hold at least one image")
    return Question(await _files(inputs, "inputs", config), top_k)


async def _from_form(request: Request, body: bytes, config: ServeConfig) -> Question:
    boundary = boundary_of(request.headers["content-type"])
    if not boundary:
        raise HTTPException(400, "multipart/form-data without a boundary in its Content-Type")
    if len(body) <= INLINE:
        files, given = read_form(body, boundary, config.max_images)
    else:
        files, given = await asyncio.to_thread(read_form, body, boundary, config.max_images)
    return Question(files, _top_k(given, request, config), several=len(files) > 1)


async def infer_question(request: Request, body: bytes, config: ServeConfig) -> Question:
    """What a request in the Open Inference Protocol asks: one BYTES input of shape [N], image files
    in base64, as the protocol writes bytes in JSON, or as bytes behind the JSON (Triton's binary
    tensors).

    Raises:
        HTTPException: 400, 413 or 422.
    """
    declared = request.headers.get(HEADER)
    end = len(body) if declared is None else header_of(declared, body)
    parsed = await _json_object(body[:end])
    outputs = _outputs(parsed.get("outputs"))
    top_k = _top_k(_parameters(parsed).get("top_k"), None, config)
    inputs = parsed.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise HTTPException(422, f"inputs must be a list with one input, {INPUT!r}")
    tensor = inputs[0]
    if tensor.get("name") != INPUT:
        raise HTTPException(422, f"unknown input {str(tensor.get('name'))[:100]!r}; known: {INPUT}")
    if tensor.get("datatype") != "BYTES":
        raise HTTPException(
            422, f"datatype {str(tensor.get('datatype'))[:50]!r} of {INPUT!r} must be BYTES"
        )
    images = await _tensor_files(tensor, body[end:], declared is not None, config)
    if tensor.get("shape") not in ([len(images)], [len(images), 1]):
        raise HTTPException(
            422,
            f"inputs[0].shape must be [{len(images)}], the number of its data, "
            f"not {str(tensor.get('shape'))[:100]}",
        )
    name = parsed.get("id")
    return Question(
        images,
        top_k,
        model=config.model_name,
        id=name if isinstance(name, str) else None,
        outputs=outputs,
    )


async def _tensor_files(
    tensor: dict[str, Any], behind: bytes, binary: bool, config: ServeConfig
) -> Sequence[bytes | ImageError]:
    data = tensor.get("data")
    if binary and data is None:
        size = _parameters(tensor).get("binary_data_size")
        return binary_files(size, behind, config.max_images)
    if not isinstance(data, list) or not data:
        raise HTTPException(422, "inputs[0].data must be a list of base64 strings, at least one")
    if tensor.get("shape") == [len(data), 1]:  # rows may be written as lists of their own
        data = [one[0] if isinstance(one, list) and len(one) == 1 else one for one in data]
    return await _files(data, "inputs[0].data", config)


def _outputs(wanted: Any) -> list[str]:
    """Names of the outputs that a request wants: all of them by default."""
    if wanted is None or wanted == []:
        return list(OUTPUTS)
    if not isinstance(wanted, list) or not all(isinstance(item, dict) for item in wanted):
        raise HTTPException(422, "outputs must be a list of objects with a name")
    for item in wanted:
        if item.get("name") not in OUTPUTS:
            raise HTTPException(
                422, f"unknown output {str(item.get('name'))[:100]!r}; known: {', '.join(OUTPUTS)}"
            )
    return [item["name"] for item in wanted]


async def _json_object(body: bytes) -> dict[str, Any]:
    body = body.removeprefix(codecs.BOM_UTF8)  # PowerShell and others begin files with it
    try:
        if len(body) <= INLINE:
            parsed = from_json(body)
        else:
            parsed = await asyncio.to_thread(from_json, body)
    except ValueError as error:
        raise HTTPException(400, f"the body is not valid JSON: {str(error)[:200]}") from None
    if not isinstance(parsed, dict):
        raise HTTPException(400, "the JSON body must be an object")
    return parsed


def _known(given: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    for key in given:
        if key not in allowed:
            raise HTTPException(
                422,
                f"unknown key {key[:100]!r} in {where}{nearest(key[:100], allowed)}; "
                f"known: {', '.join(allowed)}",
            )


def _parameters(parsed: Mapping[str, Any]) -> dict[str, Any]:
    parameters = parsed.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise HTTPException(422, f"parameters must be an object, not {_name(parameters)}")
    return parameters


def _top_k(inside: Any, request: Request | None, config: ServeConfig) -> int:
    """The number of classes that a body asks for, else `?top_k=` of the URL, else the default."""
    asked = [] if request is None else request.query_params.getlist("top_k")
    value = inside if inside is not None else asked[-1] if asked else config.top_k
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit()) or int(text[:9]) < 1:
        raise HTTPException(422, f"top_k={text[:50]!r} must be a whole number from 1")
    return int(text[:9])


async def _files(texts: Sequence[Any], where: str, config: ServeConfig) -> list[bytes | ImageError]:
    """Base64 texts as files; one that isn't base64 is an ImageError."""
    if len(texts) > config.max_images:
        raise HTTPException(
            413, f"{len(texts):,} images in one request; at most {config.max_images}"
        )
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise HTTPException(422, f"{where}[{i}] must be a base64 string, not {_name(text)}")
    if sum(len(text) for text in texts) <= INLINE:
        return [from_base64(text) for text in texts]
    return await asyncio.to_thread(lambda: [from_base64(text) for text in texts])


def _name(value: Any) -> str:
    """The JSON name of a value's type."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")
