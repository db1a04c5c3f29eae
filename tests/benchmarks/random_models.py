"""Random models of published shapes, built on the device, and the loads and clocks to measure them with."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from torch.nn import Module
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from harness.corpora.batches import collate
from harness.corpora.encode import IGNORED, Encoded
from harness.models.adapter import Lora, attach
from harness.training.budget import Precision
from harness.training.passes import Passes, passes_on


class Shape(NamedTuple):
    """The size of a Llama model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    tied: bool = False

    def config(self) -> LlamaConfig:
        """Return the configuration of a model of this size."""
        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            vocab_size=self.vocabulary,
            tie_word_embeddings=self.tied,
        )


SHAPES = {
    "llama2_7b": Shape(4096, 11008, 32, 32, 32, 32000),
    "llama3_8b": Shape(4096, 14336, 32, 32, 8, 128256),
    "smollm2": Shape(576, 1536, 30, 9, 3, 49152, tied=True),
    "tiny": Shape(64, 128, 2, 4, 2, 512),
}


class Load(NamedTuple):
    """How much is measured: the batch of a step, the answers, the batches of the small model."""

    rows: int = 10
    length: int = 200
    repeats: int = 5
    answer_batches: Sequence[int] = (1, 64, 256)
    prompts: int = 1000
    prompt_length: int = 64
    new_tokens: int = 128
    stage_tokens: int = 512
    small: str = "smollm2"
    small_rows: Sequence[int] = (10, 80)
    small_length: int = 100
    product: int = 8192
    rounding_layers: int = 4


TINY = Load(
    rows=2,
    length=16,
    repeats=1,
    answer_batches=(1, 3),
    prompts=4,
    prompt_length=8,
    new_tokens=4,
    stage_tokens=5,
    small="tiny",
    small_rows=(2, 4),
    small_length=8,
    product=64,
)


class Bench:
    """A device, how models on it compute, and a stopwatch that waits for it."""

    def __init__(self, *, tiny: bool) -> None:
        self.device = "cpu" if tiny else "cuda"
        self.dtype = torch.float32 if tiny else torch.bfloat16
        self.precision = Precision.FLOAT32 if tiny else Precision.BFLOAT16
        self.load = TINY if tiny else Load()

    def model(self, shape: Shape, dtype: torch.dtype) -> Module:
        """Build a random model with an adapter that changes something; equal shapes give equal weights."""
        torch.manual_seed(0)
        with torch.device(self.device):
            base = AutoModelForCausalLM.from_config(shape.config(), dtype=dtype)
        model = attach(base.requires_grad_(False), Lora(), seed=0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # A fresh adapter has B = 0, which would leave half of the gradients zero.
                if ".lora_B." in name:
                    parameter.normal_(std=0.02)
        return model

    def passes(self, model: Module, rows: int, longest: int, precision: Precision | None = None) -> Passes:
        """Return how training takes its passes on this device."""
        return passes_on(model, self.device, precision=precision or self.precision, longest=longest, rows={rows})

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, action: Callable[[], object]) -> float:
        self.wait()
        start = time.perf_counter()
        action()
        self.wait()
        return time.perf_counter() - start

    def medians(self, *actions: Callable[[], object]) -> list[float]:
        """Return the median seconds of actions that take turns, each warmed up twice."""
        for action in actions:
            action()
            action()
        times = [[self.seconds(action) for action in actions] for _ in range(self.load.repeats)]
        return [statistics.median(each) for each in zip(*times, strict=True)]

    @contextmanager
    def peak(self) -> Iterator[Callable[[], float | None]]:
        """Give what tells how many GiB were allocated at most, beyond what was allocated at the start."""
        if self.device != "cuda":
            yield lambda: None
            return
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: round((torch.cuda.max_memory_allocated() - before) / 2**30, 3)


def rows_of(vocabulary: int, *, rows: int, length: int, shortest: float, seed: int) -> list[Encoded]:
    """Return random rows with lengths spread evenly from a share of the length up to it; a third is answer."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for place in range(rows):
        share = shortest + (1 - shortest) * place / max(rows - 1, 1)
        size = max(round(length * share), 3)
        ids = torch.randint(1, vocabulary, (size,), generator=draw).tolist()
        prompt = 2 * size // 3
        made.append(Encoded(ids, [IGNORED] * prompt + ids[prompt:]))
    return made


def on_device(rows: Sequence[Encoded], device: str) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in collate(rows, pad_id=0).items()}


def parameters(model: Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def tokenizer_of(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word, ``w0`` to the last, without an end token."""
    words = {f"w{number}": number for number in range(vocabulary)}
    made = Tokenizer(WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="w0")
