"""Lookup of keys and sweep ids by prefix, as typed by users."""

from harness.engine.store import Store
from harness.errors import StoreError


def resolve_key(store: Store, prefix: str) -> str:
    """Return the only registered key with a prefix.

    Raises:
        StoreError: no key or several keys match.
    """
    keys = sorted(path.stem for path in store.layout.specs.glob("*.json") if path.stem.startswith(prefix))
    if len(keys) != 1:
        listed = ", ".join(keys[:5])
        found = f"{len(keys)} keys begin with `{prefix}`: {listed}" if keys else f"No key begins with `{prefix}`"
        raise StoreError(
            f"{found} in `{store.root}`; expected one. The report's `key.` columns list the keys of stages."
        )
    return keys[0]


def resolve_sweep(store: Store, prefix: str | None) -> str:
    """Return the id of the latest sweep with a title, or the only id with a prefix; without one, the latest sweep.

    Raises:
        StoreError: no sweep matches, or several ids have the prefix.
    """
    known = store.sweep_ids()
    if not known:
        raise StoreError(f"The store `{store.root}` has no sweep yet. Run one, or name another store with --store.")
    if prefix is None:
        return known[0]
    titled = [name for name in known if name.rpartition("-")[0] == prefix]
    exact = [prefix] if prefix in known else titled[:1]
    found = exact or [name for name in known if name.startswith(prefix)]
    if not found:
        latest = ", ".join(f"`{name}`" for name in known[:5])
        raise StoreError(f"There is no sweep `{prefix}` in `{store.root}`. Latest: {latest}.")
    if len(found) > 1:
        raise StoreError(f"{len(found)} sweep ids begin with `{prefix}`: {', '.join(found[:5])}. Use a longer prefix.")
    return found[0]
