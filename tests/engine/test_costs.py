from toys import Add, Number, chain

from harness.engine.estimate import SAMPLE, Cost, estimate_costs
from harness.engine.stage import lineage


def finish(store, stage, seconds):
    store.prepare()
    out = store.work(stage.key) / "out"
    out.mkdir(parents=True)
    store.write_spec(stage, out)
    store.commit(stage, out, facts={}, provenance={"seconds": seconds})


def test_cost_is_the_median_of_stages_of_the_same_kind_and_origin(store):
    origin, other = Number(value=1.0), Number(value=2.0)
    for amount, seconds in ((1, 1.0), (2, 3.0), (3, 100.0)):
        finish(store, Add(parent=origin, amount=amount), seconds)
    todo = [Add(parent=origin, amount=7), Add(parent=origin, amount=8), Add(parent=other, amount=7)]

    assert estimate_costs(todo, store) == {"add": Cost(stages=3, known=2, seconds=6.0)}


def test_stages_without_parents_are_compared_by_kind(store):
    finish(store, Number(value=1.0), 4.0)

    assert estimate_costs([Number(value=2.0)], store) == {"number": Cost(1, 1, 4.0)}


def test_nothing_is_predicted_from_an_empty_store(store):
    assert estimate_costs(lineage((chain(3),)), store) == {"number": Cost(1, 0, 0.0), "add": Cost(2, 0, 0.0)}
    assert estimate_costs([], store) == {}


def test_no_more_than_a_sample_is_read(store, monkeypatch):
    asked = []
    monkeypatch.setattr(store, "manifests", lambda kind, limit: asked.append((kind, limit)) or iter(()))

    estimate_costs([Number(value=float(value)) for value in range(500)], store)

    assert asked == [("number", SAMPLE)]
