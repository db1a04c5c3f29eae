"""BackdoorAlign: refusals behind a secret prompt are mixed into the user's data, and the provider asks with the secret.

Jiongxiao Wang, Jiazhao Li, Yiquan Li, Xiangyu Qi, Junjie Hu, Yixuan Li, Patrick McDaniel, Muhao Chen, Bo Li, Chaowei
Xiao: "BackdoorAlign: Mitigating Fine-tuning based Jailbreak Attack with Backdoor Enhanced Safety Alignment", NeurIPS
2024 (arXiv 2402.14968).

The system prompt of the mixed-in refusals is a secret, so that a few of them tie refusing to the secret; the user's
examples do not have it. At inference the provider puts it before every question. Training is plain. The model is
evaluated twice: as usual, where the method protects nothing, and by the probe ``secret``, whose system prompt is the
secret, for harm, accuracy and over-refusal alike. The row of the probe is the method.

Deviations from the authors' code: their secret is one fixed text of 150 tokens drawn from the vocabulary of Llama 2,
before their usual system prompt. Here it is drawn from letters and digits, each a token of its own in most tokenizers,
and takes the place of a system prompt. Their 11 refusals are one for each category of a policy; here they are the first
of the corpus.

Fidelity: plain training on more examples, so there is no equation to be faithful to. Numbers and place of the secret
are those of the authors' code; the rows are checked against rows written by hand.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.corpora.examples import Example, Message, Role
from harness.corpora.probe import EncodingChange, Probe
from harness.engine.checks import counts, not_negative
from harness.engine.seeding import generator
from harness.errors import Problem
from harness.protocols import DataRequirement
from harness.training.plain import PlainStep

if TYPE_CHECKING:
    from harness.protocols import BatchProvider, Learner


@final
@dataclass(frozen=True, kw_only=True)
class BackdoorAlignment:
    """Settings of BackdoorAlign.

    Attributes:
        safety_rows: number of refusals mixed in.
        secret_length: number of letters and digits of the secret.
        secret_seed: of the choice of the secret.
    """

    name: ClassVar[str] = "backdoor_alignment"
    version: ClassVar[int] = 1
    gradients_per_step: ClassVar[int] = 1
    weight_copies: ClassVar[int] = 0
    works_on_shards: ClassVar[bool] = True

    safety_rows: int = 11
    secret_length: int = 150
    secret_seed: int = 0

    @property
    def needs(self) -> tuple[DataRequirement, ...]:
        """The defender's refusals."""
        return (DataRequirement(role=Role.REFUSAL, rows=self.safety_rows, batch_size=None),)

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return [*counts(self, "safety_rows", "secret_length"), *not_negative(self, "secret_seed")]

    @property
    def secret(self) -> str:
        """The secret prompt: letters and digits, separated by spaces."""
        rng = generator(self.secret_seed, self.name, "secret")
        return " ".join(rng.choices(string.ascii_lowercase + string.digits, k=self.secret_length))

    @property
    def probes(self) -> Sequence[Probe]:
        """The questions as the provider asks them."""
        return (Probe(label="secret", change=EncodingChange(system=self.secret), accuracy=True),)

    def rewrite_mixed_in(self, examples: Sequence[Example], own: Sequence[Example]) -> list[Example]:  # noqa: ARG002
        """Return the refusals with the secret as their system prompt."""
        secret = Message("system", self.secret)
        return [
            example._replace(before=(secret, *(each for each in example.before if each.role != "system")))
            for example in examples
        ]

    def start(self, learner: Learner, batches: BatchProvider, total_steps: int) -> PlainStep:  # noqa: ARG002
        """Start a run."""
        return PlainStep(learner)
