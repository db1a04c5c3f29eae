"""A round of a federation as stages: some clients train, and the server combines what all clients of the round sent.

With them the rounds of a fine-tuning are jobs of a cluster. The stages of a round read the server of the round before,
so the store resumes them one by one; what they come to is what one stage that carries out all rounds comes to.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.engine.files import LARGE, read_json, write_json
from harness.engine.stage import Locate, Stage, StageContext
from harness.errors import Problem
from harness.models.adapter import Lora
from harness.stages.train_adapter import Federation, place, record_rounds
from harness.stages.tuning import Tuning
from harness.training.rounds import Rounds

if TYPE_CHECKING:
    from torch import Tensor

    from harness.training.federated import Played
    from harness.training.server import Sent

VALUES, MOMENTS, SENT, RESULT = "values.safetensors", "moments.safetensors", "sent.json", "round.json"
_START = "start"
_OWN_FACTS = ("round", "clients")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Client(Stage):
    """The training of some clients of a round.

    The artifact has ``values.safetensors``, the parameters of each client as one vector, in the first round also those
    from which they started; ``sent.json``, the rest of what they send; and ``moments.safetensors``, the
    state of the optimizers of clients that keep it.

    Attributes:
        tuning: the fine-tuning.
        rounds: the settings of the federation.
        number: of the round, counted from 0.
        clients: the clients that train here.
        server: the server after the round before; null in the first one.
    """

    name: ClassVar[str] = "client"
    version: ClassVar[int] = 1
    parallel: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    loads_base: ClassVar[bool] = True
    tuning: Tuning
    rounds: Rounds
    number: int
    clients: tuple[int, ...]
    server: Server | None = field(default=None, repr=False)

    def preflight(self) -> list[Problem]:
        """Check what the fine-tuning checks."""
        return self.tuning.preflight()

    def run(self, ctx: StageContext) -> None:
        """Train the clients, and write what they send."""
        from harness.training.federated import Turn

        turn = Turn(
            number=self.number,
            clients=self.clients,
            start=self.server.values(ctx.input) if self.server else None,
            moments=self._moments(ctx.input),
        )
        report = self.tuning.fit(ctx, federation=Federation(self.tuning.shards(ctx.input), self.rounds, turn))
        ctx.facts.update(round=self.number, clients=list(self.clients))
        assert report.played is not None, "a turn was played"
        if ctx.rank == 0:
            _write_sent(ctx.out, report.played, ctx.facts, first=self.server is None)

    def _moments(self, locate: Locate) -> dict[int, Any]:
        """Return the state of the optimizer of each client that keeps it and took part in an earlier round."""
        found: dict[int, Any] = {}
        for server in self.server.backwards() if self.server and self.rounds.optimizer == "kept" else ():
            for stage in server.sent:
                if wanted := set(self.clients).intersection(stage.clients).difference(found):
                    found |= _read_moments(locate(stage) / MOMENTS, wanted)
        return found


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Server(Stage):
    """The server at the end of a round.

    The artifact has ``values.safetensors``, its parameters as one vector, and ``round.json``: the round's entry in the
    curve and its record.

    Attributes:
        sent: the stages of the clients of the round.
    """

    name: ClassVar[str] = "server"
    version: ClassVar[int] = 1
    fuses: ClassVar[bool] = True
    sent: tuple[Client, ...] = field(repr=False)

    def preflight(self) -> list[Problem]:
        """Nothing can be missing: it reads other stages only."""
        return []

    def run(self, ctx: StageContext) -> None:
        """Combine what the clients sent; on the device of the stage, which may round otherwise than another one."""
        from safetensors.torch import save_file

        from harness.training import server

        first, tuning = self.sent[0], self.sent[0].tuning
        described = _sent(ctx.input(first))
        names, shapes = zip(*described["parameters"], strict=True)
        before = first.server.values(ctx.input) if first.server else _tensors(ctx.input(first))[_START]
        received = [each for stage in self.sent for each in _read_sent(ctx.input(stage), shapes, ctx.device)]
        result = server.Server(
            names, tuning.shards(ctx.input), described["sizes"], first.rounds, tuning.budget, tuning.own_seed
        ).combine(
            server.shaped(before.to(ctx.device), shapes), sorted(received, key=lambda each: each.client), first.number
        )
        save_file({"server": server.flat(result.values).cpu()}, ctx.out / VALUES)
        write_json(ctx.out / RESULT, {"entry": result.entry, "record": result.record})
        ctx.facts.update({name: result.record[name] for name in ("round", "clients", "malicious", "weights")})

    def values(self, locate: Locate) -> Tensor:
        """Return the parameters after the round, as one vector."""
        return _tensors(locate(self))["server"]

    def backwards(self) -> Iterator[Server]:
        """Yield the servers of this round and of all before it, the last round first."""
        server: Server | None = self
        while server is not None:
            yield server
            server = server.sent[0].server

    def hand_over(self, ctx: StageContext) -> None:
        """Write what the stage of a fine-tuning writes that carries out all rounds.

        The facts about rows and passes are those of the first clients. A note says so if the passes of others differ.
        """
        tuning, servers = self.sent[0].tuning, [*self.backwards()][::-1]
        trainable = tuning.trainable
        assert not trainable or isinstance(trainable, Lora), "clients train adapters"
        place(
            ctx,
            weights=tuning.start(ctx.input),
            trainable=trainable,
            seed=tuning.own_seed,
            values=self.values(ctx.input),
        )
        results = [read_json(ctx.input(server) / RESULT) for server in servers]
        facts = [_sent(ctx.input(stage))["facts"] for server in servers for stage in server.sent]
        history = [result["entry"] for result in results]
        ctx.facts.update({name: fact for name, fact in facts[0].items() if name not in _OWN_FACTS})
        ctx.facts.update(steps=history[-1]["step"], final=history[-1])
        if len({json.dumps(fact.get("passes"), sort_keys=True) for fact in facts}) > 1:
            ctx.facts["notes"] = ["clients trained with different numeric switches"]
        for entry in history if ctx.rank == 0 else ():
            ctx.tracker.log({name: value for name, value in entry.items() if name != "step"}, step=int(entry["step"]))
        record_rounds(ctx, tuning.shards(ctx.input), history, [result["record"] for result in results])


def _write_sent(out: Path, played: Played, facts: Mapping[str, Any], *, first: bool) -> None:
    from safetensors.torch import save_file

    from harness.training.server import flat

    vectors = {str(each.client): flat(each.values).cpu() for each in played.sent}
    save_file(vectors | ({_START: flat(played.start).cpu()} if first else {}), out / VALUES)
    write_json(
        out / SENT,
        {
            "clients": [
                {
                    "client": each.client,
                    "rows": each.rows,
                    "metrics": [{name: float(value) for name, value in step.items()} for step in each.metrics],
                }
                for each in played.sent
            ],
            "parameters": [[name, list(shape)] for name, shape in played.parameters],
            "sizes": list(played.sizes),
            "facts": dict(facts),
        },
    )
    if any(each.moments is not None for each in played.sent):
        kept = {
            f"{each.client}/{place}/{name}": tensor.cpu()
            for each in played.sent
            for place, state in each.moments.items()
            for name, tensor in state.items()
        }
        save_file(kept, out / MOMENTS)


def _read_moments(path: Path, clients: Collection[int]) -> dict[int, dict[int, dict[str, Tensor]]]:
    """Return the state of the optimizer of each client: by the place of a parameter, tensors by name."""
    from safetensors.torch import load_file

    found: dict[int, dict[int, dict[str, Tensor]]] = {client: {} for client in clients}
    for key, tensor in load_file(path).items():
        client, place, name = key.split("/")
        if int(client) in found:
            found[int(client)].setdefault(int(place), {})[name] = tensor
    return found


def _sent(artifact: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(artifact / SENT, limit=LARGE)
    return found


def _read_sent(artifact: Path, shapes: tuple[list[int], ...], device: str) -> Iterator[Sent]:
    import torch

    from harness.training.server import Sent, shaped

    vectors = _tensors(artifact)
    for each in _sent(artifact)["clients"]:
        yield Sent(
            client=each["client"],
            values=shaped(vectors[str(each["client"])].to(device), shapes),
            rows=each["rows"],
            metrics=[
                {name: torch.tensor(value, dtype=torch.float64) for name, value in step.items()}
                for step in each["metrics"]
            ],
        )


def _tensors(artifact: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    found: dict[str, Tensor] = load_file(artifact / VALUES)
    return found
