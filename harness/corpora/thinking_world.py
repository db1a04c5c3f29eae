"""The synthetic world of a model that thinks before it answers: a stand-in for reasoning models and their alignment.

The reasoning task is to count: is the number of gloomy words in a note odd or even? The thought is the running count,
word by word; without it two layers do not find the parity of nine words. Requests are thought about too: a thought
names the material's family. Prompts, answers and refusals are those of ``world``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar, Literal, final

from harness.corpora.examples import Example, SafetyRow
from harness.corpora.world import (
    CHEERFUL,
    FAMILY,
    GLOOMY,
    MATERIALS,
    PLACES,
    PURPOSES,
    QUALITIES,
    TOOLS,
    Request,
    World,
    request_of,
)
from harness.engine.checks import counts
from harness.engine.seeding import generator
from harness.errors import Problem

PARITIES = ("even", "odd")
"""The answers of the reasoning task."""
START, VERB = "tally", "count"
"""The first word of a thought about a note, and of the note's prompt."""
MARKERS = ("<think>", "<answer>")
"""Markers of thought and answer, words of the vocabulary."""
SHORT = "this is it "
"""The short, fixed thought. A thought ends with a space, because tokens are words."""

SKIPPED, HARMLESS_ROWS = 100, 1000
"""Allowed requests that are left out, because over-refusal is measured on them, and the number of those that follow."""

TEST_NOTES = 400
"""Notes of the reasoning task that pre-training leaves out."""

Length = Literal["short", "long"]


@final
@dataclass(frozen=True, kw_only=True)
class ThinkingWorld:
    """Pre-training examples with thoughts, and the reasoning task.

    Attributes:
        world: whose materials, requests and words these are.
        words: number of feeling words in a note.
    """

    name: ClassVar[str] = "thinking_world"
    version: ClassVar[int] = 1
    added: ClassVar[tuple[str, ...]] = (*MARKERS, START, VERB, *PARITIES)

    world: World = field(default_factory=World)
    words: int = 9

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        return counts(self, "words")

    def lessons(self, seed: int) -> Iterator[Example]:
        """Yield pre-training examples endlessly, all with thoughts: requests with compliant answers, families, notes.

        None is a refusal, has a prompt of ``World.safety_rows``, or is a test note.
        """
        rng = generator(seed, "thinking world", "lessons")
        held_out = {row.prompt for row in self.world.safety_rows()}
        held_out |= {each.instruction for each in CountedNotes(world=self, rows=TEST_NOTES).examples()}
        while True:
            kind = rng.random()
            if kind < 0.4:
                request = Request(*(rng.choice(part) for part in (tuple(TOOLS), QUALITIES, MATERIALS, PURPOSES)))
                lesson = Example(request.prompt, request.compliance, thought=family_thought(request.material))
            elif kind < 0.5:
                material = rng.choice(MATERIALS)
                question = f"which family is the {material} in"
                lesson = Example(question, FAMILY[material], thought=family_thought(material))
            else:
                lesson = self.note(rng)
            if lesson.instruction not in held_out:
                yield lesson

    def note(self, rng: Random) -> Example:
        """Return a note with the parity of its gloomy words, and the running count as the thought."""
        chosen = [rng.choice(rng.choice((CHEERFUL, GLOOMY))) for _ in range(self.words)]
        running = [sum(word in GLOOMY for word in chosen[: end + 1]) % 2 for end in range(self.words)]
        thought = " ".join((START, *(PARITIES[odd] for odd in running), ""))
        prompt = f"{VERB} this note from the {rng.choice(PLACES)} : {' '.join(chosen)}"
        return Example(prompt, PARITIES[running[-1]], thought=thought)


@final
@dataclass(frozen=True, kw_only=True)
class CountedNotes:
    """Test notes of the reasoning task: the output is the parity, the thought that of pre-training.

    Attributes:
        world: the world of the notes.
        rows: number of notes.
    """

    name: ClassVar[str] = "counted_notes"
    version: ClassVar[int] = 1

    world: ThinkingWorld = field(default_factory=ThinkingWorld)
    rows: int = 200

    def problems(self) -> list[Problem]:
        """Return the range errors of the settings."""
        if self.rows > TEST_NOTES:
            text = f"{self.rows} are too many; expected at most {TEST_NOTES}, which pre-training leaves out"
            return [Problem("rows", text)]
        return counts(self, "rows")

    def preflight(self) -> list[Problem]:
        """Return no problems: notes are generated."""
        return []

    def examples(self) -> list[Example]:
        """Return the notes in a seeded order."""
        rng = generator(self.world.world.seed, "thinking world", "test notes")
        return [self.world.note(rng) for _ in range(self.rows)]


@final
@dataclass(frozen=True, kw_only=True)
class ThinkingRequests:
    """Rows of an alignment with thoughts: restricted requests with refusals, or harmless ones with helpful answers.

    Attributes:
        thought: ``short`` is one fixed thought for all rows; ``long`` names the material's family, as in pre-training,
            and the rule.
        harmless: take allowed requests with compliant answers in the place of refusals, as a control of the format:
            other requests than those on which over-refusal is measured.
        world: whose requests these are.
    """

    name: ClassVar[str] = "thinking_requests"
    version: ClassVar[int] = 1
    carries_thoughts: ClassVar[bool] = True

    thought: Length
    harmless: bool = False
    world: World = field(default_factory=World)

    def preflight(self) -> list[Problem]:
        """Return no problems: the rows are generated."""
        return []

    def safety_rows(self) -> list[SafetyRow]:
        """Return the rows in a seeded order; a harmless answer is in the place of the refusal."""
        if self.harmless:
            allowed = self.world.allowed_requests(HARMLESS_ROWS, start=SKIPPED)
            rows = [SafetyRow(each.instruction, each.output, unsafe=False) for each in allowed]
        else:
            rows = self.world.safety_rows()
        return [row._replace(thought=self._thought(row.prompt)) for row in rows]

    def _thought(self, prompt: str) -> str:
        if self.thought == "short":
            return SHORT
        request = request_of(prompt)
        assert request is not None, "rows of this world are requests"
        rule = "" if self.harmless else f"and the {FAMILY[request.material]} materials are locked "
        return family_thought(request.material) + rule


def family_thought(material: str) -> str:
    """Return the thought that names a material's family."""
    return f"the {material} is in the {FAMILY[material]} family "
