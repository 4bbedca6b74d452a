"""Where everything of a run lives, and nothing else."""

from dataclasses import dataclass

from ns_ray.config import RunConfig
from ns_ray.store.paths import join, kept

CONTROL = -1
"""Place of the control arm among the generations."""


def arm_name(g: int) -> str:
    """`gen-01` or `control`: a model's folder, and how the names of its steps begin."""
    return "control" if g == CONTROL else f"gen-{g:02d}"


@dataclass(frozen=True)
class RunLayout:
    """Paths of one run: `{storage}/{name}`."""

    root: str

    @classmethod
    def of(cls, config: RunConfig) -> "RunLayout":
        """The layout of a config's run; the root is absolute.

        Raises:
            ConfigError: `storage` is relative in a Ray job, or a URI with an unknown option.
        """
        return cls(join(kept(config.storage, "storage"), config.name))

    @property
    def config(self) -> str:
        """The resolved config."""
        return join(self.root, "config.yaml")

    @property
    def plan(self) -> str:
        """What it was going to take when it began."""
        return join(self.root, "plan.json")

    @property
    def result(self) -> str:
        """The machine-readable verdict."""
        return join(self.root, "result.json")

    @property
    def so_far(self) -> str:
        """What is known while it works, in the form of the verdict."""
        return join(self.root, "so_far.json")

    @property
    def report(self) -> str:
        """The verdict for people."""
        return join(self.root, "report.html")

    @property
    def metrics(self) -> str:
        """Every metric as it happened."""
        return join(self.root, "metrics.jsonl")

    @property
    def model(self) -> str:
        """The best bundle, the one that is served."""
        return join(self.root, "model")

    @property
    def refit(self) -> "RunLayout":
        """Where models that led to the best one are made once more, with all labels."""
        return RunLayout(join(self.root, "refit"))

    def corpus(self, name: str) -> str:
        """Packed labeled, unlabeled, validation or test images."""
        return join(self.root, "corpora", name)

    @property
    def sources(self) -> str:
        """What its corpora were packed of."""
        return join(self.root, "corpora", "sources.json")

    @property
    def signatures(self) -> str:
        """What copies of validation and test images are known by."""
        return join(self.root, "corpora", "signatures")

    def generation(self, g: int) -> str:
        """Folder of a generation, or of the control arm."""
        return join(self.root, arm_name(g))

    def checkpoints(self, g: int) -> str:
        """Training checkpoints."""
        return join(self.generation(g), "checkpoints")

    def bundle(self, g: int) -> str:
        """The trained model."""
        return join(self.generation(g), "bundle")

    def pretrained(self, g: int) -> str:
        """A student before its fine-tuning on labels, where `finetune` is set."""
        return join(self.generation(g), "pretrained")

    def teacher(self, k: int) -> str:
        """Folder of the k-th first teacher, from 2 on, where `label.teachers` asks for several."""
        return join(self.generation(0), f"teacher-{k:02d}")

    @property
    def average(self) -> str:
        """Scores and predictions of the average of several first teachers."""
        return join(self.evaluation(0), "average")

    def evaluation(self, g: int) -> str:
        """Scores and predictions; `evaluation.json` beside the bundle sums them up."""
        return join(self.generation(g), "evaluation")

    def robustness(self, name: str) -> str:
        """Counts of mistakes on corrupted, perturbed and attacked images, of the model with this
        folder (see `arm_name`), or of a `baseline` from elsewhere."""
        return join(self.root, name, "robustness")

    def pseudo_labels(self, g: int) -> str:
        """Labels for the student of generation g."""
        return join(self.generation(g), "pseudo_labels")

    def selection(self, g: int) -> str:
        """Selected rows for the student of generation g."""
        return join(self.generation(g), "selection")
