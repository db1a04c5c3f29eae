"""Moved classes: the current import path for one of an earlier version.

Existing stores and users' configurations contain import paths. Moving a module or class requires an entry here for as
long as its old path should keep working.
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
"""Old dotted path of a module or class -> its current path. The entry of a module applies to everything in it."""


def current(path: str) -> str:
    """Return the current form of a dotted path; unchanged if it has not moved."""
    # A class may have moved several times; the bound ends a cycle of entries.
    for _ in range(len(MOVED) + 1):
        head, tail = path, ""
        while head and head not in MOVED:
            head, _, last = head.rpartition(".")
            tail = f".{last}{tail}"
        if not head:
            break
        path = MOVED[head] + tail
    return path
