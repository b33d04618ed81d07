"""The actor where workers hand in what they finish and the run's own process fetches it: one writer, every record once."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Delivery", "Desk", "Message"]

_WAIT = 0.5
"""Seconds that a fetch waits for a message where there is none."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A record as the store's JSON text, with the bytes of its side file (safetensors), if it has one."""

    record: bytes
    values_name: str = ""
    values: bytes = b""


@dataclass(frozen=True, slots=True)
class Message:
    """What a worker says of cell ``index``: ``kind`` is ``begin``, ``record``, ``traceback`` or an observer's method."""

    number: int
    index: int
    kind: str
    content: tuple[Any, ...]


@dataclass(slots=True)
class _Cell:
    attempt: int = 0
    delivered: list[bytes] = field(default_factory=list)


class Desk:
    """Keeps messages until they are fetched and acknowledged.

    Ray may start a cell again while an attempt that it lost sight of still runs. So attempts are numbered: only
    the latest may deliver, and it is told what those before it delivered, which it does not repeat.
    """

    def __init__(self) -> None:
        self._cells: dict[int, _Cell] = defaultdict(_Cell)
        self._messages: list[Message] = []
        self._number = 0
        self._arrived = asyncio.Event()

    async def begin(self, index: int, node: str) -> tuple[int, list[bytes]]:
        """A worker takes up a cell: the attempt's number (from 1), and the records delivered before it."""
        cell = self._cells[index]
        cell.attempt += 1
        self._post(index, "begin", (cell.attempt, node))
        return cell.attempt, list(cell.delivered)

    async def deliver(self, index: int, attempt: int, delivery: Delivery) -> bool:
        """Hand in a record; False, and nothing is kept, where a later attempt has begun.

        The same one again changes nothing: Ray repeats a call whose answer was lost on the way.
        """
        cell = self._cells[index]
        if attempt != cell.attempt:
            return False
        if delivery.record not in cell.delivered:
            cell.delivered.append(delivery.record)
            self._post(index, "record", (delivery,))
        return True

    async def tell(self, index: int, attempt: int, kind: str, *content: Any) -> None:
        """Progress, a warning or a traceback; of the latest attempt only."""
        if attempt == self._cells[index].attempt:
            self._post(index, kind, content)

    async def fetch(self, after: int, wait: bool = True) -> list[Message]:
        """Messages numbered above ``after``; those up to it are forgotten. Waits a moment where there are none."""
        self._messages = [message for message in self._messages if message.number > after]
        if wait and not self._messages:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), _WAIT)
            except TimeoutError:
                return []
        return list(self._messages)

    def _post(self, index: int, kind: str, content: tuple[Any, ...]) -> None:
        self._number += 1
        self._messages.append(Message(self._number, index, kind, content))
        self._arrived.set()
