"""Prompts as token ids, generations as text, and how they were decoded; common to all decoding paths."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from harness.corpora.encode import Question, ends_of, prompts_of
from harness.corpora.thoughts import Thoughts
from harness.engine.seeding import derive
from harness.generation.decoding import Decoding
from harness.generation.markers import Markers
from harness.generation.token_choice import Rules

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class Path(StrEnum):
    """Decoding paths."""

    PLAIN = "plain"
    SLOTS = "slots"
    VLLM = "vllm"


class Answers(NamedTuple):
    """Generations in the order of their prompts, and how they were decoded.

    Attributes:
        texts: the generations; of several samples of a prompt, the first.
        facts: for the manifest: ``path``, why it is not the fastest (``why``), the dtypes (``arithmetic``), and
            details of the path, such as ``batch``, its batch size; ``forced``, the number of generations whose thought
            used up its budget.
        cut: number of truncated prompts.
        samples: all samples of each prompt; None if there is one of each.
    """

    texts: list[str]
    facts: dict[str, Any]
    cut: int = 0
    samples: list[list[str]] | None = None


class _Job(NamedTuple):
    """A generation: its prompt, the seed of its random numbers, and the places of its text among all texts."""

    question: Question
    seed: int
    places: list[int]


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Encoded prompts, one for each generation: without duplicates if decoding is greedy.

    Attributes:
        prompts: token ids of the prompts, longest first.
        seeds: the seed of each one's random numbers; 0 if tokens are not sampled.
        rules: how tokens are chosen.
        pad: padding token id.
        cut: number of truncated prompts, duplicates included.
    """

    prompts: list[list[int]]
    seeds: list[int]
    rules: Rules
    pad: int
    cut: int
    _tokenizer: PreTrainedTokenizerBase
    _jobs: list[_Job]
    _samples: int
    _markers: Markers | None
    _opening: str

    @classmethod
    def of(
        cls,
        texts: Sequence[Question],
        tokenizer: PreTrainedTokenizerBase,
        *,
        own_ends: int | Sequence[int] | None,
        new_tokens: int,
        decoding: Decoding,
        thoughts: Thoughts | None = None,
        numbers: Sequence[int] | None = None,
    ) -> Self:
        """Encode prompts as in training and truncate them as described at ``Decoding.max_prompt``.

        Args:
            texts: the prompts, as text or as messages.
            tokenizer: the model's tokenizer.
            own_ends: end-of-sequence token ids of the model's generation config.
            new_tokens: maximum number of new tokens; with a thought budget, of an answer.
            decoding: decoding settings.
            thoughts: the markers of thought and answer, whose tokens are kept in the generations even where they are
                special tokens; None if there are none.
            numbers: of the prompts, on which their samples depend; None counts them.

        Raises:
            ModelError: the tokenizer cannot write the chat template or the markers.
        """
        distinct = list(dict.fromkeys(texts))
        encoded = dict(zip(distinct, prompts_of(tokenizer, distinct), strict=True))
        lengths = {text: len(prompt.ids) for text, prompt in encoded.items()}
        long = {text for text, length in lengths.items() if length > decoding.max_prompt}
        if long:
            log.warning(
                "%d of %d prompts are longer than %d tokens and lost their beginning",
                len(long),
                len(distinct),
                decoding.max_prompt,
            )
        jobs = sorted(_jobs(texts, numbers or range(len(texts)), decoding), key=lambda job: -lengths[job.question])
        known = own_ends if isinstance(own_ends, Sequence) else [own_ends]
        ends = tuple(sorted(ends_of(tokenizer, distinct).union(token for token in known if token is not None)))
        markers = None if thoughts is None else Markers.of(tokenizer, thoughts)
        opened = markers is not None and decoding.thought is not None
        return cls(
            prompts=[
                encoded[job.question].ending(decoding.max_prompt) + (markers.opening if markers and opened else [])
                for job in jobs
            ],
            seeds=[job.seed for job in jobs],
            rules=Rules(
                new_tokens=new_tokens,
                ends=ends,
                thought=markers.forced(decoding.thought, ends) if markers and decoding.thought else None,
                sampling=decoding.sampling,
            ),
            pad=tokenizer.pad_token_id,
            cut=sum(text in long for text in texts),
            _tokenizer=tokenizer,
            _jobs=jobs,
            _samples=decoding.samples,
            _markers=markers,
            _opening=thoughts.opening if thoughts and opened else "",
        )

    def answered(self, written: Sequence[Sequence[int]], facts: dict[str, Any]) -> Answers:
        """Decode new tokens to text and return the generations in the original order of the prompts.

        Special tokens are stripped, whitespace and the markers of thoughts are not. A think marker that was put behind
        the prompts is part of the generations.

        Args:
            written: new tokens by index in ``prompts``; tokens after an end token are ignored.
            facts: how they were decoded.
        """
        texts = [""] * sum(len(job.places) for job in self._jobs)
        for job, row in zip(self._jobs, written, strict=True):
            text = self._text(row)
            for place in job.places:
                texts[place] = text
        if self.rules.thought is not None:
            facts = facts | {"forced": sum(map(self.rules.thought.was_cut, written))}
        if self._samples == 1:
            return Answers(texts, facts, self.cut)
        samples = [texts[start : start + self._samples] for start in range(0, len(texts), self._samples)]
        return Answers([each[0] for each in samples], facts, self.cut, samples)

    def _text(self, row: Sequence[int]) -> str:
        length = next((place for place, token in enumerate(row) if token in self.rules.ends), len(row))
        if self._markers is None:
            return str(self._tokenizer.decode(list(row[:length]), skip_special_tokens=True))
        kept = [token for token in row[:length] if token not in self._markers.stripped]
        return self._opening + str(self._tokenizer.decode(kept, skip_special_tokens=False))


def _jobs(texts: Sequence[Question], numbers: Sequence[int], decoding: Decoding) -> list[_Job]:
    """Return the generations that are needed: one for each distinct prompt, or each sample of each prompt."""
    if (sampling := decoding.sampling) is not None:
        return [
            _Job(
                text,
                derive(sampling.seed, "sampling", str(number), str(sample)),
                [place * sampling.samples + sample],
            )
            for place, (text, number) in enumerate(zip(texts, numbers, strict=True))
            for sample in range(sampling.samples)
        ]
    places: dict[Question, list[int]] = {}
    for place, text in enumerate(texts):
        places.setdefault(text, []).append(place)
    return [_Job(text, 0, found) for text, found in places.items()]
