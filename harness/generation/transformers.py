"""Decoding of many prompts with transformers models.

There are two decoding paths. On a GPU, prompts are decoded in slots (``slots``): a static KV cache, continuous
batching, and steps recorded as CUDA graphs. Elsewhere, and for models whose attention does not support slots, the
library's ``generate`` is used (``plain``). The two paths, and different batch sizes, differ only by rounding;
``agreement`` measures how often rounding changes a generation. The path that was used, and why, is returned with the
generations and recorded in the manifest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from harness.corpora.encode import Question
from harness.corpora.thoughts import Thoughts
from harness.engine import gpu
from harness.errors import ModelError
from harness.generation import plain, slot_trial, slots
from harness.generation.answers import Answers, Path, Questions
from harness.generation.arithmetic import arithmetic_of, trained_arithmetic
from harness.generation.decoding import Decoding
from harness.models.cuda_graphs import Recorder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


log = logging.getLogger(__name__)

PLAIN_BATCH = 64
"""Batch size of ``plain``, and of ``slots`` on a device without GPU memory."""

Written = Iterator[tuple[int, list[int]]]


def generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Question],
    *,
    new_tokens: int,
    decoding: Decoding,
    batch_size: int | None = None,
    path: Path | None = None,
) -> list[str]:
    """Return the answers alone; see ``answer``."""
    return answer(
        model, tokenizer, prompts, new_tokens=new_tokens, decoding=decoding, batch_size=batch_size, path=path
    ).texts


def answer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Question],
    *,
    new_tokens: int,
    decoding: Decoding,
    batch_size: int | None = None,
    path: Path | None = None,
    thoughts: Thoughts | None = None,
    numbers: Sequence[int] | None = None,
) -> Answers:
    """Return the continuation of every prompt, at most ``new_tokens`` tokens, in the order of the prompts.

    Special tokens are stripped, whitespace is not. Prompts are encoded as in training; duplicates are decoded once
    unless they are sampled.
    Truncation is described at ``Decoding.max_prompt``. The longest prompts are decoded first; a batch that does not fit
    into memory is halved. The model's train/eval mode is restored on return.

    Args:
        model: with an adapter attached or without.
        tokenizer: of the model.
        prompts: as text, or as messages for the chat template of the tokenizer.
        new_tokens: maximum length of a generation, in tokens; with a thought budget, of its answer.
        decoding: decoding settings.
        batch_size: prompts per batch; None uses the free memory of a GPU, and ``PLAIN_BATCH`` elsewhere.
        path: the decoding path; None selects the fastest that device and model support.
        thoughts: the markers of thought and answer, which are kept in the generations; None if there are none.
        numbers: of the prompts, on which their samples depend; None counts them.

    Raises:
        ModelError: a single prompt does not fit into memory, or the tokenizer cannot write the chat template or the
            markers.
    """
    if not prompts:
        return Answers([], {})
    asked = Questions.of(
        prompts,
        tokenizer,
        own_ends=model.generation_config.eos_token_id,
        new_tokens=new_tokens,
        decoding=decoding,
        thoughts=thoughts,
        numbers=numbers,
    )
    with evaluating(model) as base, torch.inference_mode(), arithmetic(base, path):
        return asked.answered(*_written(base, asked, path, batch_size))


def agreement(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Question],
    *,
    new_tokens: int,
    decoding: Decoding,
    batch_size: int = PLAIN_BATCH,
) -> float:
    """Return the fraction of prompts, 0 to 1, whose batched generation equals the one with batch size 1.

    Raises:
        ValueError: there are no prompts.
    """
    if not prompts:
        raise ValueError("agreement is undefined without prompts")
    single = generate(model, tokenizer, prompts, new_tokens=new_tokens, decoding=decoding, batch_size=1)
    batched = generate(model, tokenizer, prompts, new_tokens=new_tokens, decoding=decoding, batch_size=batch_size)
    return sum(one == other for one, other in zip(single, batched, strict=True)) / len(prompts)


def _written(
    model: PreTrainedModel, asked: Questions, path: Path | None, batch: int | None
) -> tuple[list[list[int]], dict[str, Any]]:
    """Return the new tokens of each prompt by the path that was asked for or the fastest, and facts."""
    facts: dict[str, Any] = {"path": Path.SLOTS.value, "why": "", "arithmetic": arithmetic_of(model)}
    fit = slot_trial.Fit(why="it was asked for")
    if path is None and not _on_gpu(model):
        fit = slot_trial.Fit(why=f"the device is {model.device.type}")
    elif path is not Path.PLAIN:
        fit = slot_trial.fit(model, asked.prompts)

    def in_slots(jobs: list[int], batch: int) -> Written:
        prompts = [asked.prompts[job] for job in jobs]
        decoder = slots.SlotDecoder(
            model,
            fit.shapes,
            slots=min(batch, len(prompts)),
            longest=max(map(len, prompts)),
            rules=asked.rules,
            record=Recorder(model.device) if _on_gpu(model) else None,
        )
        yield from decoder.decode(prompts, [asked.seeds[job] for job in jobs])
        facts.update(graphs=decoder.recorded.graphs, why=decoder.recorded.trouble)

    def in_batches(jobs: list[int], batch: int) -> Written:
        prompts, seeds = [asked.prompts[job] for job in jobs], [asked.seeds[job] for job in jobs]
        return plain.decode(model, prompts, batch_size=batch, rules=asked.rules, pad=asked.pad, seeds=seeds)

    if fit.why:
        facts |= {"path": Path.PLAIN.value, "why": fit.why}
        rows, used = _within_memory(in_batches, model, asked, batch or PLAIN_BATCH)
    else:
        room = slots.room(model.device)
        batch = batch or (
            PLAIN_BATCH if room is None else slots.count_for(fit.shapes, room, asked.prompts, asked.rules.longest)
        )
        rows, used = _within_memory(in_slots, model, asked, batch)
        # The cache refers to its recorded steps and they to it: without a collection it would outlive the answers.
        gpu.release()
    return rows, facts | {"batch": used}


def _within_memory(
    decode: Callable[[list[int], int], Written], model: PreTrainedModel, asked: Questions, batch: int
) -> tuple[list[list[int]], int]:
    """Return the new tokens of each prompt and the rows at once with which the last were written.

    Whenever memory runs out, what is not written yet is tried again with half as many rows.
    """
    written: dict[int, list[int]] = {}
    while waiting := [i for i in range(len(asked.prompts)) if i not in written]:
        batch = min(batch, len(waiting))
        if batch == 0:
            raise ModelError(
                f"`{model.device}` has too little memory for one prompt and {asked.rules.longest} new tokens; expected "
                "enough for the model and its KV cache. Choose a smaller `model` or `evaluation.new_tokens`."
            )
        try:
            for place, tokens in decode(waiting, batch):
                written[waiting[place]] = tokens
        except torch.OutOfMemoryError:
            batch = min(batch, len(asked.prompts) - len(written)) // 2
            log.warning("out of memory: continuing with a batch size of %d", batch)
        if batch and len(written) < len(asked.prompts):
            # What the failed attempt held is free only now that its error is gone.
            gpu.release()
    return [written[i] for i in range(len(asked.prompts))], batch


def arithmetic(model: PreTrainedModel, path: Path | None = None) -> AbstractContextManager[None]:
    """Return the context in which an adapter has the arithmetic of training; on a CPU it stays float32."""
    return trained_arithmetic(model) if _on_gpu(model) or path is Path.SLOTS else nullcontext()


def _on_gpu(model: PreTrainedModel) -> bool:
    return bool(model.device.type == "cuda")


@contextmanager
def evaluating(model: PreTrainedModel | PeftModel) -> Iterator[PreTrainedModel]:
    """Yield the model without its PEFT wrapper, in eval mode; restore its mode on exit."""
    base: PreTrainedModel = getattr(model, "get_base_model", lambda: model)()
    training = model.training
    model.eval()
    try:
        yield base
    finally:
        model.train(training)
