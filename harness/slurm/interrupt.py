"""Interrupts: defers Ctrl-C between a Slurm command and the record of its result."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_DEFERRED = (signal.SIGINT, signal.SIGHUP)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Defer SIGINT and SIGHUP in this process, and block them in the commands that it starts.

    Signals received meanwhile are raised on exit; ignored signals stay ignored. SIGTERM is handled at once. The delay
    is bounded, as Slurm's commands time out.
    """
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread receives signals.
        yield
        return
    received: list[int] = []
    handlers = {number: signal.getsignal(number) for number in _DEFERRED}
    handlers = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}

    def defer(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)

    for number in handlers:
        signal.signal(number, defer)
    # Child processes inherit the signal mask, not the handlers, and a terminal sends Ctrl-C to them as well.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, handlers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for caught in dict.fromkeys(received):
            signal.raise_signal(caught)
