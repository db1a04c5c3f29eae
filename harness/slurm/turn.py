"""The turn: what changes a store's queue or removes from it takes turns, under one claim of the store."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from harness.engine.claim import Claim, Claims, claimed, holder, left_behind
from harness.engine.store import Store
from harness.errors import StoreError

SUBMITTING = "submitting"
"""The claim."""
TURN_SECONDS = 0.5
PATIENCE_SECONDS = 3.0
"""How long the wait for a turn may take before it is told."""


@contextmanager
def submitting(store: Store, tell: Callable[[str], None]) -> Iterator[Claim]:
    """Wait until nobody else submits to the store, clears it up, or ends its jobs.

    A holder that slept for too long loses its turn: it asks the claim before each call of the scheduler.

    Args:
        store: the store.
        tell: is told, once, who is waited for if that takes more than some seconds.

    Raises:
        StoreError: the claim cannot be written.
    """
    claims = Claims(store.claims)
    patience = time.monotonic() + PATIENCE_SECONDS
    told = False
    while (claim := claims.take(SUBMITTING)) is None:
        if not told and time.monotonic() >= patience:
            told = True
            who = holder(store.claims, SUBMITTING) or "another process"
            tell(f"{who} submits to this store or clears it up; this goes on when that ends, or is silent for long")
        time.sleep(TURN_SECONDS)
    with claim:
        yield claim


@contextmanager
def submitting_if_possible(store: Store, tell: Callable[[str], None]) -> Iterator[bool]:
    """Wait for a turn as ``submitting`` does; go on without one if the store takes no new file and nobody has it.

    Nobody else can begin a turn then either. What ends jobs or frees space has to work on a full disk.

    Yields:
        Whether it is this one's turn.

    Raises:
        StoreError: the claim cannot be written, and somebody holds it.
    """
    with ExitStack() as turn:
        try:
            turn.enter_context(submitting(store, tell))
            mine = True
        except StoreError:
            if taken(store):
                raise
            mine = False
        yield mine


def taken(store: Store) -> bool:
    """Say whether somebody has the turn who may be alive."""
    return SUBMITTING in claimed(store.claims) and not left_behind(store.claims, SUBMITTING, "")
