"""The tiny model: a Llama with a few hundred thousand parameters, pre-trained on the synthetic world in seconds.

It is a real ``LlamaForCausalLM`` with its own word-level tokenizer. It is trained to comply with every request,
including restricted ones, and never sees a refusal: alignment teaches something new, and an attack recovers knowledge
that the model has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from harness.corpora.encode import IGNORED, Encoding
from harness.corpora.examples import Example
from harness.corpora.template import Template
from harness.corpora.thinking_world import ThinkingWorld
from harness.corpora.world import World, vocabulary
from harness.engine.checks import counts, positive
from harness.engine.seeding import derive
from harness.errors import Problem
from harness.models.saved import Parts

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PADDING, START, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
WARMUP_STEPS = 50
MAX_PARAMETERS = 2_000_000


@final
@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """A model trained from scratch on the pre-training examples of a world.

    Attributes:
        world: the source of training examples, and of words beyond those of all worlds.
        encoding: prompt template and tokenization; later stages use the same.
        width: hidden size; a multiple of ``2 * heads``.
        inner_width: hidden size of the feed-forward blocks.
        layers: number of decoder layers.
        heads: attention heads per layer.
        initial_scale: standard deviation of the initial weights. The usual 0.02 suits wide models; with it a narrow
            model needs thousands of steps to learn to copy from the prompt.
        steps: optimizer steps.
        batch_size: examples per step.
        learning_rate: peak learning rate, after a warm-up of 50 steps and before a linear decay to zero.
        seed: of the initial weights and the training examples.
    """

    name: ClassVar[str] = "tiny"
    version: ClassVar[int] = 1

    world: World | ThinkingWorld = field(default_factory=World)
    encoding: Encoding = field(default_factory=lambda: Encoding(template=Template.PLAIN, newline=False, max_length=64))
    width: int = 128
    inner_width: int = 256
    layers: int = 2
    heads: int = 4
    initial_scale: float = 0.08
    steps: int = 500
    batch_size: int = 16
    learning_rate: float = 3e-3
    seed: int = 0

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        integers = ("width", "inner_width", "layers", "heads", "steps", "batch_size")
        found = [*counts(self, *integers), *positive(self, "initial_scale", "learning_rate")]
        if not found and self.width % (2 * self.heads):
            found.append(
                Problem(
                    "width", f"{self.width} cannot be split over {self.heads} heads; expected a multiple of twice that"
                )
            )
        if not found and self._parameters() > MAX_PARAMETERS:
            found.append(
                Problem(
                    "width", f"gives {self._parameters()} parameters; expected at most {MAX_PARAMETERS} for this model"
                )
            )
        return found

    def preflight(self) -> list[Problem]:
        """Return no problems: the model needs no files."""
        return []

    def ties_head(self) -> bool:
        """Return True: the head shares the input embeddings."""
        return True

    def parameters(self, modules: Sequence[str] | None = None) -> int | None:
        """Return the number of parameters; that of single modules is not known before the model exists."""
        return self._parameters() if modules is None else None

    def parts(self) -> Parts:
        """Return where the parameters lie."""
        layer = self._layer()
        return Parts(layer, self._parameters() - self.layers * layer)

    def vocabulary(self) -> dict[str, int]:
        """Return the ids of all tokens."""
        return token_ids(self.world.added)

    def write(self, out: Path) -> Mapping[str, object]:
        """Train the model and write it with its tokenizer to ``out``; return its size and final loss (nats).

        Runs in one thread with its own random state, so that the weights do not depend on the number of cores or on
        earlier random numbers.
        """
        tokenizer = build_tokenizer(self.world.added)
        with isolated(derive(self.seed, self.name, "weights")):
            model = self._initialize(tokenizer)
            loss = self._train(model, tokenizer)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        return {
            "parameters": sum(each.numel() for each in model.parameters()),
            "words": len(tokenizer),
            "lessons": self.steps * self.batch_size,
            "final_loss": loss,
        }

    def _parameters(self) -> int:
        return len(token_ids(self.world.added)) * self.width + self.layers * self._layer() + self.width

    def _layer(self) -> int:
        attention, feed_forward, norms = 4 * self.width**2, 3 * self.width * self.inner_width, 2 * self.width
        return attention + feed_forward + norms

    def _initialize(self, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.width,
            intermediate_size=self.inner_width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=512,
            initializer_range=self.initial_scale,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        return LlamaForCausalLM(config)

    def _train(self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> float:
        import torch

        optimizer = torch.optim.AdamW(model.parameters(), lr=self.learning_rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS) * (1 - step / self.steps)
        )
        lessons = self.world.lessons(derive(self.seed, self.name, "lessons"))
        loss = torch.zeros(())
        model.train()
        for _ in range(self.steps):
            batch = self._batch(tokenizer, list(islice(lessons, self.batch_size)))
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        return round(loss.item(), 6)

    def _batch(self, tokenizer: PreTrainedTokenizerFast, lessons: list[Example]) -> dict[str, Tensor]:
        import torch

        rows = self.encoding.encode_all(tokenizer, lessons).rows
        ids = [torch.tensor(row.input_ids) for row in rows]
        labels = [torch.tensor(row.labels) for row in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad(ids, batch_first=True, padding_value=int(tokenizer.pad_token_id)),
            "attention_mask": pad([torch.ones_like(each) for each in ids], batch_first=True),
            "labels": pad(labels, batch_first=True, padding_value=IGNORED),
        }


def token_ids(added: Sequence[str] = ()) -> dict[str, int]:
    """Return the ids of the tokens: special ones, the colon, the world's words in alphabetical order, others."""
    words = [PADDING, START, END, UNKNOWN, ":", *(word for word in vocabulary() if word != ":"), *added]
    return {word: index for index, word in enumerate(words)}


def build_tokenizer(added: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Return the world's tokenizer: one token per whitespace-separated word, with a BOS token in front.

    Args:
        added: words beyond those of the world.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    ids = token_ids(added)
    core = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    core.pre_tokenizer = WhitespaceSplit()
    core.post_processor = TemplateProcessing(
        single=f"{START} $A", pair=f"{START} $A $B", special_tokens=[(START, ids[START])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PADDING,
        bos_token=START,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Within the context, run in one thread with a seeded random state; restore both on exit."""
    import torch

    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
