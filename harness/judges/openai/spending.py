"""What the requests to a service have cost so far, over all workers of a store, and the limits on it.

An append-only file of JSON lines. Before a request, a worker appends a reservation with the most that the request can
cost, and reads the file up to that line: the order of lines decides which of several workers was first, without a
lock. A reservation that does not fit is taken back, and no request is made. After the reply, a second line corrects the
reservation to the actual cost; if a worker dies in between, the reservation stands. The limits are therefore never
exceeded.
"""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

from harness.engine.files import append_line, writing
from harness.errors import ServiceError
from harness.execution.judge_service import JudgeService


class Spending:
    """The account of a store.

    Args:
        path: the file; created with the first reservation.
        service: the limits.
    """

    def __init__(self, path: Path, service: JudgeService) -> None:
        """Read nothing: the file is read with each reservation."""
        self._path = path
        self._service = service
        self._offset = 0
        self._requests = 0
        self._cost = 0.0

    def reserve(self, bound: float) -> None:
        """Reserve one request.

        Args:
            bound: the most that it can cost.

        Raises:
            ServiceError: a limit would be exceeded.
            StoreError: the account cannot be written.
        """
        mark = uuid4().hex
        self._append({"requests": 1, "cost": bound, "id": mark})
        requests, cost = self._up_to(mark)
        service = self._service
        if service.requests is not None and requests > service.requests:
            self._append({"requests": -1, "cost": -bound})
            raise ServiceError(
                f"The limit of {service.requests} requests to the judge's service is reached "
                f"(`cluster.judge_service.requests`). {self._advice()}"
            )
        if service.cost is not None and cost > service.cost + 1e-12:
            self._append({"requests": -1, "cost": -bound})
            raise ServiceError(
                f"The limit of {service.cost:g} on the cost of the judge's service is reached: {cost - bound:.6g} were "
                f"spent or reserved, and the next request can cost {bound:.2g} (`cluster.judge_service.cost`). "
                f"{self._advice()}"
            )

    def settle(self, bound: float, actual: float) -> None:
        """Correct the reservation of a request to its actual cost.

        Raises:
            StoreError: the account cannot be written.
        """
        if actual != bound:
            self._append({"requests": 0, "cost": actual - bound})

    def _advice(self) -> str:
        return f"Replies so far are kept: raise the limit, or remove `{self._path}` to count anew, and run again."

    def _append(self, line: dict[str, object]) -> None:
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self._path, line)

    def _up_to(self, mark: str) -> tuple[int, float]:
        """Read what was appended since, and return the totals at the line with this mark."""
        with writing(self._path), self._path.open("rb") as stream:
            stream.seek(self._offset)
            read = stream.read()
        # The last line may be incomplete: another worker is writing it.
        complete = read[: read.rfind(b"\n") + 1]
        self._offset += len(complete)
        found = (self._requests, self._cost)
        for line in complete.splitlines():
            try:
                entry = json.loads(line)
                self._requests += int(entry["requests"])
                self._cost += float(entry["cost"])
            # A line that a full disk or a crash cut off.
            except (ValueError, TypeError, KeyError):
                continue
            if entry.get("id") == mark:
                found = (self._requests, self._cost)
        return found
