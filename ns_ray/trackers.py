"""What a run tells MLflow and Weights & Biases beside its own files: its settings, its metrics by
step, and at the end its scores, its report and the model that it delivers.

Where they are told it, and in which project, is what their own environment variables say. They are
told in a thread: a slow server keeps no training waiting, and one that fails costs nothing else.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal, Protocol
from uuid import uuid4

from ns_ray import store
from ns_ray.config import RunConfig, config_hash, recorded
from ns_ray.errors import ConfigError, DamagedFileError, first_line
from ns_ray.log import say
from ns_ray.store import RunLayout

PACKAGES = {"mlflow": "mlflow-skinny", "wandb": "wandb"}
MOST_PARAMETERS, LONGEST_PARAMETER = 100, 6000
"""That MLflow takes in one call, and characters of one."""

Ending = Literal["finished", "failed", "interrupted"]


class Tracker(Protocol):
    """A run at a tracker.

    Attributes:
        id: by which it goes on there.
        place: where it is seen.
    """

    id: str
    place: str

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Those of a step of a stage."""

    def deliver(self, scores: Mapping[str, float], report: Path, model: Path) -> None:
        """What came of the run; a report that could not be written is not there."""

    def close(self, ending: Ending) -> None:
        """How the run has ended."""


def check_installed(config: RunConfig) -> None:
    """Whether the packages of a run's trackers are here.

    Raises:
        ConfigError: one is missing.
    """
    for name in config.trackers:
        try:
            distribution(PACKAGES[name])  # an import would find the folder where wandb writes
        except PackageNotFoundError:
            raise ConfigError(
                f"trackers={name} needs the package {PACKAGES[name]}; install it with: pip install "
                f"'ns-ray[{name}]', or leave it out of trackers"
            ) from None


@contextmanager
def tracked(config: RunConfig, layout: RunLayout) -> Iterator["Trackers"]:
    """The trackers of a run, which are told how it has ended."""
    trackers = Trackers(config, layout)
    ending: Ending = "failed"
    try:
        yield trackers
        ending = "finished"
    except KeyboardInterrupt:
        ending = "interrupted"
        raise
    finally:
        trackers.close(ending)


class Trackers:
    """All trackers of a run, each begun with the first that there is to tell. A run that goes on
    goes on there, too: `trackers.json` in its folder knows where.

    Args:
        config: the run.
        layout: where it lives.
    """

    def __init__(self, config: RunConfig, layout: RunLayout) -> None:
        self._config, self._layout = config, layout
        self._open: dict[str, Tracker] = {}
        self._failed: set[str] = set()
        self._new: set[str] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="trackers")
        self._known: dict[str, Any] = {"config_hash": config_hash(config)}
        self._told: dict[str, int] = {}
        if config.trackers:
            self._told = store.last_steps(layout.metrics)
            self._recall()

    def _recall(self) -> None:
        try:
            found = store.read_json(self._place) if store.exists(self._place) else None
        except DamagedFileError as error:
            say(f"{error}; trackers are told of a new run")
            return
        if isinstance(found, dict) and found.get("config_hash") == self._known["config_hash"]:
            self._known = found

    @property
    def _place(self) -> str:
        return store.join(self._layout.root, "trackers.json")

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Metrics of a step. Those of steps that are done again were told before."""

        def tell(name: str, tracker: Tracker) -> None:
            if name in self._new or step > self._told.get(stage, 0):
                tracker.metrics(stage, step, values)

        self._each(tell)

    def deliver(self, result: Mapping[str, Any]) -> None:
        """What came of the run, once; what failed is told when its command is run again."""

        def tell(name: str, tracker: Tracker) -> None:
            with tempfile.TemporaryDirectory(prefix="ns-ray-") as folder:
                report, model = Path(folder, "report.html"), Path(folder, "model")
                if store.exists(self._layout.report):
                    report.write_bytes(store.read_bytes(self._layout.report))
                model.mkdir()
                for file in store.list_files(self._layout.model):
                    data = store.read_bytes(store.join(self._layout.model, file))
                    Path(model, file).write_bytes(data)
                tracker.deliver(scores_of(result), report, model)
            self._note(name, {"id": tracker.id, "delivered": True})

        self._each(tell, lambda name: not self._known.get(name, {}).get("delivered"))

    def close(self, ending: Ending) -> None:
        """Wait until all is told."""
        self._thread.submit(self._close, ending)
        self._thread.shutdown()

    def _close(self, ending: Ending) -> None:
        for name, tracker in self._open.items():
            if name not in self._failed:
                self._try(name, partial(tracker.close, ending))

    def _each(
        self, tell: Callable[[str, Tracker], None], wanted: Callable[[str], bool] = bool
    ) -> None:
        for name in self._config.trackers:
            if wanted(name):
                self._thread.submit(self._try, name, partial(self._tell, name, tell))

    def _tell(self, name: str, tell: Callable[[str, Tracker], None]) -> None:
        tell(name, self._opened(name))

    def _try(self, name: str, work: Callable[[], None]) -> None:
        if name in self._failed:
            return
        try:
            work()
        except Exception as error:
            self._failed.add(name)
            say(f"{name} is told nothing more of this run: {first_line(error)}")

    def _opened(self, name: str) -> Tracker:
        if name not in self._open:
            known = self._known.get(name, {}).get("id")
            kind: Callable[..., Tracker] = MLflow if name == "mlflow" else WandB
            tracker = kind(self._config.name, known, self._settings())
            self._open[name] = tracker
            if tracker.id != known:
                self._new.add(name)
                self._note(name, {"id": tracker.id})
            say(f"{name}: {tracker.place}")
        return self._open[name]

    def _note(self, name: str, what: dict[str, Any]) -> None:
        self._known = {**self._known, name: what}
        store.write_json(self._place, self._known)

    def _settings(self) -> dict[str, Any]:
        """As the run's config.yaml has them, with what was chosen."""
        return recorded(store.read_bytes(self._layout.config)) or {}


class MLflow:
    """A run in MLflow.

    Args:
        name: of the run.
        known: id of the run there, where it has begun.
        settings: of the run.
    """

    def __init__(self, name: str, known: str | None, settings: Mapping[str, Any]) -> None:
        # Its own defaults take minutes to find a server gone, and print where a run is themselves.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "1")
        import mlflow

        self._mlflow = mlflow
        if known and not self._is_there(known):
            known = None
        run = mlflow.start_run(run_id=known, run_name=None if known else name)
        self.id = str(run.info.run_id)
        self.place = (
            f"run {self.id} of experiment {run.info.experiment_id}, {mlflow.get_tracking_uri()}"
        )
        if not known:
            values = list(flat(settings).items())
            for i in range(0, len(values), MOST_PARAMETERS):
                mlflow.log_params(dict(values[i : i + MOST_PARAMETERS]))

    def _is_there(self, known: str) -> bool:
        try:
            return self._mlflow.get_run(known).info.lifecycle_stage == "active"
        except self._mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """`gen-01/train/train_loss` and the like."""
        self._mlflow.log_metrics({f"{stage}/{k}": v for k, v in values.items()}, step=step)

    def deliver(self, scores: Mapping[str, float], report: Path, model: Path) -> None:
        """Scores as metrics, `report.html` and `model/` as artifacts."""
        self._mlflow.log_metrics(dict(scores))
        if report.exists():
            self._mlflow.log_artifact(str(report))
        self._mlflow.log_artifacts(str(model), "model")

    def close(self, ending: Ending) -> None:
        """`FINISHED`, `FAILED` or `KILLED`."""
        status = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
        self._mlflow.end_run(status[ending])


class WandB:
    """A run in Weights & Biases; arguments as of `MLflow`."""

    def __init__(self, name: str, known: str | None, settings: Mapping[str, Any]) -> None:
        import wandb

        self._wandb, self._stages = wandb, set[str]()
        online = wandb.setup().settings.mode == "online"
        if online and not wandb.login(prompt=False, verify=False):
            raise ValueError("there is no API key; set WANDB_API_KEY, or WANDB_MODE=offline")
        self.id = known or uuid4().hex[:8]
        self._run = wandb.init(
            id=self.id,
            name=name,
            config=dict(settings),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True),
        )
        folder = self._run.settings.sync_dir
        self.place = str(self._run.url) if online else f"{folder}; `wandb sync {folder}` sends it"

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """`gen-01/train/train_loss` and the like, each stage by its own steps."""
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._run.log({f"{stage}/{k}": v for k, v in (*values.items(), ("step", step))})

    def deliver(self, scores: Mapping[str, float], report: Path, model: Path) -> None:
        """Scores in the summary, report and model as artifacts `NAME-report` and `NAME-model`."""
        self._run.summary.update(dict(scores))
        for kind, path in (("report", report), ("model", model)):
            if path.exists():
                artifact = self._wandb.Artifact(f"{self._run.name}-{kind}", kind)
                for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                    artifact.add_file(str(file))
                self._run.log_artifact(artifact)

    def close(self, ending: Ending) -> None:
        """What is left is sent before this returns."""
        self._run.finish(exit_code=0 if ending == "finished" else 1)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"train.lr": "0.1", "students.0.model": ...}` of nested settings; long ones are cut."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            value = {str(i): one for i, one in enumerate(value)}
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = str(value)[:LONGEST_PARAMETER]
    return found


def scores_of(result: Mapping[str, Any]) -> dict[str, float]:
    """Accuracy of each model, `gen-01/val_top1` and the like, and of the delivered one."""
    control = [result["control"]] if result["control"] else []
    rows = {store.arm_name(row["generation"]): row for row in [*result["generations"], *control]}
    names = ("val_top1", "test_top1")
    found = {
        f"{arm}/{name}": row[name]
        for arm, row in rows.items()
        for name in names
        if row[name] is not None
    }
    best = {**result["generations"][result["best_generation"]]}
    if refit := result.get("refit"):
        best |= {"val_top1": None, "test_top1": refit["test_top1"]}
    return found | {name: best[name] for name in names if best[name] is not None}
