"""Classes that moved: where an import path of an earlier version leads now.

Stores and configurations of users name classes by import path. A module or a class that moves within the package gets a
line here, for as long as such paths shall go on working.
"""

MOVED: dict[str, str] = {
    "harness.cluster.Local": "harness.local.settings.Local",
    "harness.config.Settings": "harness.config.build.Settings",
    "harness.corpora.splits.Corpus": "harness.corpora.corpus.Corpus",
    "harness.corpora.splits.Slice": "harness.corpora.slices.Slice",
    "harness.corpora.splits.Span": "harness.corpora.corpus.Span",
    "harness.defenses.repnoise.RepNoise": "harness.defenses.repnoise.method.RepNoise",
    "harness.defenses.tar.Tar": "harness.defenses.tar.method.Tar",
    "harness.experiment.AlignSettings": "harness.experiment.settings.AlignSettings",
    "harness.experiment.AttackSettings": "harness.experiment.settings.AttackSettings",
    "harness.experiment.Defense": "harness.experiment.settings.Defense",
    "harness.experiment.Evaluation": "harness.experiment.settings.Evaluation",
    "harness.experiment.Experiment": "harness.experiment.experiment.Experiment",
    "harness.experiment.FinetuneSettings": "harness.experiment.settings.FinetuneSettings",
    "harness.experiment.Model": "harness.experiment.settings.Model",
    "harness.modeling.adapter.Lora": "harness.models.adapter.Lora",
    "harness.modeling.decoding.Decoding": "harness.generation.decoding.Decoding",
    "harness.modeling.gguf.GgufModel": "harness.models.gguf.GgufModel",
    "harness.modeling.hub.HubModel": "harness.models.hub.HubModel",
    "harness.modeling.synthetic.Synthetic": "harness.models.tiny.Synthetic",
    "harness.objective.Objective": "harness.config.objective.Objective",
    "harness.record.Place": "harness.sweep.record.ExecutionSettings",
    "harness.slurm.Resources": "harness.slurm.settings.Resources",
    "harness.slurm.Slurm": "harness.slurm.settings.Slurm",
}
"""Dotted path of a module or a class -> its path now. A module's line holds for everything in it."""


def current(path: str) -> str:
    """Return where a dotted path leads now; the path itself if nothing of it has moved."""
    # A class that moved twice has two lines; no path may be visited twice.
    for _ in range(len(MOVED) + 1):
        head, tail = path, ""
        while head and head not in MOVED:
            head, _, last = head.rpartition(".")
            tail = f".{last}{tail}"
        if not head:
            break
        path = MOVED[head] + tail
    return path
