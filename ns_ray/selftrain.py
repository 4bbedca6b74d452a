"""Noisy Student self-training, as the paper has it: a teacher labels the pile, the confident and
balanced part of it trains an equal or larger, noised student, and the student teaches next.

The stages are handed in (see stages.py), so this file knows no Ray and no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ns_ray import store
from ns_ray.accept import best_of, is_accepted, lineage, verdict
from ns_ray.chosen import settle_once
from ns_ray.config import (
    RobustnessConfig,
    RunConfig,
    config_hash,
    train_config,
)
from ns_ray.errors import DataError
from ns_ray.itinerary import steps
from ns_ray.log import say
from ns_ray.protocol import Stages
from ns_ray.result import Generation, Lesson, Refitted, Result, result
from ns_ray.scoring import compare
from ns_ray.steps import (
    Arm,
    Label,
    Refit,
    Score,
    Select,
    Student,
    Teacher,
    Train,
    among_more,
    teaches_next,
)
from ns_ray.store import (
    CONTROL,
    Bundle,
    Corpora,
    Corpus,
    Evaluation,
    PseudoLabels,
    RunLayout,
    Selection,
    arm_name,
)
from ns_ray.training import before_fixres


@dataclass(frozen=True)
class Outcome:
    """What `result.json` says of a run, and the model that is to be served."""

    result: Result
    best: Bundle


def self_train(config: RunConfig, layout: RunLayout, stages: Stages) -> Outcome:
    """Run the whole loop, as the itinerary has it (see itinerary.py)."""
    data = stages.ingest(config.data, seed=config.seed, out=layout)
    settled = settle_once(config, data, layout.config, stages.fit_budget, stages.symmetric)
    stages.forecast(settled, data, layout.plan)
    itinerary = steps(settled, layout)
    run = _Run(config, layout, stages, data, (data.labeled, data.validation))

    teacher = run.first_teacher(itinerary.teacher)
    generations = [teacher]
    run.tell(generations)
    chosen = None
    for arm in itinerary.students:
        labels = run.pseudo_label(itinerary.students[teacher.generation].label, teacher)
        chosen = run.select(arm.select, labels, teacher, previous=chosen)
        student = run.fit_student(arm, teacher, Lesson(teacher.generation, labels, chosen))
        generations.append(student)
        run.tell(generations)
        if teaches_next(student.accepted, config.accept):
            teacher = student
        elif config.accept.otherwise == "stop":
            break

    # Of a run that ends early, the control arm is that of its last student.
    arms = steps(settled, layout, students=len(generations) - 1)
    models = [*generations, *([run.fit_control(arms.control)] if arms.control else [])]
    if arms.control:
        run.tell(models)
    best = best_of([g for g in generations if g.accepted])
    models = [run.test(model) for model in models]
    refit = None
    line = lineage(best, generations)
    if len(line) > 1:
        plan = steps(settled, layout, again=[student.generation for student in line[1:]]).refit
        refit = run.refit(plan, line) if plan else None
    if config.evaluate.robustness is not None:
        shown = {0, best.generation, generations[-1].generation, CONTROL}
        models = run.robustness(config.evaluate.robustness, models, shown)
    for model in models:
        run.write(model, models)
    found = result(config, data, models, best.generation, refit)
    return Outcome(found, (refit or best).bundle)


def train_model(
    config: RunConfig,
    stages: Stages,
    trainings: Sequence[Train],
    *,
    labeled: Corpus,
    validation: Corpus | None,
    seed: int,
    pseudo: Selection | None = None,
    teacher: Bundle | None = None,
) -> Bundle:
    """Take the trainings of one model in turn; each may start from what the one before has made.

    Args:
        config: the run.
        stages: only `fit` is asked for.
        trainings: one, or two with `finetune`.
        labeled: labeled images.
        validation: those that the last training's temperature is fitted on; None: as its step
            says.
        seed: of all of them.
        pseudo: what a student learns from its teacher.
        teacher: whose weights the first training starts from, where `init` is `teacher`.
    """
    model = teacher
    for step in trainings:
        last = step is trainings[-1]
        noises = f"noise on labeled images: {step.train.noise.live('labeled')}"
        if step.pseudo:
            noises += f"; on pseudo-labeled: {step.train.noise.live('unlabeled')}"
        say(f"{step.title}: {step.role} {step.model.model}; {noises}")
        model = stages.fit(
            step,
            labeled=labeled,
            validation=validation if last and step.temperature is None else None,
            pseudo=pseudo if step.pseudo else None,
            teacher=model,
            seed=seed,
            provenance={
                "run": config.name,
                "role": step.role,
                "model": step.model.model,
                "generation": arm_name(g) if (g := step.generation) < 0 else g,
                **({"refit": True} if step.all_labels else {}),
                "config_hash": config_hash(config),
            },
        )
    assert model is not None
    return model


@dataclass(frozen=True)
class _Run:
    """The arguments that all stages of a run share."""

    config: RunConfig
    layout: RunLayout
    stages: Stages
    data: Corpora
    known: tuple[Corpus, Corpus]
    """Images that tell what is foreign; those of a refit stay apart, though it learns from both."""

    def first_teacher(self, arm: Teacher) -> Generation:
        """Step 1: a teacher trained on labeled images, or the user's; and others that label with
        it, where `label.teachers` asks for them."""
        if arm.model.bundle is None:
            bundle = self._train(arm.trainings, arm.generation)
        else:
            bundle = self.stages.open_bundle(arm.model.bundle)
            if bundle.classes != self.data.labeled.classes:
                raise DataError(
                    f"teacher.bundle={arm.model.bundle} knows the classes "
                    f"{list(bundle.classes)[:10]}, the labeled images have "
                    f"{list(self.data.labeled.classes)[:10]}; they must be the same"
                )
        teacher = Generation(arm, bundle, self._evaluate(arm.validation, [bundle]), accepted=True)
        if arm.average is None:
            return teacher
        # Their seeds are the run's last ones: the generations have its first.
        others = tuple(self._train([step], 998 - i) for i, step in enumerate(arm.others))
        average = self._evaluate(arm.average, [bundle, *others])
        say(
            f"{teacher.name}: the average of {1 + len(others)} teachers has {average.top1:.4f} on "
            f"validation, the first of them {teacher.validation.top1:.4f}"
        )
        return teacher.among(others, average)

    def pseudo_label(self, step: Label, teacher: Generation) -> PseudoLabels:
        """Step 2: the un-noised teacher labels the pile."""
        least = self.config.label.min_teacher_top1
        top1 = (teacher.average or teacher.validation).top1
        if top1 < least:
            raise DataError(
                f"the teacher's validation accuracy is {top1:.3f}, below "
                f"label.min_teacher_top1={least}; train a better teacher or lower the setting"
            )
        noise = None
        if self.config.label.noised:
            noise = train_config(self.config.train, teacher.arm.model).noise.unmixed()
        live = noise.live("labeled") if noise else "none"
        who = f"average of {len(teacher.bundles)} teachers" if teacher.others else "teacher"
        say(f"{step.title}: {who} of {teacher.name}; noise: {live}")
        assert self.data.unlabeled is not None
        return self.stages.pseudo_label(
            step,
            self.config.label,
            teacher.bundles,
            self.data.unlabeled,
            noise=noise,
            known=self.known,
        )

    def select(
        self, step: Select, labels: PseudoLabels, teacher: Generation, previous: Selection | None
    ) -> Selection:
        """Step 2b: filter and balance."""
        return self.stages.select(
            step,
            self.config.select,
            labels,
            seed=self.config.seed,
            labeled_counts=self.data.labeled.class_counts,
            previous=previous if self.config.select.reassign else None,
            evaluation=teacher.average or teacher.validation,
            validation=self.data.validation,
        )

    def fit_student(self, arm: Student, teacher: Generation, lesson: Lesson) -> Generation:
        """Steps 3 and 4: an equal or larger student, noised, on labeled and pseudo-labeled images;
        and whether it is better than its teacher."""
        bundle = self._train(arm.trainings, arm.generation, lesson.selection, teacher.bundle)
        validation = self._evaluate(arm.validation, [bundle])
        pair = compare(*teacher.validation.beside(validation))
        accepted = is_accepted(pair, self.config.accept)
        student = Generation(arm, bundle, validation, accepted, pair["p"], lesson)
        say(verdict(student, teacher, self.config.accept))
        return student

    def fit_control(self, arm: Arm) -> Generation:
        """The last student again, on labeled images only."""
        bundle = self._train(arm.trainings, arm.generation)
        return Generation(arm, bundle, self._evaluate(arm.validation, [bundle]), accepted=False)

    def tell(self, models: Sequence[Generation]) -> None:
        """What is known before the end, for those who wait."""
        best = best_of([model for model in models if model.accepted])
        found = result(self.config, self.data, models, best.generation)
        self.stages.tell({**found, "status": "unfinished"}, self.layout)

    def refit(self, plan: Refit, before: Sequence[Generation]) -> Refitted:
        """The best student and the models that led to it once more, with the validation images
        among the labeled ones. Nothing is held out then: temperatures and thresholds stay those of
        before, and only test images can tell how good the models are."""
        more = (self.data.labeled.rows, self.data.validation.rows)
        labeled = self.stages.together(self.data, plan.out)
        run = replace(self, data=replace(self.data, labeled=labeled))

        def again(
            model: Bundle,
            trainings: Sequence[Train],
            nth: int,
            pseudo: Selection | None = None,
            teacher: Bundle | None = None,
        ) -> Bundle:
            *first, last = [among_more(step, *more) for step in trainings]
            last = replace(last, temperature=model.provenance.get("temperature", 1.0))
            return run._train([*first, last], nth, pseudo, teacher)

        teacher = before[0]
        if plan.teacher.trainings:
            others = zip(teacher.others, plan.teacher.others, strict=True)
            teacher = replace(
                teacher,
                bundle=again(teacher.bundle, plan.teacher.trainings, 0),
                others=tuple(again(m, [step], 998 - i) for i, (m, step) in enumerate(others)),
            )
        models = [teacher]
        chosen = None
        for student, arm in zip(before[1:], plan.students, strict=True):
            labels = run.pseudo_label(arm.label, teacher)
            chosen = run.select(arm.select, labels, teacher, previous=chosen)
            made = again(student.bundle, arm.trainings, arm.generation, chosen, teacher.bundle)
            lesson = Lesson(teacher.generation, labels, chosen)
            teacher = replace(student, arm=arm, bundle=made, lesson=lesson)
            models.append(teacher)
        test = None
        if plan.test is not None and self.data.test is not None:
            test = self.stages.evaluate(
                plan.test, self.config.evaluate, [teacher.bundle], self.data.test
            )
        return Refitted(tuple(models), labeled.rows, test)

    def test(self, model: Generation) -> Generation:
        """Score on test: once, when every choice has been made."""
        step, test = model.arm.test, self.data.test
        if step is None or test is None:
            return model
        return model.tested(self.stages.evaluate(step, self.config.evaluate, [model.bundle], test))

    def robustness(
        self, config: RobustnessConfig, models: Sequence[Generation], shown: set[int]
    ) -> list[Generation]:
        """Score on corrupted, perturbed and attacked test images (validation without a test)."""
        asked = [model for model in models if model.generation in shown]
        bundles, names = [model.bundle for model in asked], [model.name for model in asked]
        if config.before_fixres:
            tuned = [m for m in asked if m.arm.model.fixres is not None and m.arm.trainings]
            bundles += [self.stages.open_bundle(before_fixres(m.bundle)) for m in tuned]
            names += [_before(m.name) for m in tuned]
        places = list(names)
        if config.baseline is not None:
            bundles.insert(0, self.stages.open_bundle(config.baseline))
            names.insert(0, config.baseline)
            places.insert(0, "baseline")
        results = self.stages.robustness(
            config,
            bundles,
            self.data.test or self.data.validation,
            outs=[self.layout.robustness(place) for place in places],
            names=names,
            batch_size=self.config.evaluate.batch_size,
        )
        found = dict(zip(places, results, strict=True))
        return [
            model.damaged(found[model.name], found.get(_before(model.name)))
            if model in asked
            else model
            for model in models
        ]

    def write(self, model: Generation, models: Sequence[Generation]) -> None:
        """Everything that is known of a model's quality, in `evaluation.json`; the control arm is
        compared with every generation, a generation with those before."""
        last = len(models) if model.generation == CONTROL else model.generation
        earlier = [g for g in models if 0 <= g.generation < last]
        before = model.before_fixres
        store.write_json(
            store.join(self.layout.generation(model.generation), "evaluation.json"),
            {
                "validation": model.validation.scores,
                "test": model.test.scores if model.test else None,
                "robustness": model.robustness,
                **({"robustness_before_fixres": before} if before else {}),
                "paired": {
                    g.name: compare(
                        *(g.test or g.validation).beside(model.test or model.validation)
                    )
                    for g in earlier
                },
            },
        )

    def _train(
        self,
        trainings: Sequence[Train],
        nth: int,
        pseudo: Selection | None = None,
        teacher: Bundle | None = None,
    ) -> Bundle:
        """The nth of the thousand seeds that a run has, from -1, makes a model of its own."""
        return train_model(
            self.config,
            self.stages,
            trainings,
            labeled=self.data.labeled,
            validation=self.data.validation,
            seed=self.config.seed * 1000 + nth + 1,
            pseudo=pseudo,
            teacher=teacher,
        )

    def _evaluate(self, step: Score, models: Sequence[Bundle]) -> Evaluation:
        return self.stages.evaluate(step, self.config.evaluate, models, self.data.validation)


def _before(name: str) -> str:
    """Folder of a model before its `fixres`, for its counts on damaged images."""
    return f"{name}/before-fixres"
