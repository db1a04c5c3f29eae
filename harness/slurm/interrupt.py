"""Interrupts: what may not come between a command and the note of its answer."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_HELD_BACK = (signal.SIGINT, signal.SIGHUP)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold Ctrl-C and a closed terminal back from this process and from the commands that it calls.

    What arrives meanwhile is heard at the end; what is ignored stays so. Slurm's commands give up by themselves if they
    are not answered, and a request to end (SIGTERM) is heard at once.
    """
    if threading.current_thread() is not threading.main_thread():
        # Signals are heard by the main thread alone.
        yield
        return
    heard: list[int] = []
    before = {number: signal.getsignal(number) for number in _HELD_BACK}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def keep(number: int, frame: FrameType | None) -> None:
        del frame
        heard.append(number)

    for number in before:
        signal.signal(number, keep)
    # Commands inherit the mask, not the handlers: a terminal sends its Ctrl-C to them as well.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, before)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        for told in dict.fromkeys(heard):
            signal.raise_signal(told)
