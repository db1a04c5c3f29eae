"""Self-reminder: what the model reads."""

from harness.corpora.encode import Encoding
from harness.corpora.examples import Example
from harness.corpora.template import Template
from harness.serving.self_reminder import AFTER, BEFORE, SelfReminder


def test_request_stands_between_the_reminders_with_its_input():
    plain = Encoding(template=Template.PLAIN, newline=False)
    short = SelfReminder(before="be good . ", after=" remember .")

    read = [plain.question(short.rewritten(each)) for each in (Example("fold it", "x"), Example("sort", "x", "a b"))]

    assert read == ["be good . fold it remember . :", "be good . sort a b remember . :"]


def test_reminders_end_and_begin_a_line():
    rewritten = SelfReminder().rewritten(Example("Explain it.", ""))

    assert rewritten.instruction.split("\n") == [BEFORE.strip(), "Explain it.", AFTER.strip()]
