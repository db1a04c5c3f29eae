"""What people type instead of a whole name: how a key or the id of a sweep begins."""

from harness.engine.store import Store
from harness.errors import StoreError


def key_named(store: Store, prefix: str) -> str:
    """Return the key of the one registered stage that begins so.

    Raises:
        StoreError: there is none, or more than one.
    """
    keys = sorted(path.stem for path in store.layout.specs.glob("*.json") if path.stem.startswith(prefix))
    if len(keys) != 1:
        listed = ", ".join(keys[:5])
        found = f"{len(keys)} keys begin with `{prefix}`: {listed}" if keys else f"No key begins with `{prefix}`"
        raise StoreError(f"{found} in `{store.root}`; expected one. The report's `key.` columns name stages.")
    return keys[0]


def sweep_named(store: Store, prefix: str | None) -> str:
    """Return the id of the one sweep that begins so; of the latest with that title, or of all if nothing is given.

    Raises:
        StoreError: there is no such sweep, or more than one begins so.
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
        raise StoreError(f"`{prefix}` begins {len(found)} sweeps: {', '.join(found[:5])}. Write more of the id.")
    return found[0]
