"""The rivals of a run, trained on its own corpora; see rivals.py.

Images through the network are those of training steps, every image of every step: labeled and
pseudo-labeled ones of the teacher and of all students, and both views of FixMatch. A teacher's
passes over the pile when it labels are not among them, nor is what a choice between several lengths
or rates has cost: a rival is counted with the one that was chosen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ns_ray import store
from ns_ray.chosen import images_of
from ns_ray.config import ModelConfig, RunConfig, TrainConfig, longer, settle, train_config
from ns_ray.data import together
from ns_ray.itinerary import Itinerary, alone
from ns_ray.protocol import Stages
from ns_ray.steps import Score, Split, Train
from ns_ray.store import CONTROL, Bundle, Corpora, Corpus, Evaluation
from ns_ray.training import total_steps

LENGTHS = (2, 4)
"""Times the steps of the first teacher, which is itself the first of three."""
RATES = (1.0, 1 / 3)
"""Times the student's rate: those of the control arm with a full batch."""


@dataclass(frozen=True)
class Trained:
    """A model that might stand for an arm.

    Attributes:
        what: what sets it apart from the others of its arm.
        out: folder of what is known of it.
        bundle: the model.
        images: that went through the network.
        validation: its scores; None where it was trained on those images.
    """

    what: str
    out: str
    bundle: Bundle
    images: int
    validation: Evaluation | None


@dataclass(frozen=True)
class Ground:
    """What the rivals of one run have in common.

    Attributes:
        config: the run as it was asked for.
        settled: the same, its training settings chosen.
        plan: what it has done.
        data: its corpora.
        stages: that train and score.
        device: where FixMatch and the probe compute: cpu or cuda.
        root: folder of the rivals.
    """

    config: RunConfig
    settled: RunConfig
    plan: Itinerary
    data: Corpora
    stages: Stages
    device: str
    root: str

    @property
    def images(self) -> int:
        """What all teachers and students together have sent through the network."""
        arms = (self.plan.teacher, *self.plan.students)
        trainings = [step for arm in arms for step in arm.trainings]
        steps = [*trainings, *self.plan.teacher.others]
        return sum(seen(step, self.data.labeled.rows) for step in steps)

    @property
    def student(self) -> tuple[ModelConfig, TrainConfig]:
        """The last student as it would be without a teacher: from where its teacher started, in one
        training."""
        model = alone(self.plan.students[-1].model, self.config.teacher)
        train = train_config(self.settled.train, model)
        return model.model_copy(update={"finetune": None, "fixres": None}), train

    def fit(
        self,
        name: str,
        what: str,
        step: Train,
        *,
        seed: int,
        labeled: Corpus | None = None,
        calibrated: bool = True,
    ) -> Trained:
        """Train on labeled images alone, as `step` says, and score on validation."""
        out = store.join(self.root, name, what)
        step = replace(
            step,
            id=f"{name}/{what}",
            title=f"{name} {what}",
            out=store.join(out, "bundle"),
            checkpoints=store.join(out, "checkpoints"),
            pseudo=False,
        )
        labeled = labeled or self.data.labeled
        bundle = self.stages.fit(
            step,
            labeled=labeled,
            validation=self.data.validation if calibrated else None,
            pseudo=None,
            teacher=None,
            seed=seed,
            provenance={"run": self.config.name, "role": name, "model": step.model.model},
        )
        found = self.score(bundle, out, "validation", self.data.validation) if calibrated else None
        return Trained(what, out, bundle, seen(step, labeled.rows), found)

    def score(self, bundle: Bundle, out: str, split: Split, corpus: Corpus) -> Evaluation:
        """Score as a run scores."""
        place = store.join(out, "evaluation", split)
        title = f"{out.removeprefix(self.root).strip('/')} {split}"
        score = Score(title, title, place, CONTROL, self.config.teacher, split)
        return self.stages.evaluate(score, self.config.evaluate, [bundle], corpus)


def seen(step: Train, rows: int) -> int:
    """Images that a training sends through the network."""
    total = 0
    for part in step.parts:
        pseudo = round(part.train.batch_size * part.train.unlabeled_ratio) if part.pseudo else 0
        total += total_steps(part.train, rows) * (part.train.batch_size + pseudo)
    return total


def lasting(train: TrainConfig, steps: int, rows: int) -> TrainConfig:
    """The same training with so many steps; half a step less keeps rounding from adding one."""
    return longer(train, (steps - 0.5) * train.batch_size / rows / train.epochs)


def teacher_long(ground: Ground) -> list[Trained]:
    """The first teacher, and it again with more steps."""
    arm = ground.plan.teacher
    if not arm.trainings:  # a bundle of the user's
        return []
    (step,) = arm.trainings
    first = ground.stages.fit(  # what the run has published
        step,
        labeled=ground.data.labeled,
        validation=ground.data.validation,
        pseudo=None,
        teacher=None,
        seed=ground.config.seed * 1000 + 1,
        provenance={},
    )
    found = ground.stages.evaluate(
        arm.validation, ground.config.evaluate, [first], ground.data.validation
    )
    images = seen(step, ground.data.labeled.rows)
    return [
        Trained("1x", store.join(ground.root, "teacher-long", "1x"), first, images, found),
        *(
            ground.fit(
                "teacher-long",
                f"{factor}x",
                replace(step, train=longer(step.train, factor)),
                seed=ground.config.seed * 1000 + 1,
            )
            for factor in LENGTHS
        ),
    ]


def control_filled(ground: Ground) -> list[Trained]:
    """The last student without a teacher: its whole batch labeled images, and as many of them in
    total as teacher and students have seen."""
    model, train = ground.student
    batch = train.batch_size + round(train.batch_size * train.unlabeled_ratio)
    full = train.model_copy(update={"batch_size": batch})
    full = lasting(full, max(1, round(ground.images / batch)), ground.data.labeled.rows)
    last = ground.plan.students[-1].trainings[-1]
    return [
        ground.fit(
            "control-filled",
            f"lr-{rate * train.lr:.2g}",
            replace(last, model=model, train=full.model_copy(update={"lr": rate * train.lr})),
            seed=ground.config.seed * 1000,
        )
        for rate in RATES
    ]


def probe(ground: Ground) -> list[Trained]:
    """Logistic regression on the features of each pretrained network as it came. Left out without
    one, and with more labeled images than training/head.py fits."""
    import torch

    from ns_ray.model import build, save
    from ns_ray.training.calibration import calibrate
    from ns_ray.training.head import start_head

    data, found = ground.data, {}
    for model in (ground.config.teacher, ground.student[0]):
        if model.pretrained is None or "/" in model.pretrained:
            continue
        what = f"{model.model}-{model.image_size or 'own'}"
        out = store.join(ground.root, "probe", what)
        network = build(model, len(data.labeled.classes)).to(ground.device)
        if start_head(network, data.labeled, torch.device(ground.device)) is None:
            continue
        calibrate(network, data.validation, torch.device(ground.device), pretrained=True)
        corpora = (data.labeled.fingerprint, data.validation.fingerprint)
        bundle = save(
            network,
            store.join(out, "bundle"),
            classes=data.labeled.classes,
            fingerprint=store.fingerprint("probe", model.model_dump(mode="json"), corpora),
            provenance={"run": ground.config.name, "role": "probe", "model": model.model},
        )
        scores = ground.score(bundle, out, "validation", data.validation)
        found[what] = Trained(what, out, bundle, data.labeled.rows, scores)
    return list(found.values())


def fix_match(ground: Ground) -> list[Trained]:
    """FixMatch with the last student's network and settings, see fixmatch.py."""
    import torch
    from fixmatch import fixmatch

    model, train = ground.student
    pile = ground.data.unlabeled
    assert pile is not None
    batch = train.batch_size + 2 * round(train.batch_size * train.unlabeled_ratio)
    steps = max(1, round(ground.images / batch))
    out = store.join(ground.root, "fixmatch")
    bundle = fixmatch(
        model,
        lasting(train, steps, ground.data.labeled.rows),
        labeled=ground.data.labeled,
        pile=pile,
        validation=ground.data.validation,
        seed=ground.config.seed * 1000,
        device=torch.device(ground.device),
        out=store.join(out, "bundle"),
        provenance={"run": ground.config.name, "role": "fixmatch", "model": model.model},
    )
    found = ground.score(bundle, out, "validation", ground.data.validation)
    sure = f"{bundle.provenance['sure']:.0%} sure"
    return [Trained(sure, out, bundle, steps * batch, found)]


def teacher_all_labels(ground: Ground) -> list[Trained]:
    """The first teacher on labeled and validation images together, as long as `teacher-long` was
    best, and with the settings that are chosen for so many. No temperature is fitted."""
    lengths = teacher_long(ground)
    if not lengths:
        return []
    data = ground.data
    both = together(data.labeled, data.validation, store.join(ground.root, "all-labels"))
    alike = ground.stages.symmetric(data)
    counts = replace(images_of(data, symmetric=alike), labeled=both.rows)
    factor = float(chosen(lengths).what.rstrip("x"))
    settled = settle(ground.config, counts)[0]
    (step,) = ground.plan.teacher.trainings
    train = longer(train_config(settled.train, settled.teacher), factor)
    return [
        ground.fit(
            "teacher-all-labels",
            f"{factor:g}x",
            replace(step, train=train),
            seed=ground.config.seed * 1000 + 1,
            labeled=both,
            calibrated=False,
        )
    ]


def chosen(models: Sequence[Trained]) -> Trained:
    """The better one on validation; of equals, the first."""

    def top1(model: Trained) -> float:
        return model.validation.top1 if model.validation else 0.0

    return max(models, key=top1)


RIVALS: dict[str, Callable[[Ground], list[Trained]]] = {
    "teacher-long": teacher_long,
    "control-filled": control_filled,
    "probe": probe,
    "fixmatch": fix_match,
    "teacher-all-labels": teacher_all_labels,
}
"""By name: what trains the models of each rival."""
