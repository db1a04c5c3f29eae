"""The rounds of a federation as stages of their own."""

from dataclasses import replace
from typing import Literal

from harness.stages.finetune import Finetune
from harness.stages.round import Client, Server


def in_jobs(tuned: Finetune, jobs: Literal["round", "client"], clients: int) -> Finetune:
    """Return a federated fine-tuning whose rounds are stages of their own.

    Args:
        tuned: the stage that carries out all rounds.
        jobs: ``round``: one stage trains all clients of a round; ``client``: one stage each.
        clients: the number of all clients.
    """
    rounds, tuning = tuned.rounds, tuned.tuning
    assert rounds is not None, "a federation has rounds"
    server: Server | None = None
    for number in range(rounds.rounds):
        drawn = rounds.drawn(clients, number, tuning.own_seed)
        groups = [tuple(drawn)] if jobs == "round" else [(client,) for client in drawn]
        server = Server(
            sent=tuple(
                Client(tuning=tuning, rounds=rounds, number=number, clients=group, server=server) for group in groups
            )
        )
        # A stage keeps its key. Computed for the last round first, it would need a stack as deep as there are rounds.
        hash(server)
    return replace(tuned, server=server)
