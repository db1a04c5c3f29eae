import pytest
from toys import Number

from harness.engine.lookup import resolve_key, resolve_sweep
from harness.errors import StoreError


def test_beginning_of_a_key_names_it(store):
    stage = Number(value=1.0)
    store.register([stage])

    assert resolve_key(store, stage.key[:6]) == stage.key
    assert resolve_key(store, stage.key) == stage.key


@pytest.mark.parametrize(("prefix", "words"), [("", "2 keys begin with"), ("zz", "No key begins with `zz`")])
def test_beginning_of_no_key_or_of_several_is_refused(store, prefix, words):
    store.register([Number(value=1.0), Number(value=2.0)])

    with pytest.raises(StoreError, match=words):
        resolve_key(store, prefix)


def test_sweep_is_named_by_its_id_its_beginning_or_by_being_the_latest(store):
    for name in ("tiny-1", "tiny-12", "large-3"):
        store.write_sweep(name, {})

    assert resolve_sweep(store, "tiny-1") == "tiny-1"
    assert resolve_sweep(store, "lar") == "large-3"
    assert resolve_sweep(store, None) == "large-3"


@pytest.mark.parametrize(("prefix", "words"), [("tin", "2 sweep ids begin with"), ("x", "There is no sweep `x`")])
def test_beginning_of_no_sweep_or_of_several_is_refused(store, prefix, words):
    for name in ("tiny-1", "tiny-12"):
        store.write_sweep(name, {})

    with pytest.raises(StoreError, match=words):
        resolve_sweep(store, prefix)


def test_store_without_sweeps_says_so(store):
    with pytest.raises(StoreError, match="has no sweep yet"):
        resolve_sweep(store, None)
