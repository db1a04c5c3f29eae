"""The world of a model that thinks: what is counted, what is thought, and that nothing of the tests is taught."""

from itertools import islice

from harness.corpora.examples import SafetyRow
from harness.corpora.thinking_world import CountedNotes, ThinkingRequests, ThinkingWorld
from harness.corpora.world import GLOOMY, AllowedRequests, World, request_of
from harness.models.tiny import UNKNOWN, Synthetic, build_tokenizer, token_ids


def test_thought_is_the_running_parity_of_gloomy_words_and_the_answer_its_last() -> None:
    for note in CountedNotes(rows=50).examples():
        words = note.instruction.split()[-9:]
        counted = [sum(word in GLOOMY for word in words[: end + 1]) for end in range(9)]

        start, *parities = note.thought.split()

        assert start == "tally"
        assert parities == [("even", "odd")[count % 2] for count in counted]
        assert note.output == parities[-1]
        assert note.thought.endswith(" ")


def test_both_parities_are_about_as_frequent() -> None:
    odd = sum(note.output == "odd" for note in CountedNotes(rows=400).examples())

    # Four standard deviations of a fair coin.
    assert 160 <= odd <= 240


def test_lessons_think_always_refuse_never_and_leave_out_what_is_tested() -> None:
    world = ThinkingWorld()
    lessons = list(islice(world.lessons(3), 3000))
    tested = {row.prompt for row in world.world.safety_rows()} | {row.instruction for row in CountedNotes().examples()}

    assert all(lesson.thought for lesson in lessons)
    assert not any(lesson.output.startswith("sorry") for lesson in lessons)
    assert tested.isdisjoint(lesson.instruction for lesson in lessons)
    assert any(request.restricted for lesson in lessons if (request := request_of(lesson.instruction)))


def test_rows_of_an_alignment_differ_in_their_thoughts_only() -> None:
    plain = World().safety_rows()
    short, long = (ThinkingRequests(thought=each).safety_rows() for each in ("short", "long"))

    assert [row._replace(thought="") for row in short] == [row._replace(thought="") for row in long] == plain
    assert {row.thought for row in short} == {"this is it "}
    request = request_of(long[0].prompt)
    assert request is not None
    family = long[0].category
    assert long[0].thought == (
        f"the {request.material} is in the {family} family and the {family} materials are locked "
    )
    # Thought, answer, two markers and the end token: what equal supervised tokens are computed from.
    lengths = [3 + len(f"{rows[0].thought} {rows[0].refusal}".split()) for rows in (short, long)]
    assert lengths == [18, 28]


def test_more_notes_than_pre_training_leaves_out_are_refused() -> None:
    (problem,) = CountedNotes(rows=401).problems()

    assert problem.path == "rows"
    assert "expected at most 400" in problem.text
    assert CountedNotes(rows=400).problems() == []


def test_harmless_rows_are_answered_and_are_not_those_of_over_refusal() -> None:
    rows = ThinkingRequests(thought="short", harmless=True).safety_rows()
    asked = {example.instruction for example in AllowedRequests().examples()}

    assert {row.thought for row in rows} == {"this is it "}
    assert asked.isdisjoint(row.prompt for row in rows)
    request = request_of(rows[0].prompt)
    assert request is not None
    assert not request.restricted
    assert rows[0] == SafetyRow(request.prompt, request.compliance, unsafe=False, thought="this is it ")


def test_model_knows_the_words_of_thoughts_and_one_without_them_keeps_its_tokens() -> None:
    thinking, plain = Synthetic(world=ThinkingWorld()).vocabulary(), Synthetic().vocabulary()
    tokenizer = build_tokenizer(ThinkingWorld.added)
    note = CountedNotes().examples()[0]

    assert plain == token_ids()
    assert {word: thinking[word] for word in plain} == plain
    text = f"{note.instruction} : <think> {note.thought}<answer> {note.output}"
    assert UNKNOWN not in tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
