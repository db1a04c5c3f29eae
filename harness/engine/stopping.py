"""Stopping at a good moment: a flag that somebody raises, and that a long stage looks at where it can be resumed."""


class Stop:
    """A flag that starts down and, once raised, stays up. A signal handler may raise it."""

    def __init__(self) -> None:
        """Start down."""
        self._raised = False

    def ask(self) -> None:
        """Raise the flag."""
        self._raised = True

    def __call__(self) -> bool:
        """Say whether the flag is up."""
        return self._raised


def never() -> bool:
    """Be a flag that nobody raises."""
    return False
