"""The submission lock: serializes submission, cancellation and garbage collection of a store, with one claim."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from harness.engine.claim import Claim, Claims, holder, is_abandoned, live_claims
from harness.engine.store import Store
from harness.errors import StoreError

SUBMITTING = "submitting"
"""The key of the claim."""
_POLL_SECONDS = 0.5
NOTIFY_SECONDS = 3.0
"""Wait after which the user is notified."""


@contextmanager
def submission_lock(store: Store, notify: Callable[[str], None]) -> Iterator[Claim]:
    """Wait for and hold the submission lock of a store.

    A holder that is suspended for longer than the lease loses the lock, so it checks the claim before each call of the
    scheduler.

    Args:
        store: the store.
        notify: called once, with the holder of the lock, if the wait exceeds ``NOTIFY_SECONDS``.

    Raises:
        StoreError: the claim cannot be written.
    """
    claims = Claims(store.claims)
    deadline = time.monotonic() + NOTIFY_SECONDS
    notified = False
    while (claim := claims.take(SUBMITTING)) is None:
        if not notified and time.monotonic() >= deadline:
            notified = True
            who = holder(store.claims, SUBMITTING) or "another process"
            notify(f"{who} is submitting to this store or cleaning it up; waiting until it ends or its lock expires")
        time.sleep(_POLL_SECONDS)
    with claim:
        yield claim


@contextmanager
def submission_lock_if_writable(store: Store, notify: Callable[[str], None]) -> Iterator[bool]:
    """Hold the submission lock; continue without it if the store cannot be written and nobody holds the lock.

    In that case no other process can take it either. Cancelling jobs and freeing space must work on a full disk.

    Yields:
        Whether the lock is held.

    Raises:
        StoreError: the claim cannot be written, and another process holds it.
    """
    with ExitStack() as lock:
        try:
            lock.enter_context(submission_lock(store, notify))
            locked = True
        except StoreError:
            if is_locked(store):
                raise
            locked = False
        yield locked


def is_locked(store: Store) -> bool:
    """Return whether another process, possibly alive, holds the lock."""
    return SUBMITTING in live_claims(store.claims) and not is_abandoned(store.claims, SUBMITTING, "")
