"""The stream of a watch: its requests as they come, its replies as values. Opened by `client`; `watch` resumes where one breaks."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from reconciler.errors import NoEtcd, Unavailable
from reconciler.store.library import etcd_and_grpc
from reconciler.store.messages import event_of, watch_request
from reconciler.store.transaction import Event, KeyRange


@dataclass(frozen=True, slots=True)
class WatchReply:
    """What a watch's stream says. `index` is the range's, in the order asked; `compacted` is set where its history is gone."""

    index: int
    revision: int
    events: tuple[Event, ...] = ()
    compacted: int = 0


class Requests:
    """The requests of a stream, as they come, until `close`."""

    def __init__(self, requests: Iterable[Any]) -> None:
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for request in requests:
            self.add(request)

    def add(self, request: Any) -> None:
        self._waiting.put(request)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        request = self._waiting.get()
        if request is None:
            raise StopIteration
        return request

    def close(self) -> None:
        self._waiting.put(None)


class WatchStream:
    """Watches on one stream: their replies as values, until it breaks (`Unavailable`) or is cancelled (by any thread).

    Each watch has a number, from 0, in the order in which they were asked for. One that was dropped says nothing more.
    """

    def __init__(
        self,
        call: Any,
        requests: Requests,
        number: int,
        broken: Callable[[Any], Unavailable],
        refused: Callable[[str], Unavailable],
        count: Callable[[int], None],
    ) -> None:
        self._call = call
        self._count = count
        self._requests = requests
        self._asked = number
        self._broken = broken
        self._refused = refused
        self._cancelled = False
        self._ids: dict[int, int] = {}
        self._dropped: set[int] = set()

    def add(self, keys: KeyRange, revision: int, *, deletions_only: bool = False) -> int:
        """Watch `keys` too, from an etcd revision on (0: from now on): the watch's number."""
        rpc, _ = etcd_and_grpc()
        self._requests.add(watch_request(rpc, keys, revision, deletions_only))
        self._count(1)
        self._asked += 1
        return self._asked - 1

    def drop(self, index: int) -> None:
        """End one watch."""
        rpc, _ = etcd_and_grpc()
        self._dropped.add(index)
        if index in self._ids:
            self._requests.add(
                rpc.WatchRequest(cancel_request=rpc.WatchCancelRequest(watch_id=self._ids[index]))
            )

    def cancel(self) -> None:
        self._cancelled = True
        self._requests.close()
        self._call.cancel()

    def __iter__(self) -> Iterator[WatchReply]:
        _, grpc = etcd_and_grpc()
        try:
            yield from self._replies()
        except grpc.RpcError as error:
            if not self._cancelled:
                raise self._broken(error) from None
        finally:
            self.cancel()

    def _replies(self) -> Iterator[WatchReply]:
        """etcd answers the creations in their order, and so gives each watch its number."""
        indexes: dict[int, int] = {}
        for reply in self._call:
            if reply.created:
                self._ids[len(indexes)] = reply.watch_id
                indexes[reply.watch_id] = len(indexes)
            index = indexes[reply.watch_id]
            if index in self._dropped:
                if reply.created:
                    self.drop(index)  # it was given up before its creation had been answered
                continue
            # A creation may be refused in the reply that announces it, so this is looked at first.
            if reply.canceled:
                if not reply.compact_revision:
                    raise self._refused(reply.cancel_reason or "it cancelled the watch")
                yield WatchReply(index, reply.header.revision, compacted=reply.compact_revision)
            elif reply.created:
                # Nothing of the past has been sent yet: the revision in the header is no place to resume from.
                yield WatchReply(index, 0)
            else:
                yield WatchReply(index, reply.header.revision, tuple(map(event_of, reply.events)))
        raise NoEtcd("cannot watch etcd: it has ended the stream")
