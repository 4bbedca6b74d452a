"""Asks a server of ns_ray for the classes of images. Needs Python's standard library only.

    python client.py http://127.0.0.1:8000 cat.jpg dog.jpg [--top-k 3]

The API key, where one is needed, comes from the environment variable NS_RAY_API_KEY. A server that
is busy, restarting or unreachable is asked again a few times.
"""

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ATTEMPTS = 5
AGAIN = (429, 500, 502, 503, 504)
"""Answers after which the same request may succeed; classifying twice does no harm."""
LONGEST_WAIT = 30.0


class RefusedError(Exception):
    """The server said no: `status`, and its reason as the text."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def classify(
    url: str, image: bytes, *, top_k: int = 5, key: str | None = None, timeout: float = 60
) -> list[dict[str, Any]]:
    """The most probable classes of an encoded image: [{"label": ..., "score": ...}, ...].

    Raises:
        RefusedError: the server answered with an error.
        OSError: it didn't answer, in all attempts.
    """
    request = urllib.request.Request(
        f"{url.rstrip('/')}/predict?top_k={top_k}",
        data=image,
        headers={"Content-Type": "application/octet-stream"},
        method="POST",
    )
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    for attempt in range(1, ATTEMPTS + 1):
        wait = min(0.2 * 2**attempt, LONGEST_WAIT)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                answer: list[dict[str, Any]] = json.load(reply)
                return answer
        except urllib.error.HTTPError as error:
            with error:
                body = error.read()
            if error.code not in AGAIN or attempt == ATTEMPTS:
                raise RefusedError(error.code, _reason(body)) from None
            after = error.headers.get("Retry-After", "")
            wait = min(float(after), LONGEST_WAIT) if after.isdigit() else wait
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if attempt == ATTEMPTS:
                raise
        time.sleep(wait)
    raise AssertionError("not reached")


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")


def main() -> int:
    """The command line; 0 when every image got an answer."""
    parser = argparse.ArgumentParser(description="Classify images with a server of ns_ray.")
    parser.add_argument("url", help="such as http://127.0.0.1:8000")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--top-k", type=int, default=5)
    options = parser.parse_args()
    failed = False
    for path in options.images:
        try:
            key = os.environ.get("NS_RAY_API_KEY")
            classes = classify(options.url, path.read_bytes(), top_k=options.top_k, key=key)
        except (OSError, RefusedError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            failed = True
            continue
        print(f"{path}: " + ", ".join(f"{c['label']} {c['score']:.3f}" for c in classes))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
