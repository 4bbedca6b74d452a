"""Bodies of requests to encoded images: raw, multipart or JSON, within the limits of the server.

Nothing here trusts a header: what a body holds is counted as it comes. No URL is ever fetched.
"""

import asyncio
import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from ns_ray.errors import ImageError, nearest
from ns_ray.serving.responses import HttpError
from ns_ray.serving.service import Service
from ns_ray.serving.settings import ServeConfig

RAW = ("application/octet-stream", "application/x-image", "binary/octet-stream")
"""Content types, beside image/*, whose body is the file itself."""
INLINE_JSON = 256 * 1024
"""JSON bodies up to this many bytes are parsed on the event loop; larger ones in a thread."""


@dataclass(frozen=True)
class Question:
    """What a request asks.

    Attributes:
        images: encoded files, or why one is none.
        batch: whether the answer is a list of answers.
        top_k: how many classes.
    """

    images: Sequence[bytes | ImageError]
    batch: bool
    top_k: int


async def read_body(request: Request, service: Service) -> bytes:
    """The whole body, counted while it comes.

    Raises:
        HttpError: 400 bad Content-Length, 408 too slow, 413 too large, 415 compressed.
        Overloaded: the server holds too many bytes already.
    """
    config = service.config
    limit = config.max_bytes
    too_large = HttpError(
        413,
        f"the body has more than {limit:,} bytes; send a smaller image, or raise max_bytes",
        {"Connection": "close"},
    )
    if request.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise HttpError(415, "Content-Encoding is not supported; send the body as it is")
    declared = request.headers.get("content-length")
    if declared is not None:
        if not (declared.isascii() and declared.isdigit()):
            raise HttpError(400, "Content-Length must be a number")
        if int(declared[:20]) > limit:
            raise too_large
        service.admit(1, int(declared))
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(config.deadline):
            async for chunk in request.stream():
                chunks.append(chunk)
                size += len(chunk)
                service.busy_bytes += len(chunk)
                if size > limit:
                    raise too_large
                service.admit(0)
    except TimeoutError:
        raise HttpError(
            408,
            f"the body did not arrive within {config.deadline:g} s",
            {"Connection": "close"},
        ) from None
    finally:
        service.busy_bytes -= size
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def question(request: Request, body: bytes, config: ServeConfig) -> Question:
    """The images of a request to /predict, by its content type.

    Raises:
        HttpError: 400, 413, 415 or 422.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return await _from_json(body, request, config)
    if kind == "multipart/form-data":
        return await _from_form(body, request, config)
    if kind and kind not in RAW and not kind.startswith("image/"):
        raise HttpError(
            415,
            f"Content-Type {kind[:100]!r} is not supported; send image/* or "
            'application/octet-stream (the file itself), multipart/form-data (field "file"), or '
            'application/json ({"inputs": "<base64>"})',
        )
    if not body:
        raise HttpError(400, "the body is empty; it must be an image file")
    return Question([body], False, query_top_k(request, config))


def query_top_k(request: Request, config: ServeConfig) -> int:
    """`?top_k=` of the URL, or the default."""
    values = request.query_params.getlist("top_k")
    return top_k(values[-1] if values else None, config)


def top_k(value: Any, config: ServeConfig) -> int:
    """A number of classes that a client asked for.

    Raises:
        HttpError: 422 when it is no whole number from 1.
    """
    if value is None:
        return config.top_k
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdigit()) or int(text[:9]) < 1:
        raise HttpError(422, f"top_k={text[:50]!r} must be a whole number from 1")
    return int(text[:9])


async def parse_json(body: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        HttpError: 400 when it is none.
    """
    try:
        if len(body) <= INLINE_JSON:
            parsed = from_json(body)
        else:
            parsed = await asyncio.to_thread(from_json, body)
    except ValueError as error:
        raise HttpError(400, f"the body is not valid JSON: {str(error)[:200]}") from None
    if not isinstance(parsed, dict):
        raise HttpError(400, "the JSON body must be an object")
    return parsed


def known(given: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    """Refuse unknown keys.

    Raises:
        HttpError: 422 naming the key and what is allowed.
    """
    for key in given:
        if key not in allowed:
            raise HttpError(
                422,
                f"unknown key {key[:100]!r} in {where}{nearest(key[:100], allowed)}; "
                f"known: {', '.join(allowed)}",
            )


async def decode_all(texts: Sequence[Any], where: str) -> list[bytes | ImageError]:
    """Base64 texts as files; one that isn't base64 is an ImageError.

    Raises:
        HttpError: 422 when one is no text at all.
    """
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise HttpError(422, f"{where}[{i}] must be a base64 string, not {_kind(text)}")
    if sum(len(text) for text in texts) <= INLINE_JSON:
        return [_decode(text) for text in texts]
    return await asyncio.to_thread(lambda: [_decode(text) for text in texts])


def too_many(count: int, config: ServeConfig) -> None:
    """Refuse too large batches.

    Raises:
        HttpError: 413.
    """
    if count > config.max_images:
        raise HttpError(413, f"{count:,} images in one request; at most {config.max_images}")


async def _from_json(body: bytes, request: Request, config: ServeConfig) -> Question:
    parsed = await parse_json(body)
    known(parsed, ("inputs", "parameters"), "the JSON body")
    parameters = parsed.get("parameters")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        raise HttpError(422, f"parameters must be an object, not {_kind(parameters)}")
    known(parameters, ("top_k", "function_to_apply"), "parameters")
    if parameters.get("function_to_apply") not in (None, "softmax"):
        raise HttpError(422, "function_to_apply must be softmax")
    wanted = parameters.get("top_k")
    count = query_top_k(request, config) if wanted is None else top_k(wanted, config)
    inputs = parsed.get("inputs")
    if isinstance(inputs, str):
        (image,) = await decode_all([inputs], "inputs")
        return Question([image], False, count)
    if not isinstance(inputs, list):
        raise HttpError(422, "inputs must be a base64 string, or a list of them")
    if not inputs:
        raise HttpError(422, "inputs is an empty list; it must hold at least one image")
    too_many(len(inputs), config)
    return Question(await decode_all(inputs, "inputs"), True, count)


class _Form:
    """The parts of a multipart body, kept in memory: it is there already, and within its limit."""

    def __init__(self, config: ServeConfig) -> None:
        self.files: list[bytes] = []
        self.top_k: str | None = None
        self.ended = False
        self._config = config
        self._name, self._header, self._value = "", b"", b""
        self._data: list[bytes] = []

    def parse(self, body: bytes, boundary: bytes) -> None:
        """
        Raises:
            HttpError: 413 too many files; 422 an unknown field.
            FormParserError: it is no form.
        """
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_header,
                "on_header_value": self._on_value,
                "on_header_end": self._header_end,
                "on_part_data": self._on_data,
                "on_part_end": self._end,
                "on_end": self._all,
            },
        )
        parser.write(body)
        parser.finalize()

    def _begin(self) -> None:
        self._name, self._header, self._value, self._data = "", b"", b"", []

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            name = parse_options_header(self._value)[1].get(b"name", b"")
            self._name = name.decode("utf-8", "replace")
        self._header = self._value = b""

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _end(self) -> None:
        data = self._data[0] if len(self._data) == 1 else b"".join(self._data)
        if self._name == "file":
            self.files.append(data)
            if len(self.files) > self._config.max_images:
                raise HttpError(
                    413, f"more than {self._config.max_images} files in one form; send fewer"
                )
        elif self._name == "top_k":
            self.top_k = data[:50].decode("utf-8", "replace")
        else:
            raise HttpError(
                422, f"unknown field {self._name[:100]!r} in the form; known: file, top_k"
            )

    def _all(self) -> None:
        self.ended = True


async def _from_form(body: bytes, request: Request, config: ServeConfig) -> Question:
    options = parse_options_header(request.headers.get("content-type", ""))[1]
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise HttpError(400, "multipart/form-data without a boundary in its Content-Type")
    form = _Form(config)
    try:
        form.parse(body, boundary)
    except FormParserError as error:
        raise HttpError(400, f"the form cannot be read: {str(error)[:200]}") from None
    if not form.ended:
        raise HttpError(400, "the form ends early: its closing boundary is missing")
    if not form.files:
        raise HttpError(422, 'the form has no field "file" with an image')
    count = query_top_k(request, config) if form.top_k is None else top_k(form.top_k, config)
    return Question(form.files, len(form.files) > 1, count)


def _decode(text: str) -> bytes | ImageError:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        return ImageError("bad_base64", "the text is not base64")


def _kind(value: Any) -> str:
    """The JSON name of a value's type."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")
