"""What a run leaves open, chosen once: when its images are counted, and kept in its config.yaml.

What is chosen is said in config/defaults.py.
"""

from ns_ray import store
from ns_ray.config import Images, RunConfig, chosen_in, dump_chosen, in_words, settle
from ns_ray.log import say
from ns_ray.store import Corpora


def images_of(data: Corpora) -> Images:
    """What training settings are chosen by."""
    return Images(data.labeled.rows, data.unlabeled.rows if data.unlabeled else 0)


def settle_once(config: RunConfig, data: Corpora, path: str) -> RunConfig:
    """The run with the training settings that it leaves open: as its config.yaml says, where it
    began earlier, and otherwise chosen for its images, said, and written there."""
    text = store.read_bytes(path) if store.exists(path) else None
    before = chosen_in(text) if text else None
    settled, chosen = settle(config, images_of(data), before)
    for place, values in chosen.items():
        say(f"{place}: chosen for these images: {in_words(values)}")
    if chosen and text and not before:
        store.write_bytes(path, text + dump_chosen(chosen).encode())
    return settled
