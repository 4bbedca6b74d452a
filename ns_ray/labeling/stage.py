"""The teacher labels the pile: every image, with its whole probability vector."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ns_ray import store
from ns_ray.compute import Pool
from ns_ray.config import LabelConfig, NoiseConfig, PredictConfig
from ns_ray.errors import ConfigError, DataError
from ns_ray.labeling.inference import Inferred, infer
from ns_ray.labeling.job import InferenceJob
from ns_ray.store import Bundle, Corpus, PseudoLabels, check_same_classes, open_labels


def pseudo_label(
    config: LabelConfig,
    teacher: Bundle,
    unlabeled: Corpus,
    *,
    pool: Pool,
    out: str,
    title: str,
    predict: PredictConfig | None = None,
    noise: NoiseConfig | None = None,
    others: Sequence[Bundle] = (),
    known: tuple[Corpus, Corpus] | None = None,
) -> PseudoLabels:
    """Label every image of a corpus with a teacher: averaged weights, eval mode, clean center
    crop at the teacher's own resolution.

    What selection later drops is written too. Run again, it labels the shards that are missing.

    Args:
        config: batch size, and how many probabilities to keep.
        teacher: the model.
        unlabeled: the pile.
        pool: the actors.
        predict: how images go through the model.
        out: folder of the pseudo-labels.
        title: name of the progress line.
        noise: for teacher and images, where `config.noised` asks for it.
        others: further teachers; the labels are the mean of the probabilities of all. Each decodes
            for itself, and an actor holds all.
        known: labeled and held-out images, to say how foreign each row is; see foreign.py.

    Raises:
        ConfigError: `config.noised` without a noise.
        DataError: no image could be labeled, or two teachers know different classes.
        StageError: actors kept failing; what was written is kept.
    """
    if config.noised and noise is None:
        raise ConfigError("label.noised=true is for whole runs, whose train.noise it takes")
    check_same_classes([teacher, *others])
    noise = noise if config.noised else None
    job = _job(config, teacher, others, unlabeled, out, predict or PredictConfig(), noise)
    job = _knowing(job, known)
    with store.claimed(out, job.fingerprint) as there:
        if there is not None:
            return open_labels(out)
        done = infer(job, pool=pool, title=title)
        if not done.rows:
            raise DataError(
                f"none of the {unlabeled.rows} images of {unlabeled.path} can be decoded"
            )
        store.publish(
            out,
            stage="label",
            fingerprint=job.fingerprint,
            files=done.files,
            facts=_facts(job, teacher, done) | _foreign(job, done),
            inputs=_inputs(teacher, others, unlabeled),
            seconds=done.seconds,
        )
    return open_labels(out)


def _inputs(teacher: Bundle, others: Sequence[Bundle], unlabeled: Corpus) -> dict[str, Any]:
    return {
        "teacher": teacher.fingerprint,
        "corpus": unlabeled.fingerprint,
        **({"others": [other.fingerprint for other in others]} if others else {}),
    }


def _job(
    config: LabelConfig,
    teacher: Bundle,
    others: Sequence[Bundle],
    unlabeled: Corpus,
    out: str,
    predict: PredictConfig,
    noise: NoiseConfig | None,
) -> InferenceJob:
    classes = len(teacher.classes)
    top_k = None if classes <= config.dense_classes else min(config.top_k, classes)
    settings = [
        top_k,
        predict.model_dump(),
        *([noise.model_dump()] if noise else []),
        *(other.fingerprint for other in others),
    ]
    return InferenceJob(
        bundle=teacher.path,
        corpus=unlabeled.path,
        out=out,
        fingerprint=store.fingerprint(
            "label", teacher.fingerprint, unlabeled.fingerprint, settings
        ),
        batch_size=config.batch_size,
        predict=predict,
        top_k=top_k,
        noise=noise,
        decode=config.decode,
        others=tuple(other.path for other in others),
    )


def _knowing(job: InferenceJob, known: tuple[Corpus, Corpus] | None) -> InferenceJob:
    """The same job, which also says how foreign each row is, where that is wanted, and not done
    already without, by an earlier version."""
    if known is None or job.noise is not None or store.already(job.out, job.fingerprint):
        return job
    labeled, held_out = known
    made_of = (job.fingerprint, labeled.fingerprint, held_out.fingerprint)
    return replace(
        job,
        known=(labeled.path, held_out.path),
        fingerprint=store.fingerprint("label foreign", *made_of),
    )


def _foreign(job: InferenceJob, done: Inferred) -> dict[str, Any]:
    """Whether the files say how foreign each row is."""
    first = store.read_labels(store.join(job.out, done.files[0]))
    return {"foreign": True} if "foreign" in first.column_names else {}


def _facts(job: InferenceJob, teacher: Bundle, done: Inferred) -> dict[str, Any]:
    return {
        "corpus": job.corpus,
        "teacher": job.bundle,
        **({"others": list(job.others)} if job.others else {}),
        "classes": list(teacher.classes),
        "rows": done.rows,
        "rejected": done.rejected,
        "images_per_second": done.images_per_second,
        "steady_images_per_second": done.steady_rate and round(done.steady_rate, 1),
        "start_seconds": round(done.start_seconds, 3),
        "seconds_waited": round(done.waited, 3),
        "top_k": job.top_k,
        "engine": done.engine,
    }
