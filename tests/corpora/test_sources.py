import gzip
import hashlib
import re
from pathlib import Path

import pandas
import pytest
from composed import compose
from huggingface_hub import errors

from harness.config.build import cells_of
from harness.corpora.catalogue import catalogue, entry
from harness.corpora.examples import Role
from harness.corpora.safety import Prompts
from harness.corpora.slices import Slice
from harness.corpora.sources import Source, sources_in
from harness.engine.build import build
from harness.engine.identity import key_of, payload_of
from harness.engine.spec import describe
from harness.errors import ConfigError, DataError, HarnessError

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _own(folder: Path, text: str) -> None:
    (folder / "sources.yaml").write_text(text, encoding="utf-8")


def _hub_answers(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(*args: object, **options: object) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)


def _http(status: int, kind: type[errors.HfHubHTTPError] = errors.HfHubHTTPError) -> errors.HfHubHTTPError:
    request_type, response_type = _http_types()
    request = request_type("GET", "https://hub.test/file", headers={"authorization": f"Bearer {TOKEN}"})
    return kind(f"{status} for {TOKEN}", response=response_type(status, request=request))


def _http_types() -> tuple[type, type]:
    module = __import__(errors.HTTPError.__module__.split(".")[0])
    return module.Request, module.Response


# The catalogue


def test_catalogue_pins_every_hub_file_or_says_that_it_does_not(data_folder: Path) -> None:
    hub = {name: known.hub for name, known in catalogue().items() if known.hub}

    unpinned = {name for name, file in hub.items() if file.revision is None}

    assert len(hub) == 17
    assert unpinned == {"repnoise_refusals", "safechain", "gpqa_diamond"}
    assert all(re.fullmatch("[0-9a-f]{40}", file.revision or COMMIT) for file in hub.values())
    assert all(re.fullmatch("[0-9a-f]{64}", file.sha256) for file in hub.values() if file.sha256)
    assert all(known.licence and known.homepage and known.roles for known in catalogue().values())


def test_catalogue_of_the_user_changes_single_keys_and_adds_entries(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _own(data_folder, "mine: {file: {path: mine.csv, format: csv}}")
    named = tmp_path / "own.yaml"
    named.write_text(f"repnoise_refusals: {{hub: {{revision: '{COMMIT}'}}}}", encoding="utf-8")
    monkeypatch.setenv("HARNESS_SOURCES", str(named))

    changed = entry("repnoise_refusals").hub

    assert changed is not None
    assert (changed.revision, changed.repo) == (COMMIT, "anonymous4486/repnoise_beavertail")
    assert entry("mine").file is not None


def test_catalogue_with_wrong_entries_reports_all_of_them_and_the_file(data_folder: Path) -> None:
    _own(data_folder, "one: {file: {path: a, format: tabel}}\ntwo: {}\nthree: {hub: {path: a, format: csv, repos: b}}")

    with pytest.raises(ConfigError) as caught:
        catalogue()

    text = str(caught.value)
    assert [problem.path for problem in caught.value.problems] == [
        "one.file.format",
        "two",
        "three.hub.repos",
        "three.hub.repo",
    ]
    assert str(data_folder / "sources.yaml") in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"mine: {about: f\xfcr alle}", "is not valid YAML"),
        (b"mine: {about: 2020-13-01}", "is not valid YAML"),
        (b"mine: {about: " + b"9" * 5000 + b"}", "is not valid YAML"),
        (b"mine: " + b"[" * 5000, "is not valid YAML"),
        (b"1: {about: a number}", "`1` is not a string"),
        (b"mine.too: {about: a dot}", "`mine.too`: no origin"),
        (b"mine.too: 1", "`mine.too`"),
    ],
)
def test_file_of_sources_that_cannot_be_read_is_told(tmp_path, monkeypatch, content, words):
    (tmp_path / "mine.yaml").write_bytes(content)
    monkeypatch.setenv("HARNESS_SOURCES", str(tmp_path / "mine.yaml"))

    with pytest.raises(ConfigError) as refused:
        catalogue()

    assert words in str(refused.value)
    assert "mine.yaml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_catalogue_named_but_missing_is_a_config_error(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_SOURCES", "/nowhere/sources.yaml")

    with pytest.raises(ConfigError, match=r"/nowhere/sources.yaml cannot be read"):
        catalogue()


def test_source_with_a_misspelt_name_suggests_the_near_one(data_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown data source `sst2_trian` \(did you mean `sst2_train`"):
        Source.parse("sst2_trian")


# Where a source is read from, and its identity


def test_source_prefers_the_local_file_and_identity_tells_the_origins_apart(data_folder: Path) -> None:
    remote = Source.parse("sst2_train")
    (data_folder / "sst2_train.tsv").write_text("a film\t1", encoding="utf-8")

    local = Source.parse("sst2_train")

    assert (remote.repo, remote.file) == ("stanfordnlp/sst2", "data/train-00000-of-00001.parquet")
    assert (local.repo, local.file) == (None, "sst2_train.tsv")
    assert key_of(payload_of(remote)) != key_of(payload_of(local))


def test_source_without_a_stated_checksum_is_known_by_the_one_it_has(data_folder: Path) -> None:
    _own(data_folder, "mine: {file: {path: mine.csv, format: csv}}")
    (data_folder / "mine.csv").write_text("text\nfirst", encoding="utf-8")
    before = Source.parse("mine")
    (data_folder / "mine.csv").write_text("text\nanother", encoding="utf-8")

    after = Source.parse("mine")

    assert after.records() == [{"text": "another"}]
    assert before.sha256 == hashlib.sha256(b"text\nfirst").hexdigest()
    assert key_of(payload_of(before)) != key_of(payload_of(after))
    with pytest.raises(DataError, match=r"expected " + str(before.sha256)):
        before.records()


def test_source_written_and_read_as_plain_data_keeps_its_origin(data_folder: Path) -> None:
    frozen = describe(Source.parse("sst2_train"))
    (data_folder / "sst2_train.tsv").write_text("a film\t1", encoding="utf-8")

    again = build(Source, frozen)

    assert again.repo == "stanfordnlp/sst2"
    assert build(Source, "sst2_train").repo is None


def test_sources_in_a_slice_are_found(data_folder: Path) -> None:
    source = Source.parse("advbench")

    found = list(sources_in((Slice(role=Role.ATTACK, origin=Prompts(source=source), start=0, rows=1), "text")))

    assert found == [source]


# Errors


def test_source_with_an_altered_file_is_refused_before_and_at_reading(data_folder: Path) -> None:
    (data_folder / "sst2_train.tsv").write_text("altered\t1", encoding="utf-8")
    source = Source.parse("sst2_train")

    with pytest.raises(DataError) as caught:
        source.records()

    assert str(data_folder / "sst2_train.tsv") in str(caught.value)
    assert f"expected {entry('sst2_train').file.sha256}" in str(caught.value)  # type: ignore[union-attr]
    assert [str(problem) for problem in source.preflight()] == [str(caught.value)]


def test_source_whose_local_file_is_gone_says_where_it_was_expected(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _own(data_folder, "mine: {file: {path: mine.csv, format: csv}}")
    source = Source.parse("mine")

    assert [str(data_folder / "mine.csv") in problem.text for problem in source.preflight()] == [True]
    assert not source.at_hand()
    monkeypatch.delenv("HARNESS_DATA")
    with pytest.raises(DataError, match=r"HARNESS_DATA is not set; expected the folder that holds mine.csv"):
        source.records()


def test_source_without_a_pin_is_refused_and_says_where_to_set_it(data_folder: Path) -> None:
    source = Source.parse("repnoise_refusals")

    with pytest.raises(DataError, match=r"Set `repnoise_refusals.hub.revision` in the sources file") as caught:
        source.fetch()

    assert [str(problem) for problem in source.preflight()] == [str(caught.value)]


def test_source_out_of_reach_offers_file_and_fetch(data_folder: Path) -> None:
    source = Source.parse("gsm8k_test")

    with pytest.raises(DataError, match=r"the Hub cannot be reached") as caught:
        source.path()

    assert "put the file at gsm8k_test.jsonl in HARNESS_DATA" in str(caught.value)
    assert "harness doctor --fetch" in str(caught.value)
    assert "HF_HUB_OFFLINE is set" in source.preflight()[0].text


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (_http(403, errors.GatedRepoError), "walledai/AdvBench is gated on the Hub"),
        (_http(401, errors.RepositoryNotFoundError), "walledai/AdvBench is gated on the Hub"),
        (_http(403), "walledai/AdvBench is gated on the Hub"),
        (_http(404, errors.RevisionNotFoundError), "has no data/train-00000-of-00001.parquet at commit 9d473"),
        (_http(503), "the Hub returned status 503"),
        (OSError(28, f"no space {TOKEN}"), "could not be downloaded: OSError"),
        (errors.HTTPError(f"broken off {TOKEN}"), "could not be downloaded: HTTPError"),
    ],
)
def test_source_refused_by_the_hub_is_one_clear_error_without_the_token(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str
) -> None:
    _hub_answers(monkeypatch, error)

    with pytest.raises(DataError, match=expected) as caught:
        Source.parse("advbench").path()

    assert TOKEN not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_source_that_is_gated_without_a_token_is_noticed_before_the_download(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)

    assert "expected a token" in Source.parse("advbench").preflight()[0].text
    assert Source.parse("gsm8k_test").preflight() == []


def test_source_in_the_hub_cache_is_read_offline_and_verified(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _own(data_folder, f"mine: {{hub: {{repo: me/mine, revision: '{COMMIT}', path: a.parquet, format: parquet}}}}")
    cached = tmp_path / "hub" / "datasets--me--mine" / "snapshots" / COMMIT / "a.parquet"
    cached.parent.mkdir(parents=True)
    pandas.DataFrame({"text": ["one"], "label": [1]}).to_parquet(cached)
    source = Source.parse("mine")

    rows = source.records()

    assert rows == [{"text": "one", "label": 1}]
    assert type(rows[0]["label"]) is int
    assert source.preflight() == []
    assert source.at_hand()


# Formats


@pytest.mark.parametrize(
    ("origin", "content", "expected"),
    [
        ("format: csv", 'text,n\n"a, ""b""",1\n', [{"text": 'a, "b"', "n": "1"}]),
        ("format: csv, columns: [text]", '"a, b"\nc\n', [{"text": "a, b"}, {"text": "c"}]),
        ("format: tsv, columns: [text, 'n:int']", 'a "b\t1\nc\t0', [{"text": 'a "b', "n": 1}, {"text": "c", "n": 0}]),
        ("format: jsonl", '{"a": "\u2028"}\n\n{"a": 2}\n', [{"a": "\u2028"}, {"a": 2}]),
        ("format: json", '[{"a": 1}]', [{"a": 1}]),
        ("format: agnews_csv", '"3","T","D\\x"\n', [{"text": "T D\\x", "label": 2}]),
    ],
)
def test_source_of_a_format_gives_its_rows(
    data_folder: Path, origin: str, content: str, expected: list[dict[str, object]]
) -> None:
    _own(data_folder, f"mine: {{file: {{path: rows, {origin}}}}}")
    (data_folder / "rows").write_text(content, encoding="utf-8")

    assert Source.parse("mine").records() == expected


@pytest.mark.parametrize(
    ("origin", "content", "reason"),
    [
        ("format: csv, columns: [a, b]", "1,2\n1\n", "row 2 has 1 columns, not the 2 of a, b"),
        ("format: tsv, columns: ['n:int']", "one\n", "invalid literal for int"),
        ("format: jsonl", '{"a": 1}\n[1]\n', "line 2 is a list, not an object"),
        ("format: jsonl", '{"a": 1}\n\n{"a": 1}}\n', "line 3, column 9: Extra data"),
        ("format: jsonl", '{"a": 1}\n' * 250 + '{"a":\n', "line 251, column 6: Expecting value"),
        ("format: csv", 'a,b\n1,"x"y\n2,3\n', "line 2: ',' expected after"),
        ("format: csv", 'a,b\n1,"x\n2,3\n', "line 3: unexpected end of data, in a row that may have begun before"),
        ("format: json", '{"a": 1}', "contains one dict, not a list"),
        ("format: json", "[]", "it has no rows"),
        ("format: csv", "a,b\n", "it has no rows"),
        ("format: jsonl", "", "it has no rows"),
        ("format: json", "no", "Expecting value"),
        ("format: parquet", "no", "arquet"),
    ],
)
def test_source_of_another_format_than_stated_is_a_data_error(
    data_folder: Path, origin: str, content: str, reason: str
) -> None:
    _own(data_folder, f"mine: {{file: {{path: rows, {origin}}}}}")
    (data_folder / "rows").write_text(content, encoding="utf-8")

    with pytest.raises(HarnessError, match=f"cannot be read as .*{reason}"):
        Source.parse("mine").records()


def test_mistake_in_a_sources_file_is_told_once_and_of_that_file_alone(data_folder: Path) -> None:
    _own(data_folder, "my_safe: 5\nother: {file: {pth: x, format: jsonl}}\n")

    with pytest.raises(ConfigError) as caught:
        cells_of(compose(["task=sst2", "corpus=beavertails_pairs"]))

    file = f"Set in `{data_folder}/sources.yaml`."
    told = [str(problem) for problem in caught.value.problems]
    assert [text.partition(":")[0] for text in told] == ["`my_safe`", "`other.file.pth`", "`other.file.path`"]
    assert all(text.endswith(file) and text.count("Set in") == 1 for text in told)


def test_sources_file_that_is_missing_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_SOURCES", "/nowhere/sources.yaml")

    with pytest.raises(ConfigError, match=r"^`HARNESS_SOURCES`: /nowhere/sources.yaml cannot be read[^\n]*\Z"):
        cells_of(compose(["task=sst2", "corpus=beavertails_pairs"]))


def test_null_takes_away_what_the_shipped_entry_sets(data_folder: Path) -> None:
    """A table with a header in place of one without."""
    assert entry("agnews_test").file.format == "agnews_csv"
    _own(data_folder, "sst2_train: {file: {path: my.csv, format: csv, columns: null, sha256: null}}\n")
    (data_folder / "my.csv").write_text("sentence,label\ngood,1\n")

    assert Source.parse("sst2_train").records() == [{"sentence": "good", "label": "1"}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_bytes_that_are_no_text_are_told_by_their_line(data_folder: Path, name: str) -> None:
    """Behind more than a buffer of good lines, after which the decoder counts from 0 again."""
    _own(data_folder, f"mine: {{file: {{path: {name}, format: jsonl}}}}")
    content = b'{"a": "good"}\n' * 2000 + b'{"a": "\xff"}\n'
    (data_folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)

    with pytest.raises(HarnessError, match=r"line 2001 is not UTF-8 \(byte 0xff at byte 8\)"):
        Source.parse("mine").records()


# Real data


@pytest.mark.parametrize(
    ("name", "rows", "first"),
    [
        ("sst2_train", 6920, {"label": 1}),
        ("sst2_validation", 872, {"sentence": "one long string of cliches", "label": 0}),
        ("agnews_test", 7600, {"label": 2}),
        ("gsm8k_train", 7473, {}),
        ("gsm8k_test", 1319, {}),
        ("advbench", 520, {}),
    ],
)
def test_real_source_has_its_published_rows(real_data: Path, name: str, rows: int, first: dict[str, object]) -> None:
    source = Source.parse(name)

    records = source.records()

    assert source.repo is None
    assert len(records) == rows
    assert first.items() <= records[0].items()
