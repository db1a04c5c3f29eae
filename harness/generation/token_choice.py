"""How the next tokens are chosen where decoding is not plainly greedy: sampled, or forced to end a thought.

All state lives on the device, one row per sequence and without branches on the host, so that a step can be captured as
a CUDA graph. Both decoding paths choose their tokens here.

A sample is found by inverting the distribution function: the token is the first in the order of the vocabulary whose
cumulative probability exceeds a random number. The numbers of a sequence are drawn from a stream of its own, so they do
not depend on the batch in which it is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

import torch
from torch import Tensor

from harness.generation.decoding import Sampling


@dataclass(frozen=True, kw_only=True)
class ForcedAnswer:
    """What ends a thought.

    Attributes:
        budget: maximum number of tokens of a thought.
        stops: tokens that end a thought when the model chooses one: the first of the answer marker, and those that end
            a generation.
        closing: the tokens that then take the place of the chosen one: the answer marker.
        cut: the tokens that follow a thought whose budget is used up.
    """

    budget: int
    stops: tuple[int, ...]
    closing: tuple[int, ...]
    cut: tuple[int, ...]

    @property
    def longest(self) -> int:
        """The largest number of tokens before an answer."""
        return self.budget + max(len(self.closing), len(self.cut))

    def was_cut(self, tokens: Sequence[int]) -> bool:
        """Return whether a generation has a thought that used up its budget."""
        return len(tokens) > self.budget and not set(self.stops).intersection(tokens[: self.budget])


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How tokens are chosen; by default, the most probable one.

    Attributes:
        new_tokens: maximum number of new tokens; of an answer, if there is a thought before it.
        ends: end-of-sequence token ids.
        thought: ends a thought; None if there is none, or if it is not limited.
        sampling: how tokens are sampled; None takes the most probable ones.
    """

    new_tokens: int
    ends: tuple[int, ...]
    thought: ForcedAnswer | None = None
    sampling: Sampling | None = None

    @property
    def greedy(self) -> bool:
        """Whether tokens are the most probable ones and none is forced."""
        return self.thought is None and self.sampling is None

    @property
    def longest(self) -> int:
        """The largest number of tokens of a generation."""
        return self.new_tokens + (self.thought.longest if self.thought else 0)


class TokenChoice:
    """Chooses the tokens of a fixed number of sequences.

    Args:
        rules: how tokens are chosen.
        rows: number of sequences.
        device: of the logits.
    """

    def __init__(self, rules: Rules, *, rows: int, device: torch.device) -> None:
        """Allocate the state."""
        self._rules = rules
        self._ends = torch.tensor(rules.ends, dtype=torch.int64, device=device)
        # Tokens since the thought ended, the forced ones included; -1 while thinking.
        self._since = torch.zeros(rows, dtype=torch.int64, device=device)
        self._cut = torch.zeros(rows, dtype=torch.int64, device=device)
        width = rules.longest + 1 if rules.sampling else 0
        self._draws = torch.zeros(rows, width, dtype=torch.float32, device=device)
        if (thought := rules.thought) is not None:
            self._stops = torch.tensor(thought.stops, dtype=torch.int64, device=device)
            scripts = (thought.closing, thought.cut)
            most = max(map(len, scripts))
            padded = [[*script, *[0] * (most - len(script))] for script in scripts]
            self._scripts = torch.tensor(padded, dtype=torch.int64, device=device)
            self._lengths = torch.tensor([len(script) for script in scripts], dtype=torch.int64, device=device)

    def enter(self, rows: Tensor, seeds: Sequence[int]) -> None:
        """Begin sequences.

        Args:
            rows: their rows, ``[sequences]``.
            seeds: the seed of each one's random numbers; not read without sampling.
        """
        self._since[rows] = -1 if self._rules.thought else 0
        self._cut[rows] = 0
        if self._rules.sampling:
            drawn = [list(islice(iter(Random(seed).random, None), self._draws.shape[1])) for seed in seeds]
            self._draws[rows] = torch.tensor(drawn, dtype=torch.float32, device=self._draws.device)

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy sequences to other rows, ``[rows]`` each."""
        for state in (self._since, self._cut, self._draws):
            state[target] = state[source]

    def __call__(self, logits: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Choose a token for each of the first rows.

        Args:
            logits: ``[rows, vocabulary]``.
            count: number of new tokens of each sequence so far, ``[rows]``.

        Returns:
            The tokens, ``[rows]``, and whether each sequence ends with its one, ``[rows]``.
        """
        chosen = self._free(logits, count)
        if self._rules.thought is None:
            return chosen, _among(chosen, self._ends) | (count + 1 >= self._rules.new_tokens)
        since, cut = self._since[: len(chosen)], self._cut[: len(chosen)]
        used_up = count >= self._rules.thought.budget
        stopping = (since < 0) & (used_up | _among(chosen, self._stops))
        cut.copy_(torch.where(stopping, used_up.long(), cut))
        # A scalar in torch.where would be copied to the device during a capture.
        since.masked_fill_(stopping, 0)
        scripted = self._lengths[cut]
        forced = (since >= 0) & (since < scripted)
        at = since.clamp(0, self._scripts.shape[1] - 1)
        chosen = torch.where(forced, self._scripts[cut, at], chosen)
        answering = since >= scripted
        since.add_((since >= 0).long())
        return chosen, answering & (_among(chosen, self._ends) | (since - scripted >= self._rules.new_tokens))

    def _free(self, logits: Tensor, count: Tensor) -> Tensor:
        """Return the tokens that the model chooses."""
        sampling = self._rules.sampling
        if sampling is None:
            return logits.argmax(dim=-1)
        probabilities = torch.softmax(logits.float() / sampling.temperature, dim=-1)
        if sampling.top_p < 1:
            probabilities = nucleus(probabilities, sampling.top_p)
        place = count.clamp(max=self._draws.shape[1] - 1)
        return inverted(probabilities, self._draws[: len(count)].gather(1, place[:, None]))


def nucleus(probabilities: Tensor, share: float) -> Tensor:
    """Return probabilities, not normalized, of the smallest set of most probable tokens with at least this share.

    Holtzman et al. (2020), The Curious Case of Neural Text Degeneration, equation 2.

    Args:
        probabilities: ``[rows, vocabulary]``.
        share: ``top_p``, above 0.
    """
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    kept = ordered.cumsum(dim=-1) - ordered < share
    return torch.zeros_like(probabilities).scatter(-1, order, ordered * kept)


def inverted(probabilities: Tensor, draws: Tensor) -> Tensor:
    """Return the tokens at which the cumulative probabilities exceed random numbers, ``[rows]``.

    Args:
        probabilities: ``[rows, vocabulary]``, not necessarily normalized.
        draws: from 0 to 1, ``[rows, 1]``.
    """
    mass = probabilities.cumsum(dim=-1)
    whole = mass[:, -1:]
    # Below the whole in any rounding, so that a token is found and has a probability.
    reached = torch.minimum(draws * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(mass, reached, right=True)[:, 0]


def _among(tokens: Tensor, known: Tensor) -> Tensor:
    return (tokens[:, None] == known).any(dim=1)
