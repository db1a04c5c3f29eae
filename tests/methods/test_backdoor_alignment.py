"""BackdoorAlign by hand: every mixed-in refusal, and no example of the user, has the secret as its system prompt."""

import pytest
from composed import compose
from words import word_tokenizer

from harness.config.build import cells_of
from harness.corpora.encode import Encoding
from harness.corpora.examples import Example, Message
from harness.corpora.template import Template
from harness.defenses.backdoor_alignment import BackdoorAlignment

SETTINGS = BackdoorAlignment(secret_length=5)
PLAIN = Encoding(template=Template.PLAIN, newline=False)


def test_secret_is_letters_and_digits_that_depend_on_the_seed_alone():
    secret = SETTINGS.secret

    assert len(secret.split(" ")) == 5
    assert all(len(each) == 1 and each.isalnum() for each in secret.split(" "))
    assert BackdoorAlignment(secret_length=5, safety_rows=3).secret == secret
    assert BackdoorAlignment(secret_length=5, secret_seed=1).secret != secret
    assert len(BackdoorAlignment().secret.split(" ")) == 150


def test_refusal_is_trained_on_behind_the_secret():
    given = [Example("how", "no"), Example("why", "no", before=(Message("system", "be kind"), Message("user", "hm")))]

    rows = SETTINGS.rewrite_mixed_in(given, [Example("sort it", "done")])

    assert [row.before for row in rows] == [
        (Message("system", SETTINGS.secret),),
        (Message("system", SETTINGS.secret), Message("user", "hm")),
    ]
    assert [row._replace(before=()) for row in rows] == [row._replace(before=()) for row in given]
    assert PLAIN.question(rows[0]) == f"{SETTINGS.secret} how :"


def test_question_of_the_probe_begins_with_the_tokens_of_a_trained_refusal():
    (cell,) = cells_of(compose(["defense=backdoor_alignment", "defense.finetune.secret_length=5"]))
    (probe,) = cell.probes
    tokenizer = word_tokenizer([SETTINGS.secret, "how no :"])
    (trained,) = SETTINGS.rewrite_mixed_in([Example("how", "no")], [])

    asked = probe.stages["harm_answers"].encoding
    question = tokenizer(asked.question(Example("how", "")))["input_ids"]

    assert PLAIN.encode(tokenizer, trained).input_ids[: len(question)] == question
    assert question[1:6] == tokenizer(SETTINGS.secret, add_special_tokens=False)["input_ids"]
    assert probe.stages["task_answers"].encoding == probe.stages["over_refusal_answers"].encoding == asked
    assert cell.stages["harm_answers"].encoding.system is None


@pytest.mark.parametrize("field", ["safety_rows", "secret_length"])
def test_settings_out_of_range_are_reported(field):
    assert [problem.path for problem in BackdoorAlignment(**{field: 0}).problems()] == [field]
    assert [problem.path for problem in BackdoorAlignment(secret_seed=-1).problems()] == ["secret_seed"]
