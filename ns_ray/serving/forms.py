"""Forms (multipart/form-data): image files, and how many classes are asked for."""

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header
from starlette.exceptions import HTTPException

MAX_HEADERS, MAX_HEADER_BYTES = 8, 4096
"""Of one part. Clients send two or three short ones."""


def boundary_of(content_type: str) -> bytes:
    """What stands between the parts of a form; empty when its Content-Type doesn't say."""
    return parse_options_header(content_type)[1].get(b"boundary", b"")


def read_form(body: bytes, boundary: bytes, most: int) -> tuple[list[bytes], str | None]:
    """The fields `file` of a form, at least one, and its last field `top_k`.

    Args:
        body: all of it. Its number of parts must be known to be small: the parser runs in Python.
        boundary: not empty.
        most: files that it may hold.

    Raises:
        HTTPException: 400, 413 or 422.
    """
    files: list[bytes] = []
    given: list[str] = []
    ends: list[bool] = []

    def add(part: Field | File) -> None:
        if isinstance(part, File):
            part.file_object.seek(0)
            value = part.file_object.read()
        else:
            value = part.value or b""
        name = (part.field_name or b"").decode("utf-8", "replace")
        if name == "file":
            if len(files) == most:
                raise HTTPException(413, f"more than {most} files in one form; send fewer")
            files.append(value)
        elif name == "top_k":
            given.append(value[:50].decode("utf-8", "replace"))
        else:
            raise HTTPException(
                422, f"unknown field {name[:100]!r} in the form; known: file, top_k"
            )

    try:
        parser = FormParser(
            "multipart/form-data",
            on_field=add,
            on_file=add,
            on_end=lambda: ends.append(True),
            boundary=boundary,
            config={
                # The body is in memory already, and within its limit: nothing goes to disk.
                "MAX_MEMORY_FILE_SIZE": float("inf"),
                "MAX_HEADER_COUNT": MAX_HEADERS,
                "MAX_HEADER_SIZE": MAX_HEADER_BYTES,
            },
        )
        parser.write(_from_first_part(body, boundary))
        parser.finalize()
    except FormParserError as error:
        raise HTTPException(400, f"the form cannot be read: {str(error)[:200]}") from None
    if not ends:
        raise HTTPException(400, "the form ends early: its closing boundary is missing")
    if not files:
        raise HTTPException(422, 'the form has no field "file" with an image')
    return files, given[-1] if given else None


def _from_first_part(body: bytes, boundary: bytes) -> bytes:
    """A form without its preamble: RFC 2046, 5.1.1, allows text before the first boundary, and the
    parser does not."""
    mark = b"--" + boundary
    return body if body.startswith(mark) else body[body.find(b"\n" + mark) + 1 :]
