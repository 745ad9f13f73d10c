"""Requests that wait for a slot, and whose turn it is: a data structure, without clock, thread or call.

Between clients the queue is fair in work: every client has a count of the tokens that it was served, and the client
with the lowest count is next (the virtual token counter of Sheng et al., "Fairness in Serving Large Language Models",
OSDI 2024, section 4). A client that comes back after a pause starts at the lowest count of those who wait, so a pause
saves nothing up, and a new client waits for nobody's past.

Within a client the highest priority is next, and within a priority whoever came first. A priority orders a client's own
requests only: nobody gets ahead of another client by asking for it.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T", bound=Hashable)
REMEMBERED_CLIENTS = 1024
"""Most clients without a waiting request whose count is kept."""


class _Place(NamedTuple):
    """One item in its client's line; sorts in the order of turns."""

    rank: int
    """The priority, negated."""
    number: int
    """Order of arrival; unique, so that items are never compared."""
    item: object


class WaitingQueue(Generic[T]):
    """See the module. Items are told apart by equality and wait at most once."""

    def __init__(self, *, remembered: int = REMEMBERED_CLIENTS) -> None:
        """``remembered`` bounds the clients that are kept in mind without having anything to wait for."""
        self._remembered = remembered
        self._lines: dict[str, list[_Place]] = {}  # by client; none is empty
        self._clients: dict[T, str] = {}
        self._served: dict[str, int] = {}  # tokens by client; who is missing has ``_floor``
        self._floor = 0
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._clients)

    def __contains__(self, item: T) -> bool:
        return item in self._clients

    @property
    def remembered(self) -> int:
        """Clients whose count is kept, waiting or not."""
        return len(self._served)

    def push(self, item: T, *, client: str, priority: int = 0) -> None:
        """Put an item in line; ``ValueError`` when it is in one already."""
        if item in self._clients:
            raise ValueError(f"{item!r} is waiting already")
        if client not in self._lines:
            lowest = min((self._count(other) for other in self._lines), default=self._floor)
            self._served[client] = max(self._count(client), lowest)
            self._lines[client] = []
        bisect.insort(self._lines[client], _Place(-priority, next(self._numbers), item))
        self._clients[item] = client

    def head(self) -> T | None:
        """Whose turn it is, if anyone waits; it stays in line."""
        if not self._lines:
            return None
        return self._lines[self._next_client()][0].item  # type: ignore[return-value]  # only items of T come in

    def pop(self) -> T:
        """Take the item whose turn it is out of its line; ``IndexError`` when none waits."""
        if not self._lines:
            raise IndexError("nobody is waiting")
        client = self._next_client()
        item: T = self._lines[client][0].item  # type: ignore[assignment]
        self._floor = max(self._floor, self._count(client))
        self.remove(item)
        self._forget_clients()
        return item

    def remove(self, item: T) -> bool:
        """Take an item out of its line, wherever it stands; False when it is in none."""
        client = self._clients.pop(item, None)
        if client is None:
            return False
        line = self._lines[client]
        del line[next(index for index, place in enumerate(line) if place.item == item)]
        if not line:
            del self._lines[client]
            self._keep_bound()
        return True

    def charge(self, client: str, tokens: int) -> None:
        """Count ``tokens`` as served to a client."""
        self._served[client] = self._count(client) + tokens
        self._keep_bound()

    def displace_for(self, client: str) -> T | None:
        """Make room for a request of ``client`` where another client has more than its share of a full queue.

        Takes out and returns the last in line of the client with most waiting, if that one has at least two more than
        ``client``, so that it still has no fewer afterwards; None when nobody has to give way.
        """
        longest = self._client_to_displace(client)
        if longest is None:
            return None
        item: T = self._lines[longest][-1].item  # type: ignore[assignment]
        self.remove(item)
        return item

    def can_displace_for(self, client: str) -> bool:
        """Whether ``displace_for`` would find somebody."""
        return self._client_to_displace(client) is not None

    def _client_to_displace(self, client: str) -> str | None:
        if not self._lines:
            return None
        longest = max(self._lines, key=lambda other: (len(self._lines[other]), self._count(other)))
        return longest if len(self._lines[longest]) >= len(self._lines.get(client, ())) + 2 else None

    def _count(self, client: str) -> int:
        return self._served.get(client, self._floor)

    def _next_client(self) -> str:
        """The client with the lowest count; of several, the one whose next item came first."""
        return min(self._lines, key=lambda client: (self._count(client), self._lines[client][0].number))

    def _keep_bound(self) -> None:
        if len(self._served) > len(self._lines) + self._remembered:
            self._forget_clients()

    def _forget_clients(self) -> None:
        """Drop counts that say nothing, and the lowest beyond the bound, of clients that do not wait."""
        idle = [client for client in self._served if client not in self._lines]
        for client in idle:
            if self._served[client] <= self._floor:
                del self._served[client]
        owing = sorted((self._served[client], client) for client in idle if client in self._served)
        for _, client in owing[: max(0, len(owing) - self._remembered)]:
            del self._served[client]
