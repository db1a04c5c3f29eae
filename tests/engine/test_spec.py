import json
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import ALLOW, Add, Booster, Colour, Kit, Mix, Number, Origin, Plain

from harness.defenses.kl import KL
from harness.defenses.panacea import Panacea, PanaceaRepair
from harness.engine.build import build
from harness.engine.moved import MOVED
from harness.engine.spec import describe, rebuild
from harness.errors import ConfigError, Problem
from harness.judges.keywords import Keywords
from harness.protocols import RepairMethod, TrainMethod
from harness.training.budget import Budget

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
BOOSTERS = st.builds(
    Booster,
    lamb=st.floats(0, 1e6),
    alpha=st.floats(0, 1e6),
    steps=st.none() | st.integers(),
)
KITS = st.builds(
    Kit,
    count=st.integers(),
    rate=FLOATS,
    label=st.text(),
    enabled=st.booleans(),
    colour=st.sampled_from(Colour),
    sizes=st.lists(st.integers()).map(tuple),
    span=st.tuples(st.text(), FLOATS),
    limit=st.none() | FLOATS,
    inner=st.none() | BOOSTERS,
    method=st.none() | BOOSTERS,
    many=st.lists(BOOSTERS, max_size=2).map(tuple),
)


def problems(cls: type, data: object, **more: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        build(cls, data, **{"path": "kit", "allow": ALLOW, **more})
    return tuple(map(str, caught.value.problems))


@given(KITS)
def test_build_of_described_settings_is_the_same(kit: Kit) -> None:
    assert build(Kit, json.loads(json.dumps(describe(kit))), allow=ALLOW) == kit


@given(KITS.filter(lambda kit: kit.method is not None), FLOATS)
def test_rebuild_of_described_stage_has_the_same_key(kit: Kit, amount: float) -> None:
    parent = Number(value=1)
    stage = Mix(left=parent, right=Add(parent=parent, amount=amount, method=kit.method))
    known = {parent.key: parent, stage.right.key: stage.right}

    specs = [json.loads(json.dumps(describe(each))) for each in (stage, stage.right)]

    assert rebuild(specs[0], known.__getitem__, allow=ALLOW).key == stage.key
    assert rebuild(specs[1], known.__getitem__, allow=ALLOW).key == stage.right.key
    assert specs[0]["left"] == {"_stage_": parent.key}


def test_build_of_data_casts_to_the_annotated_types() -> None:
    kit = build(Kit, {"count": 3.0, "rate": 1, "colour": "blue", "sizes": [1, 2], "span": ["x", 2], "limit": 4})

    assert kit == Kit(count=3, rate=1.0, colour=Colour.BLUE, sizes=(1, 2), span=("x", 2.0), limit=4.0)
    assert [type(value) for value in (kit.count, kit.rate, kit.span[1], kit.limit)] == [int, float, float, float]


def test_build_with_unknown_setting_says_what_is_meant_and_where_it_is_set() -> None:
    found = problems(Booster, {"lambda": 1}, path="defense.align", where=lambda path: "conf/defense/booster.yaml")

    assert found == (
        "`defense.align.lambda`: unknown setting for `booster` (did you mean `lamb`?). Known: `lamb`, `alpha`, `steps`."
        " Set in `conf/defense/booster.yaml`.",
    )


def test_build_with_many_mistakes_reports_them_all_with_their_paths() -> None:
    data = {
        "rate": "5",
        "enabled": 1,
        "colour": "rde",
        "sizes": [1, True, 2.5],
        "span": ["a"],
        "limit": float("inf"),
        "inner": {"lamb": -1.0, "alpha": "x", "gamma": 0},
        "many": [{}, {"alpha": -2}],
        "label": 5,
    }

    found = problems(Kit, data)

    assert [text.split("`")[1] for text in found] == [
        "kit.count",
        "kit.rate",
        "kit.label",
        "kit.enabled",
        "kit.colour",
        "kit.sizes[1]",
        "kit.sizes[2]",
        "kit.span",
        "kit.limit",
        "kit.inner.gamma",
        "kit.inner.alpha",
        "kit.inner.lamb",
        "kit.many[1].alpha",
    ]
    assert "`kit.rate`: '5' is a text; expected a number." in found
    assert "`kit.count`: missing setting for `kit`; expected a whole number." in found
    assert "`kit.colour`: 'rde' is not known (did you mean `red`?). Expected one of `red`, `blue`." in found
    assert "`kit.inner.lamb`: -1.0 is negative; expected a number >= 0" in found


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("count", True),
        ("count", 1.5),
        ("count", "1"),
        ("count", None),
        ("rate", True),
        ("rate", float("nan")),
        ("label", 1),
        ("enabled", 0),
        ("sizes", "12"),
        ("sizes", 1),
        ("inner", "x"),
        ("inner", [1]),
        ("many", {"a": 1}),
        ("colour", 1),
        ("limit", "1"),
    ],
)
def test_build_with_wrong_type_is_refused(setting: str, value: object) -> None:
    found = problems(Kit, {"count": 1, setting: value})

    assert len(found) == 1
    assert found[0].startswith(f"`kit.{setting}`: ")


def test_build_of_protocol_field_takes_the_named_class() -> None:
    kit = build(Kit, {"count": 1, "method": {"_target_": "toys.Booster", "lamb": 2}}, allow=ALLOW)

    assert kit.method == Booster(lamb=2.0)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"lamb": 1}, "`kit.method`: no class is named; expected `_target_` with a `Method`."),
        (
            {"_target_": "os.system"},
            "`kit.method._target_`: 'os.system' is not allowed; expected a class under `toys.`; `targets=[",
        ),
        ({"_target_": "toys.Nothing"}, "`kit.method._target_`: `toys.Nothing` cannot be imported"),
        ({"_target_": "toys.wait_for"}, "`kit.method._target_`: `toys.wait_for` cannot be imported"),
        ({"_target_": "toys.absent.Thing"}, "`kit.method._target_`: `toys.absent.Thing` cannot be imported"),
        ({"_target_": "toys.Colour"}, "`kit.method._target_`: `toys.Colour` is not a `Method`: it is not a settings"),
        (
            {"_target_": "toys.Plain"},
            "`kit.method._target_`: `toys.Plain` is not a `Method`: it lacks `lamb`, `start`.",
        ),
        (3, "`kit.method`: 3 is a whole number; expected `Method`."),
    ],
)
def test_build_of_protocol_field_without_a_fitting_class_is_refused(method: object, expected: str) -> None:
    (found,) = problems(Kit, {"count": 1, "method": method})

    assert found.startswith(expected)


def test_class_that_moved_is_found_where_it_is_now(monkeypatch) -> None:
    monkeypatch.setitem(MOVED, "toys.methods", "toys.defenses")
    monkeypatch.setitem(MOVED, "toys.defenses", "toys")
    monkeypatch.setitem(MOVED, "toys.methods.Enhancer", "toys.Booster")

    for path in ("toys.methods.Booster", "toys.defenses.Booster", "toys.methods.Enhancer"):
        kit = build(Kit, {"count": 1, "method": {"_target_": path, "lamb": 2}}, allow=ALLOW)
        assert kit.method == Booster(lamb=2.0)


def test_moves_that_go_in_a_circle_end(monkeypatch) -> None:
    monkeypatch.setitem(MOVED, "toys.a", "toys.b")
    monkeypatch.setitem(MOVED, "toys.b", "toys.a")

    assert "cannot be imported" in problems(Kit, {"count": 1, "method": {"_target_": "toys.a.Booster"}})[0]


def test_class_of_the_package_goes_by_kind_name_and_version_and_one_of_another_by_its_path() -> None:
    named = describe(Budget(epochs=1, batch_size=2, learning_rate=0.5))

    assert named["_target_"] == f"settings/budget@{Budget.version}"
    assert build(Budget, named) == build(Budget, {**named, "_target_": "harness.training.budget.Budget"})
    assert describe(Booster())["_target_"] == "toys.Booster"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("defense/bosster@1", "`defense/bosster@1` is not known: the installed code has none"),
        ("defense/kl@77", f"`defense/kl@77` is not known: the installed code has version {KL.version} of it"),
        ("stage/booster@1", "the installed code has none"),
        ("defense/booster", "'defense/booster' is not allowed"),
        (f"judge/keywords@{Keywords.version}", "is not a `Method`: it lacks `lamb`, `start`"),
    ],
)
def test_name_that_no_installed_class_has_is_refused_with_the_reason(target: str, expected: str) -> None:
    (found,) = problems(Kit, {"count": 1, "method": {"_target_": target}})

    assert expected in found


def test_two_classes_of_one_name_are_told_apart_by_what_they_are_wanted_for() -> None:
    panacea = {"_target_": f"defense/panacea@{Panacea.version}"}

    assert isinstance(build(TrainMethod, describe(Panacea())), Panacea)
    assert isinstance(build(RepairMethod, describe(PanaceaRepair())), PanaceaRepair)
    assert describe(Panacea())["_target_"] == describe(PanaceaRepair())["_target_"] == panacea["_target_"]


def test_build_of_text_for_a_class_that_parses_gives_what_it_parses() -> None:
    assert build(Kit, {"count": 1, "origin": "sst2"}).origin == Origin(digest="123")
    assert problems(Kit, {"count": 1, "origin": "sst3"}) == (
        "`kit.origin`: 'sst3' is a text; expected `Origin` or `Plain`.",
    )


def test_build_of_one_of_two_classes_takes_the_one_that_is_meant() -> None:
    described = describe(Kit(count=1, origin=Plain()))

    assert build(Kit, described, allow=ALLOW).origin == Plain()
    assert problems(Kit, {"count": 1, "origin": {"_target_": "toys.Plain", "digest": "1"}}) == (
        "`kit.origin.digest`: unknown setting for `plain`. It has no settings.",
    )


def test_build_of_ready_made_settings_takes_them_as_they_are() -> None:
    assert build(Kit, {"count": 1, "method": Booster()}).method == Booster()
    assert "is not a `Booster`" in problems(Kit, {"count": 1, "inner": Plain()})[0]


def test_describe_of_value_without_plain_form_raises() -> None:
    with pytest.raises(TypeError, match="cannot be written as plain data"):
        describe(Kit(count=1, label=object()))


@final
@dataclass(frozen=True, kw_only=True)
class Own:
    """Settings whose class states its problems in each of the ways it may."""

    name: ClassVar[str] = "own"
    version: ClassVar[int] = 1
    stated: tuple[str, ...] = ()
    inner: "Own | None" = None

    def problems(self) -> list[Problem | str]:
        known = {
            "field": Problem("stated", "holds `a`: expected `b`"),
            "nested": Problem("rows.align", "is too small"),
            "itself": Problem("", "`stated` and `inner` meet"),
            "sentence": "`lamb`: is too large",
        }
        return [known[each] for each in self.stated]


@pytest.mark.parametrize(
    ("stated", "line"),
    [
        ("field", "`kit.inner.stated`: holds `a`: expected `b`"),
        ("nested", "`kit.inner.rows.align`: is too small"),
        ("itself", "`kit.inner`: `stated` and `inner` meet"),
        ("sentence", "`kit.inner`: `lamb`: is too large"),
    ],
)
def test_problem_that_settings_state_is_told_under_the_path_of_the_settings(stated: str, line: str) -> None:
    assert problems(Own, {"inner": {"stated": [stated]}}) == (line,)


def test_problem_of_settings_at_the_top_is_told_as_it_is_with_the_file_that_sets_it() -> None:
    found = problems(Own, {"stated": ["sentence", "field"]}, path="", where=lambda path: f"{path or 'top'}.yaml")

    assert found == (
        "`lamb`: is too large. Set in `top.yaml`.",
        "`stated`: holds `a`: expected `b`. Set in `stated.yaml`.",
    )


def test_class_that_is_meant_is_told_by_its_own_target_and_not_by_one_further_in() -> None:
    """The first class fits, though what it holds names none that does: what is said of the second would mislead."""
    inner = {"_target_": "toys.Nobody"}

    first, second = (
        problems(hint, {"_target_": target, "method": inner, "count": 1})
        for hint, target in ((Kit | Plain, "toys.Kit"), (Plain | Kit, "toys.Kit"))
    )

    assert first == second
    assert first[0].startswith("`kit.method._target_`: `toys.Nobody` cannot be imported")


def test_configuration_error_keeps_problems_and_takes_sentences() -> None:
    error = ConfigError([Problem("a.b", "is wrong"), "the sweep has no cells"])

    assert str(error) == "`a.b`: is wrong\nthe sweep has no cells"
    assert [problem.path for problem in error.problems] == ["a.b", ""]


@dataclass(frozen=True, kw_only=True)
class Listed:
    values: list[float] = field(default_factory=list)


@dataclass(kw_only=True)
class Changing:
    value: float = 1.0


class Named(Protocol):
    """What a part of an experiment has to be."""


@pytest.mark.parametrize(
    ("hint", "data", "words"),
    [
        (Listed, {"values": [1.0]}, r"`part.values`: the class has a field of type `list\[float\]`.*tuple\[float, "),
        (Named, {"_target_": f"{__name__}.Changing"}, r"it can be changed.*expected `@dataclass\(frozen=True\)`"),
    ],
)
def test_class_that_cannot_be_a_setting_is_a_mistake_of_its_author(hint, data, words):
    with pytest.raises(ConfigError, match=words):
        build(hint, data, path="part", allow=(__name__,))
