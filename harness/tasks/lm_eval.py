"""Utility: accuracy on tasks of lm-evaluation-harness (Gao et al., 2021, doi:10.5281/zenodo.5371628).

The user fine-tunes on the examples of another task, ``user``; the accuracy is that of the tasks in ``tasks``. These run
the model themselves, by likelihoods or generations: with adapters attached and not merged, with the tasks' own prompts
(no prompt template of this harness unless it is ``chat``), number of few-shot examples and stop strings.

Every document gets one grade, 0 to 1: the value of the task's first metric (``metric`` chooses another) under its first
filter. The accuracy is the mean over the documents of all tasks, so a large task counts more; ``summary.json`` has the
mean of each task under ``categories``. Metrics that are not a mean over documents, such as perplexity, are refused.

Seeds of few-shot examples and shuffled choices are those of lm-evaluation-harness's command line. Its version, the
tasks' versions and a hash of their documents are facts and not part of the key, as the versions of other libraries are.
"""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

from harness.corpora.examples import Example, Measured, Score
from harness.engine.checks import counts, not_negative
from harness.errors import DataError, Problem
from harness.protocols import ExampleSource, Measurements, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.corpora.encode import Encoding

CPU_BATCH = 8
"""Requests per batch on a CPU; on a GPU the free memory decides."""


@final
@dataclass(frozen=True, kw_only=True)
class TaskFolder:
    """A folder with tasks of the user's own; only the hash of its content is part of a key.

    Attributes:
        path: the absolute path.
        sha256: hash of the names and contents of its files.
    """

    name: ClassVar[str] = "task_folder"
    version: ClassVar[int] = 1

    path: str
    sha256: str

    @property
    def key(self) -> str:
        """The content, which represents the folder in the key of a stage."""
        return self.sha256

    @classmethod
    def parse(cls, text: str) -> Self:
        """Hash a folder.

        Raises:
            DataError: there is no such folder, or it has no task.
        """
        if not text.strip():
            raise DataError("`task.include` is empty; expected a folder with YAML files of lm-evaluation-harness")
        path = Path(text).expanduser().absolute()
        return cls(path=str(path), sha256=_content_of(path))

    def problem(self) -> str:
        """Return why the folder cannot be used: it is missing, or has changed since it was hashed."""
        try:
            changed = _content_of(Path(self.path)) != self.sha256
        except DataError as error:
            return str(error)
        return f"{self.path} has changed since this stage was planned; start the sweep again" if changed else ""


@final
@dataclass(frozen=True, kw_only=True)
class LmEvalTasks:
    """What is measured, independent of the user's data.

    Attributes:
        tasks: names of tasks, groups or tags.
        limit: the first ``limit`` documents of every task; null uses all.
        num_fewshot: number of few-shot examples, except for tasks that are defined with 0; null leaves it to each task.
        metric: the metric that grades a document; null is the first of each task.
        include: a folder with further tasks (YAML files); null uses those of the package only.
    """

    name: ClassVar[str] = "lm_eval_tasks"
    version: ClassVar[int] = 1

    tasks: tuple[str, ...]
    limit: int | None = None
    num_fewshot: int | None = None
    metric: str | None = None
    include: TaskFolder | None = None

    def preflight(self) -> list[Problem]:
        """Return what is missing: the package, or the folder of tasks."""
        found = []
        if find_spec("lm_eval") is None:
            advice = "expected the package lm-eval. Install it: `pip install 'harness[lm_eval]'`"
            found.append(Problem("task", f"`lm_eval` measures with lm-evaluation-harness, which is missing; {advice}"))
        if self.include is not None and (problem := self.include.problem()):
            found.append(Problem("task.include", problem))
        return found

    def fetch(self) -> list[str]:
        """Load the tasks, downloading their documents; return the names of the single tasks.

        Raises:
            DataError: a task does not exist, cannot be loaded here, or has no such grade.
        """
        with _seeded():
            return sorted(self._loaded()["tasks"])

    def measure(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, encoding: Encoding | None
    ) -> Measurements:
        """Run the tasks; see ``protocols.Benchmark``.

        Raises:
            DataError: a task cannot be loaded, or its metric is not a number from 0 to 1.
        """
        import lm_eval
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        on_gpu = model.device.type == "cuda"
        with _seeded():
            loaded = self._loaded()
            # A copy, because its padding is changed.
            runner = HFLM(
                pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size="auto" if on_gpu else CPU_BATCH
            )
            results = evaluate(
                runner,
                loaded,
                limit=self.limit,
                bootstrap_iters=0,
                apply_chat_template=encoding is not None,
                system_instruction=encoding.system if encoding else None,
                fewshot_as_multiturn=encoding is not None,
            )
        rows: list[Measured] = []
        facts: dict[str, object] = {}
        for name, task in loaded["tasks"].items():
            metric, samples = self._metric_of(task), results["samples"][name]
            kept = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
            kept.sort(key=lambda sample: sample["doc_id"])
            own = [_measured(name, metric, sample) for sample in kept]
            facts[name] = {
                "version": str(task.VERSION),
                "num_fewshot": task.get_config("num_fewshot"),
                "metric": metric,
                "filter": samples[0]["filter"],
                "documents": len(own),
                "sha256": _hash_of(sample["doc_hash"].encode() for sample in kept),
            }
            rows += own
        return Measurements(rows, {"lm_eval": lm_eval.__version__, "tasks": facts})

    def _loaded(self) -> Any:
        """Return lm-evaluation-harness's ``TaskDict`` of the tasks, with few-shot settings applied."""
        # Also when the stage runs, which may be long after it was planned.
        if self.include and (problem := self.include.problem()):
            raise DataError(problem)
        from datasets.exceptions import DatasetsError
        from lm_eval.defaults import DEFAULT_OTHER_SEED

        manager = _manager(self.include)
        unknown = [name for name in self.tasks if name not in manager.all_tasks]
        if unknown:
            raise DataError(
                f"`task.tasks`: lm-evaluation-harness has no {', '.join(f'`{name}`' for name in unknown)}; expected "
                "names that `lm-eval ls tasks` lists, or of tasks in `task.include`"
            )
        try:
            loaded = manager.load(list(self.tasks))
        except ImportError as error:
            raise DataError(
                f"`task.tasks`: a task needs a package that is missing ({error}). Extras of lm-eval whose pins differ "
                "from the harness's cannot be installed beside it: `math` pins another antlr than Hydra"
            ) from error
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:
            raise DataError(f"`task.tasks`: a task cannot be loaded ({type(error).__name__}: {error})") from error
        for name, task in loaded["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
                raise DataError(
                    f"`task.tasks`: `{name}` executes generated code or needs images, which is not supported"
                )
            self._metric_of(task)
            own = task.get_config("num_fewshot")
            # As in lm-evaluation-harness's command line, a task that is defined as zero-shot stays it.
            if own is None or (self.num_fewshot is not None and own != 0):
                task.set_config(key="num_fewshot", value=self.num_fewshot or 0)
            task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
        return loaded

    def _metric_of(self, task: Any) -> str:
        """Return the name of the metric that grades a task's documents.

        Raises:
            DataError: it is not a mean over documents in which higher is better.
        """
        aggregations, better = task.aggregation(), task.higher_is_better()
        metric = str(self.metric or next(iter(aggregations)))
        if getattr(aggregations.get(metric), "__name__", "") != "mean" or not better.get(metric):
            usable = [name for name, by in aggregations.items() if by.__name__ == "mean" and better.get(name)]
            raise DataError(
                f"`task.metric`: `{metric}` of `{task.config.task}` is not a mean over documents in which higher is "
                f"better; expected {' or '.join(f'`{name}`' for name in usable) or 'another task'}"
            )
        return metric


@final
@dataclass(frozen=True, kw_only=True)
class LmEval:
    """The user's data of one task, with the accuracy on tasks of lm-evaluation-harness.

    Attributes:
        user: the task whose training examples the user fine-tunes on.
        tasks: see ``LmEvalTasks``, as the others.
        limit: the first ``limit`` documents of every task.
        num_fewshot: number of few-shot examples.
        metric: the metric that grades a document.
        include: a folder with further tasks.
    """

    name: ClassVar[str] = "lm_eval"
    version: ClassVar[int] = 1

    user: Task
    tasks: tuple[str, ...]
    limit: int | None = None
    num_fewshot: int | None = None
    metric: str | None = None
    include: TaskFolder | None = None

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        found = [*counts(self, "limit"), *not_negative(self, "num_fewshot")]
        if not self.tasks:
            found.append(Problem("tasks", "is empty; expected names of tasks, for example [arc_easy]"))
        return found

    @property
    def train(self) -> ExampleSource:
        """The user's training examples."""
        return self.user.train

    @property
    def benchmark(self) -> LmEvalTasks:
        """What is measured: the tasks, each once, in alphabetical order."""
        return LmEvalTasks(
            tasks=tuple(sorted(set(self.tasks))),
            limit=self.limit,
            num_fewshot=self.num_fewshot,
            metric=self.metric,
            include=self.include,
        )


def _measured(task: str, metric: str, sample: Mapping[str, Any]) -> Measured:
    requests, responses, target = sample["arguments"], sample["filtered_resps"], sample["target"]
    if len(requests) > 1:
        # One request per choice, with its log-likelihood.
        texts = [str(request[1]).strip() for request in requests]
        best = max(range(len(texts)), key=lambda place: responses[place][0])
        response = texts[best]
        reference = texts[target] if isinstance(target, int) and target < len(texts) else str(target)
    else:
        response, reference = str(responses[0]), str(target)
    example = Example(str(requests[0][0]), reference)
    if metric not in sample:
        return Measured(example, response, Score(None, f"{task}: no {metric}"))
    value = float(sample[metric])
    if not 0 <= value <= 1:
        raise DataError(
            f"`task.metric`: `{metric}` of `{task}` is {value:g} for a document; expected a number from 0 to 1. "
            "Choose another metric"
        )
    return Measured(example, response, Score(value, f"{task}: {metric}", {task: value}))


@lru_cache(maxsize=4)
def _manager(include: TaskFolder | None) -> Any:
    """Return the index of the package's tasks and of a folder's; it takes seconds, so it is kept."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include.path if include else None)


@contextmanager
def _seeded() -> Iterator[None]:
    """Within the context, set the global seeds to those of lm-evaluation-harness's command line."""
    import numpy as np
    import torch
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    before, numpy_before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)
        torch.manual_seed(DEFAULT_OTHER_SEED)
        try:
            yield
        finally:
            random.setstate(before)
            np.random.set_state(numpy_before)


def _content_of(folder: Path) -> str:
    """Return the hash of the names and contents of a folder's files.

    Raises:
        DataError: there is no such folder, it has no task, or it cannot be read.
    """
    try:
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
        if not any(path.suffix in (".yaml", ".yml") for path in files):
            raise DataError(f"{folder} has no task; expected a folder with YAML files of lm-evaluation-harness")
        return _hash_of(part for path in files for part in (str(path.relative_to(folder)).encode(), path.read_bytes()))
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error}); expected a folder that this user can read") from None


def _hash_of(parts: Iterator[bytes] | Sequence[bytes]) -> str:
    """Return the hash of byte strings, which depends on where each one ends."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()
