"""The way of a POST through the modules of the server, followed while it is answered, and the order
of those modules. docs/architecture.md shows the same way."""

import ast
import time
from pathlib import Path

import pytest
from broken_files import jpeg
from served import Server, b64, make_bundle, serving
from walks import Call, following

from ns_ray import serving as package
from ns_ray.data import images
from ns_ray.model import engines, predictor

PACKAGE = package.__name__
MODULES = (
    *("settings", "totals", "batcher", "encodings", "forms", "counts", "requests", "responses"),
    *("replica", "app", "paths"),
)
"""Each imports only from those before it."""
RAYS = ("deployment", "swap", "ports", "launch")
"""What Ray Serve sees, and where it listens: they import the others, which import none of them."""
WALK = (
    f"{PACKAGE}.app",
    f"{PACKAGE}.requests",
    f"{PACKAGE}.batcher",
    predictor.__name__,
    f"{PACKAGE}.responses",
    f"{PACKAGE}.totals",
)


def post(server: Server, protocol: str) -> int:
    if protocol == "predict":
        return server.post_image(jpeg(1)).status
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [b64(jpeg(1))]}
    return server.post_json({"inputs": [tensor]}, "/v2/models/classifier/infer").status


@pytest.mark.parametrize("protocol", ["predict", "infer"])
def test_a_post_passes_six_modules_and_none_twice(tmp_path: Path, protocol: str) -> None:
    app, requests, batcher, model, responses, totals = WALK
    calls: list[Call] = []
    folder = make_bundle(tmp_path)
    with following(calls), serving(folder) as server:
        calls.clear()  # of loading the model
        assert post(server, protocol) == 200
        end = time.monotonic() + 30
        while (app, totals) not in calls:  # counted after the answer is on its way
            assert time.monotonic() < end, calls
            time.sleep(0.01)
        walked = list(calls)

    inside = [call for call in walked if call[0] in WALK and call[1] in WALK]
    inside = [call for call in inside if call[1].startswith(PACKAGE)]
    assert inside == [(app, requests), (app, batcher), (app, responses), (app, totals)]
    # The batcher asks the predictor twice, for pixels in a thread that decodes and for
    # probabilities in the model's; nobody else asks it.
    assert {caller for caller, called in walked if called == model} == {batcher}
    # What the predictor does for it is the model's own affair: decoding and running.
    below = {called for caller, called in walked if caller == model}
    assert below == {images.__name__, engines.__name__}
    beside = {f"{PACKAGE}.counts"} | ({f"{PACKAGE}.encodings"} if protocol == "infer" else set())
    assert {module for call in walked for module in call} == {*WALK, *below, *beside}


def test_the_modules_of_the_server_import_only_from_those_before_them() -> None:
    folder = Path(str(package.__file__)).parent
    assert {path.stem for path in folder.glob("*.py")} == {"__init__", *MODULES, *RAYS}
    for module in MODULES:
        before = MODULES[: MODULES.index(module)]
        for node in ast.walk(ast.parse((folder / f"{module}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
                assert str(node.module).removeprefix(f"{PACKAGE}.") in before, module
