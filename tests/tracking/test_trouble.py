"""What goes wrong around the mirror costs the run nothing, and the mirror no more than it must."""

import sys
from base64 import b64decode
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from threading import Event

import psutil
import pytest
from made_sweep import SWEEP
from passthrough import Passthrough, answering, dripping

from harness.errors import TrackingError
from harness.tracking.wandb import Wandb
from harness.wandb_sync import follow as following
from harness.wandb_sync import server
from harness.wandb_sync import sync as syncing
from harness.wandb_sync.client import Client, address, reset
from harness.wandb_sync.run import RunRecord
from harness.wandb_sync.server import Busy, Server
from harness.wandb_sync.sweep_runs import SweepRuns
from harness.wandb_sync.sync import sync
from harness.wandb_sync.uploader import uploading


@pytest.fixture
def elsewhere():
    opened = Passthrough("http://127.0.0.1:9")
    opened.fault = answering(200)
    yield opened
    opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_key_does_not_follow_a_redirect_to_another_server(elsewhere, code):
    here = Passthrough("http://127.0.0.1:9")
    here.fault = answering(code, Location=f"{elsewhere.address}/graphql")

    with pytest.raises(TrackingError, match=f"answers {code} and redirects to {elsewhere.address}/graphql"):
        Server(address=here.address, key="secret", project="p").owner()

    here.close()
    assert elsewhere.requests == []


def test_key_is_not_shown():
    assert "secret" not in repr(Server(address="http://127.0.0.1:9", key="secret", project="p"))


@pytest.mark.parametrize("text", ['"["', '"[]"', '"{\\"step\\": \\"x\\"}"'], ids=["no JSON", "no mapping", "no step"])
def test_answer_that_makes_no_sense_is_told(elsewhere, text):
    viewer = '"viewer": {"entity": "me"}'
    run = f'"project": {{"r0": {{"name": "a", "state": "finished", "config": "{{}}", "summaryMetrics": {text}}}}}'

    def answer(handler):
        handler.answer(200, f'{{"data": {{{viewer}, {run}}}}}'.encode())
        return True

    elsewhere.fault = answer
    with pytest.raises(TrackingError, match="does not answer like a W&B server"):
        Server(address=elsewhere.address, key="k", project="p").runs(["a"])


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: "], ids=["in the body", "in the head"]
)
def test_server_that_drips_is_left_after_the_time_of_one_answer(elsewhere, monkeypatch, head):
    monkeypatch.setattr(server, "TIMEOUT_SECONDS", 0.5)
    elsewhere.fault = dripping(head)

    with pytest.raises(TrackingError, match=r"no complete response within 0\.5 s"):
        Server(address=elsewhere.address, key="k", project="p").owner()


@pytest.mark.parametrize("framed", [True, False], ids=["announced", "unannounced"])
def test_answer_that_does_not_end_is_not_read_to_its_end(elsewhere, monkeypatch, framed):
    monkeypatch.setattr(server, "MOST_BYTES", 100_000)
    sent = []

    def flood(handler):
        handler.close_connection = True
        length = b"Content-Length: 1000000000000\r\n" if framed else b""
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n")
        try:
            for _ in range(100):
                sent.append(handler.wfile.write(b" " * 1_000_000))
        except OSError:
            pass
        return True

    elsewhere.fault = flood
    with pytest.raises(TrackingError, match="answers with more than 100,000 bytes"):
        Server(address=elsewhere.address, key="k", project="p").owner()
    assert len(sent) < 100


def test_answer_just_within_the_bounds_is_read(elsewhere, monkeypatch):
    content = b'{"data": {"viewer": {"entity": "me"}}}'
    monkeypatch.setattr(server, "MOST_BYTES", len(content))

    def answer(handler):
        handler.answer(200, content)
        return True

    elsewhere.fault = answer
    assert Server(address=elsewhere.address, key="k", project="p").owner() == "me"


@pytest.mark.parametrize("code", [429, 503])
def test_server_that_wants_a_pause_says_how_long(elsewhere, code):
    elsewhere.fault = answering(code, Retry_After="120")

    with pytest.raises(Busy, match=f"answers {code} .*, and asks to retry after 120 s") as caught:
        Server(address=elsewhere.address, key="k", project="p").owner()
    assert caught.value.seconds == 120.0


def test_pause_may_be_a_date(elsewhere):
    elsewhere.fault = answering(429, Retry_After=format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True))

    with pytest.raises(Busy) as caught:
        Server(address=elsewhere.address, key="k", project="p").owner()
    assert 3500 < caught.value.seconds <= 3600


@pytest.mark.parametrize("text", ["soon", "-5", "Mon, 01 Jan 2001 00:00:00 GMT", "Mon, 01 Jan 2001 00:00:00", ""])
def test_pause_that_is_none_is_no_pause(elsewhere, text):
    elsewhere.fault = answering(429, Retry_After=text)

    with pytest.raises(TrackingError, match="answers 429") as caught:
        Server(address=elsewhere.address, key="k", project="p").owner()
    assert not isinstance(caught.value, Busy)


def test_key_is_sent_as_it_is(elsewhere):
    seen = []

    def answer(handler):
        seen.append(handler.headers["Authorization"])
        handler.answer(200, b'{"data": {"viewer": {"entity": "me"}}}')
        return True

    elsewhere.fault = answer
    for key in ("local0", "with\r\nX: a header", "\u00fcml\u00e4ut"):
        Server(address=elsewhere.address, key=key, project="p").owner()

    assert [b64decode(text.removeprefix("Basic ")).decode() for text in seen] == [
        "api:local0", "api:with\r\nX: a header", "api:\u00fcml\u00e4ut",
    ]  # fmt: skip


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://", "nowhere", "http://[", "http://a b", "ftp://x"])
def test_address_where_nobody_answers_is_told(address):
    with pytest.raises(TrackingError, match=r"does not answer: \S"):
        Server(address=address, key="k", project="p").owner()


@pytest.mark.parametrize(("name", "text"), [("WANDB_MODE", "sideways"), ("WANDB_BASE_URL", "no address")])
def test_variable_that_wandb_does_not_take_is_told(monkeypatch, name, text):
    monkeypatch.setenv(name, text)

    with pytest.raises(TrackingError, match=r"W&B's own settings .* are invalid: .*Settings") as told:
        address()

    assert "\n" not in str(told.value)


def test_run_whose_companion_cannot_be_started_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    told, ran = [], []

    with uploading(Wandb(), tmp_path, "s", told.append):
        ran.append(True)

    assert ran
    assert told == [
        "W&B uploader cannot be started (No such file or directory): nothing was uploaded; "
        "`harness sync s` does it later"
    ]


def test_sync_without_wandb_says_how_to_install_it(small, monkeypatch):
    monkeypatch.setattr(syncing, "find_spec", lambda name: None)

    with pytest.raises(TrackingError, match="not installed: `pip install"):
        sync(small.root, SWEEP, Wandb())


def test_work_folder_that_goes_while_it_is_looked_at_is_no_error(store):
    key = next(iter(SweepRuns(store, SWEEP, Wandb()).trained))
    store.prepare()
    store.record_attempt(key, {"outcome": "failed"})

    assert not SweepRuns(store, SWEEP, Wandb()).ended(key)


@pytest.mark.slow
def test_wandb_process_that_was_killed_is_told_and_comes_back(tmp_path):
    wire = Client(mode="offline", entity=None, project="p", folder=tmp_path)
    entry = RunRecord(id="a", name="a", kind="cell", group="g", tags=(), config={})
    stream = wire.begin(entry)
    (core,) = (child for child in psutil.Process().children() if "wandb-core" in child.name())

    core.kill()

    for use in (stream.abandon, lambda: wire.begin(entry), reset):
        with pytest.raises(TrackingError, match="W&B: "):
            use()
    wire.send(entry, after=-1)
    reset()


@pytest.fixture
def turns(monkeypatch):
    """Lets a test say how each connection goes; what it waits between them is noted, not waited."""
    waits, script = [], []

    @contextmanager
    def connected(*_):
        yield type("Connection", (), {"destination": "here"})

    class Follower:
        def __init__(self, *_):
            self.served, self.missing = False, 1
            self._script = script.pop(0)

        def update(self):
            said = next(self._script)
            self.missing = 0 if said == "all" else 1
            return "" if said in ("all", "some") else said

        def close(self):
            pass

    class Ended(Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            return self.is_set()

    monkeypatch.setattr(following, "connected", connected)
    monkeypatch.setattr(following, "Follower", Follower)
    return script, waits, Ended()


def test_follower_leaves_a_server_that_refuses_runs_alone_for_longer_and_longer(store, turns):
    script, waits, ended = turns
    script += [iter(["refused"]) for _ in range(9)] + [iter(["some", "refused"]), iter(["all"])]

    assert following.follow(store.root, SWEEP, Wandb(), ended=ended, notify=lambda _: None)

    assert waits == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0, 5.0, 5.0]


def test_follower_says_a_lasting_trouble_once_and_again_after_it_was_over(store, turns):
    script, _, ended = turns
    refused = "API key must have 40+ characters"
    script += [iter([refused]) for _ in range(4)] + [iter(["some", refused]), iter(["other"]), iter([refused])]
    script += [iter(["all"])]
    told = []

    assert following.follow(store.root, SWEEP, Wandb(), ended=ended, notify=told.append)

    place, trouble = f"W&B: runs of {SWEEP} are in here", f"W&B: {refused}. The sweep continues without W&B."
    other = "W&B: other. The sweep continues without W&B."
    (end,) = [text for text in told if text.startswith("W&B: all")]
    assert told == [place, trouble, trouble, place, other, end]


def test_follower_leaves_a_server_that_wants_a_pause_alone_for_it_but_not_for_ever(store, turns, monkeypatch):
    script, waits, ended = turns
    monkeypatch.setattr(following, "sleep", waits.append)

    def busy(seconds):
        raise Busy("busy", seconds)
        yield

    script += [busy(120.0), busy(86400.0), iter(["all"])]

    assert following.follow(store.root, SWEEP, Wandb(), ended=ended, notify=lambda _: None)

    assert waits == [120.0, 5.0, 300.0, 10.0]


def test_follower_that_nobody_listens_to_any_more_sends_the_rest(store, turns):
    script, _, ended = turns

    def while_the_run_ends():
        ended.set()
        yield "refused"

    script += [while_the_run_ends(), iter(["all"])]

    def tell(text):
        if ended.is_set():
            raise BrokenPipeError

    assert following.follow(store.root, SWEEP, Wandb(), ended=ended, notify=tell)


def test_follower_whose_reader_left_stops(store, turns):
    script, _, ended = turns
    script += [iter(["all"])]

    def tell(text):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        following.follow(store.root, SWEEP, Wandb(), ended=ended, notify=tell)
