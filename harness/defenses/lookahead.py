"""LookAhead tuning: the user's prompts show how their answers begin, so that the first tokens of an answer change less.

Kangwei Liu et al.: "LookAhead Tuning: Safer Language Models via Partial Answer Previews" (arXiv 2503.19041).

``connector`` is appended to the request of each of the user's examples, followed

- in the form ``real`` by the first ``tokens`` tokens of the answer;
- in the form ``virtual`` by ``phrase``, with which the answer then begins too.

Training is plain, and the evaluation asks without a preview. An answer of at most ``tokens`` tokens is shown as a
whole, so a task with one-word answers teaches copying; ``virtual`` makes answers begin with the phrase, which a task
that compares whole answers counts as wrong.

Fidelity: hand-computed only. The rewriting and its defaults are those of the authors' code (commit f9730df), and the
rewritten examples are checked against examples written by hand. Training is plain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, final

from harness.engine.checks import counts
from harness.errors import Problem
from harness.training.plain import PlainStep

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.corpora.examples import Example
    from harness.protocols import BatchProvider, DataRequirement, Learner


@final
@dataclass(frozen=True, kw_only=True)
class LookAhead:
    """Settings of LookAhead tuning.

    Attributes:
        form: ``real`` or ``virtual``.
        tokens: number of answer tokens shown by ``real``.
        phrase: beginning of every answer with ``virtual``.
        connector: text between the request and what is shown.
    """

    name: ClassVar[str] = "lookahead"
    version: ClassVar[int] = 1
    gradients_per_step: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 0
    works_on_shards: ClassVar[bool] = True

    form: Literal["real", "virtual"] = "real"
    tokens: int = 6
    phrase: str = "Let's solve this problem. "
    connector: str = " The answer begins with: "

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """Only the stage's own examples."""
        return ()

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        blank = self.form == "virtual" and not self.phrase.strip()
        return [*counts(self, "tokens"), *([Problem("phrase", "it is empty; expected text")] if blank else [])]

    def rewrite(self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[Example]:
        """Return the examples with previews in their requests."""
        if self.form == "virtual":
            suffix = self.connector + self.phrase
            return [each.framed(suffix=suffix)._replace(output=self.phrase + each.output) for each in examples]
        return [each.framed(suffix=self.connector + self._preview(each.output, tokenizer)) for each in examples]

    def _preview(self, answer: str, tokenizer: PreTrainedTokenizerBase) -> str:
        tokens = tokenizer.tokenize(answer)[: self.tokens]
        shown: str = tokenizer.convert_tokens_to_string(tokens) if tokens else ""
        return shown

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> PlainStep:  # noqa: ARG002
        """Start a run."""
        return PlainStep(learner)
