"""The teacher labels the pile: every image, with its whole probability vector."""

from ns_ray import store
from ns_ray.compute import Pool
from ns_ray.config import LabelConfig, NoiseConfig, PredictConfig
from ns_ray.errors import ConfigError, DataError
from ns_ray.labeling.inference import infer
from ns_ray.store import Bundle, Corpus, PseudoLabels, open_labels


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
) -> PseudoLabels:
    """Label every image of a corpus with a teacher: averaged weights, eval mode, clean center
    crop at the teacher's own resolution.

    What selection later drops is written too. Interrupted and run again, it labels the shards
    that are missing.

    Args:
        config: batch size, and how many probabilities to keep.
        teacher: the model.
        unlabeled: the pile.
        pool: the actors.
        predict: how images go through the model.
        out: folder of the pseudo-labels.
        title: name of the progress line.
        noise: for teacher and images, where `config.noised` asks for it.

    Raises:
        ConfigError: `config.noised` without a noise.
        DataError: no image could be labeled.
        StageError: actors kept failing; what was written is kept.
    """
    classes = len(teacher.classes)
    top_k = None if classes <= config.dense_classes else min(config.top_k, classes)
    predict = predict or PredictConfig()
    if config.noised and noise is None:
        raise ConfigError("label.noised=true is for whole runs, whose train.noise it takes")
    noise = noise if config.noised else None
    settings = [top_k, predict.model_dump(), *([noise.model_dump()] if noise else [])]
    fingerprint = store.fingerprint("label", teacher.fingerprint, unlabeled.fingerprint, settings)
    if store.already(out, fingerprint) is not None:
        return open_labels(out)
    done = infer(
        teacher.path,
        unlabeled,
        out=out,
        fingerprint=fingerprint,
        top_k=top_k,
        batch_size=config.batch_size,
        predict=predict,
        noise=noise,
        pool=pool,
        title=title,
    )
    if not done.rows:
        raise DataError(f"none of the {unlabeled.rows} images of {unlabeled.path} can be decoded")
    store.publish(
        out,
        stage="label",
        fingerprint=fingerprint,
        files=[*done.files.values(), *done.rejected_files],
        facts={
            "corpus": unlabeled.path,
            "teacher": teacher.path,
            "classes": list(teacher.classes),
            "rows": done.rows,
            "rejected": done.rejected,
            "images_per_second": round(done.fresh / max(done.seconds, 1e-9), 1),
            "steady_images_per_second": done.steady_rate and round(done.steady_rate, 1),
            "start_seconds": round(done.start_seconds, 3),
            "seconds_waited": round(done.waited, 3),
            "top_k": top_k,
            "engine": done.engine,
        },
        inputs={"teacher": teacher.fingerprint, "corpus": unlabeled.fingerprint},
        seconds=done.seconds,
    )
    return open_labels(out)
