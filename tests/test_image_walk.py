"""The way of an unlabeled image through the rooms, from its folder to a gradient, followed while it
goes. docs/architecture.md shows the same way."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from tiny import flat_folder, folder_per_class, given_teacher, user_environment, write_config
from walks import Call, following

from ns_ray.api import execute
from ns_ray.compute import Machine
from ns_ray.config.loading import load_config

WALK = ("data", "model", "labeling", "selection", "training")
STAGES = [f"ns_ray.{room}.stage" for room in ("data", "labeling", "selection", "training")]


def walk(folder: Path) -> list[Call]:
    """Calls between modules in a run of one student, all of it in this process."""
    changes = {
        "storage": str(folder / "runs"),
        "data.labeled": str(folder_per_class(folder / "labeled", 20)),
        "data.unlabeled": [str(flat_folder(folder / "pile", 30, start=500))],
        "teacher": {"bundle": given_teacher(folder / "teacher")},
        "select.threshold": 0.0,
        "train.epochs": 1,
        "resources.loaders": 0,
    }
    config = load_config(write_config(folder / "run.yaml", changes))
    import ns_ray.training.loop  # noqa: F401  following imports takes longer than all the rest

    calls: list[Call] = []
    with pytest.MonkeyPatch.context() as patch, following(calls):
        here = nullcontext(Machine(cpus=2, gpus=0, local=True))
        patch.setattr("ns_ray.compute.cluster", lambda *_: here)
        execute(config)
    return calls


def walked(folder: Path) -> list[Call]:
    """`walk` in a process of its own, where no Ray runs that would take work away."""
    subprocess.run([sys.executable, __file__, folder], env=user_environment(), check=True)
    return [(caller, called) for caller, called in json.loads((folder / "calls.json").read_text())]


def first(calls: list[Call], wanted: Call) -> int:
    assert wanted in calls
    return calls.index(wanted)


@pytest.mark.slow
def test_an_image_walks_through_the_rooms_in_the_order_of_the_paper(tmp_path: Path) -> None:
    calls = walked(tmp_path)
    # The driver hands the pile from room to room, in this order and to no other.
    handed = [called for caller, called in calls if caller == "ns_ray.stages" and called in STAGES]
    assert list(dict.fromkeys(handed)) == STAGES
    # Rooms on the way know only those that the picture came through: nobody calls back.
    rooms = {(caller.split(".")[1], called.split(".")[1]) for caller, called in calls}
    between = {(a, b) for a, b in rooms if a in WALK and b in WALK and a != b}
    assert between == {
        ("model", "data"),
        ("labeling", "data"),
        ("labeling", "model"),
        ("training", "data"),
        ("training", "model"),
    }
    # The teacher is asked before anything is written about an image, and a student learns from
    # pixels that the room for images made.
    asked = first(calls, ("ns_ray.labeling.actor", "ns_ray.model.predictor"))
    chosen = first(calls, ("ns_ray.selection.stage", "ns_ray.selection.passes"))
    fed = first(calls, ("ns_ray.training.loader", "ns_ray.data.augment"))
    learned = first(calls, ("ns_ray.training.learner", "ns_ray.training.losses"))
    assert asked < chosen < fed < learned


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "calls.json").write_text(json.dumps(walk(place)))
