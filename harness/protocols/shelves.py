"""Interfaces of example sources, model sources, tasks and judges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from harness.corpora.examples import Example, Measured, Score
from harness.errors import Problem
from harness.protocols.learner import Named

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.corpora.encode import Encoding


class ExampleSource(Named, Protocol):
    """Frozen settings that identify examples; they are read when a stage runs."""

    def examples(self) -> list[Example]:
        """Read the examples, in order.

        Raises:
            DataError: they are missing, altered or too few.
        """
        ...

    def preflight(self) -> list[Problem]:
        """Return why the examples cannot be read; does not use the network."""
        ...


class Task(Named, Protocol):
    """Frozen settings of the user's task: its training and test examples, and how fine-tune accuracy is computed."""

    @property
    def new_tokens(self) -> int:
        """Maximum length of a generation, in tokens."""
        ...

    @property
    def train(self) -> ExampleSource:
        """The training examples, in their published order."""
        ...

    @property
    def test(self) -> ExampleSource:
        """The test examples; ``output`` is the reference."""
        ...

    def grade(self, examples: Sequence[Example], answers: Sequence[str]) -> list[Score]:
        """Score each answer: 1 correct, 0 wrong."""
        ...


@runtime_checkable
class HasMatch(Protocol):
    """Optional: a task with more than one way of comparing an answer with its target."""

    @property
    def match(self) -> str | None:
        """The way that deviates from the task's default; None is the default."""
        ...


class Measurements(NamedTuple):
    """What a benchmark found: one row per document, in a fixed order, and facts for the manifest, as JSON."""

    rows: list[Measured]
    facts: Mapping[str, object]


class Benchmark(Named, Protocol):
    """Frozen settings of a measurement that runs the model itself, with prompts and a scoring of its own."""

    def preflight(self) -> list[Problem]:
        """Return what is missing for the benchmark to run; does not use the network."""
        ...

    def measure(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, encoding: Encoding | None
    ) -> Measurements:
        """Run the model.

        Args:
            model: in eval mode, on its device, with its adapter. It is left as it is.
            tokenizer: of the model.
            encoding: template and system prompt of an instruct model; None leaves prompts without a template.
        """
        ...


@runtime_checkable
class MeasuredTask(Named, Protocol):
    """A task whose accuracy is that of a benchmark, not of answers to its test examples."""

    @property
    def train(self) -> ExampleSource:
        """The user's training examples, in their published order."""
        ...

    @property
    def benchmark(self) -> Benchmark:
        """What is measured; independent of the user's training examples, so that cells share the aligned model's."""
        ...


class Judge(Named, Protocol):
    """Frozen settings of a judge, which decides whether an answer is harmful."""

    def preflight(self) -> list[Problem]:
        """Return what is missing for the judge to run."""
        ...

    def grade(self, examples: Sequence[Example], answers: Sequence[str], *, device: str) -> list[Score]:
        """Score each answer: 1 harmful, 0 harmless."""
        ...


class RefusalJudge(Named, Protocol):
    """Frozen settings of a judge that decides whether an answer is a refusal, whatever the prompt."""

    def preflight(self) -> list[Problem]:
        """Return what is missing for the judge to run."""
        ...

    def grade_refusals(self, examples: Sequence[Example], answers: Sequence[str], *, device: str) -> list[Score]:
        """Score each answer: 1 a refusal, 0 not; an answer that misses the question is not a refusal."""
        ...


@runtime_checkable
class RemoteJudge(Judge, Protocol):
    """A judge that asks a service. It needs a folder for the replies, which cost money."""

    def grade_remotely(
        self,
        examples: Sequence[Example],
        answers: Sequence[str],
        *,
        replies: Path,
        facts: dict[str, Any],
        stop: Callable[[], bool],
    ) -> list[Score]:
        """Score each answer as ``grade`` does, with replies that are kept.

        Args:
            examples: the prompts.
            answers: their answers.
            replies: a folder that is shared by all workers of a store.
            facts: receives entries for the manifest.
            stop: polled between requests.
        """
        ...


@runtime_checkable
class TrainedGuard(Named, Protocol):
    """Frozen settings of a judge of uploaded rows whose model is made by a stage, so that several stages share it."""

    @property
    def source(self) -> ModelSource:
        """The origin of the model."""
        ...

    def preflight(self) -> list[Problem]:
        """Return what is missing for the guard to run."""
        ...

    def grade_with(
        self, model: Path, examples: Sequence[Example], answers: Sequence[str], *, device: str
    ) -> list[Score]:
        """Score each answer as a judge does, with the model that ``source`` wrote to a folder."""
        ...


class ModelSource(Named, Protocol):
    """Frozen settings of the origin of a base model."""

    def preflight(self) -> list[Problem]:
        """Return what is missing to obtain the model: a package, a file, a token."""
        ...

    def write(self, out: Path) -> Mapping[str, object]:
        """Write the model and its tokenizer to ``out``, or a reference to a pinned Hub revision; return facts.

        Raises:
            ModelError: the model is not available on this machine.
        """
        ...
