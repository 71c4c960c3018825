"""The etcd client: requests with a deadline, sent again to another endpoint where that is safe. Called by everything in `store`.

Beside it, and called by nobody else: `library` (etcd3, gRPC and protobuf, imported when they are first needed), `connections`
and `login` (the endpoints, and who one is), `messages` and `refusal` (what goes and what comes back), `stream` (a watch).
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from reconciler.errors import Ambiguous, NoEtcd, ReconcilerError, Unavailable
from reconciler.store.connections import REPLY_LIMIT, Connections, EtcdOptions, prove
from reconciler.store.library import etcd_and_grpc
from reconciler.store.login import Login, Metadata
from reconciler.store.messages import (
    compare_message,
    items_of,
    operation_message,
    range_request,
    watch_request,
)
from reconciler.store.refusal import (
    Compacted,
    LeaseGone,
    ReplyTooLarge,
    is_about_token,
    is_unsent,
    must_authenticate,
    raise_if_final,
    words_of,
)
from reconciler.store.stream import Requests, WatchStream
from reconciler.store.transaction import (
    MAX_OPERATIONS,
    Compare,
    Get,
    Item,
    KeyRange,
    Operation,
    Reply,
    Snapshot,
)

__all__ = ["PAGE", "Client", "Compacted", "EtcdOptions", "LeaseGone"]

PAGE = 10_000
"""Keys in one reply; what is more is read page by page at the same etcd revision."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5
_LEAST = 0.2
"""Seconds that an attempt has at least, though less is left: one that is begun with none would only be ambiguous."""
_random = random.SystemRandom()


class Client:
    """One etcd cluster, for any number of threads. `timeout` (seconds) bounds every call, its repetitions included."""

    def __init__(self, options: EtcdOptions, timeout: float = 5.0) -> None:
        self._timeout = timeout
        self._options = options
        self._connections = Connections(options)
        self._login = Login(options, self._connections)
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._cluster_id = 0

    def close(self) -> None:
        self._connections.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def cluster_id(self) -> str:
        """etcd's cluster id in hex, as `etcdctl` shows it. Asks etcd where nothing was asked yet."""
        if not self._cluster_id:
            rpc, _ = etcd_and_grpc()
            self._call("Status", rpc.StatusRequest(), repeatable=True)
        return f"{self._cluster_id:x}"

    @property
    def counts(self) -> Mapping[str, int]:
        """Calls by name, and errors by gRPC's code, since the start: `Txn`, `error UNAVAILABLE`."""
        with self._counting:
            return dict(self._counts)

    def pause(self, seconds: float) -> None:
        """Wait before something is sent again."""
        time.sleep(seconds)

    # --- reading and writing ----------------------------------------------------------------------------------------

    def read(self, ranges: Sequence[KeyRange], revision: int | None = None) -> Snapshot:
        """Several ranges at one etcd revision, linearizable: the newest, or `revision`. Raises `Compacted` for one that is gone."""
        limit = PAGE
        while True:
            try:
                return self._read(ranges, revision, limit)
            except ReplyTooLarge:
                if limit == 1:
                    raise ReconcilerError(
                        f"cannot read {ranges[0].key} and what follows it: one reply is over {REPLY_LIMIT >> 20} MiB; "
                        "such keys are no part of this keyspace: look for them with etcdctl"
                    ) from None
                limit = max(1, limit // 8)
            except Compacted:
                if revision is not None:
                    raise
                # History was compacted between two pages of the newest state: the state is read again.

    def _read(self, ranges: Sequence[KeyRange], revision: int | None, limit: int) -> Snapshot:
        rpc, _ = etcd_and_grpc()
        asked = [range_request(rpc, keys, revision, _smaller(keys.limit, limit)) for keys in ranges]
        request = rpc.TxnRequest(success=[rpc.RequestOp(request_range=part) for part in asked])
        reply = self._call("Txn", request, repeatable=True)
        found: list[tuple[Item, ...]] = []
        for keys, response in zip(ranges, reply.responses, strict=True):
            items = items_of(response.response_range.kvs)
            more = response.response_range.more
            while more and not 0 < keys.limit <= len(items):
                rest = replace(keys, key=items[-1].key + "\0")
                if keys.order != "key":
                    raise ValueError(f"a range that is sorted by age needs a limit of at most {limit}")
                page = self._call(
                    "Range",
                    range_request(rpc, rest, reply.header.revision if revision is None else revision, limit),
                    repeatable=True,
                )
                items.extend(items_of(page.kvs))
                more = page.more
            found.append(tuple(items[: keys.limit] if keys.limit else items))
        return Snapshot(reply.header.revision if revision is None else revision, tuple(found))

    def txn(
        self,
        compares: Sequence[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
    ) -> Reply:
        """One transaction, sent once. Raises `Ambiguous` where its answer was lost, `Unavailable` where it surely did not happen."""
        if max(len(compares), len(then), len(otherwise)) > MAX_OPERATIONS:
            raise ValueError(f"a transaction of more than {MAX_OPERATIONS} operations")
        rpc, _ = etcd_and_grpc()
        request = rpc.TxnRequest(
            compare=[compare_message(rpc, compare) for compare in compares],
            success=[operation_message(rpc, operation) for operation in then],
            failure=[operation_message(rpc, operation) for operation in otherwise],
        )
        reads_only = all(isinstance(operation, Get) for operation in (*then, *otherwise))
        reply = self._call("Txn", request, repeatable=reads_only)
        return Reply(
            reply.succeeded,
            reply.header.revision,
            tuple(tuple(items_of(response.response_range.kvs)) for response in reply.responses),
        )

    # --- leases -----------------------------------------------------------------------------------------------------

    def grant(self, ttl: float) -> tuple[int, float]:
        """A new lease: its id, and the TTL in seconds that etcd granted. One whose answer was lost expires by itself."""
        rpc, _ = etcd_and_grpc()
        reply = self._call("LeaseGrant", rpc.LeaseGrantRequest(TTL=max(1, round(ttl))), repeatable=True)
        if reply.error:
            raise NoEtcd(f"cannot get a lease from etcd: {reply.error}")
        return reply.ID, float(reply.TTL)

    def refresh(self, lease: int, timeout: float | None = None) -> float:
        """Keep a lease alive once: the TTL in seconds that it has again, or 0 where etcd does not know it any more."""
        rpc, _ = etcd_and_grpc()
        reply = self._call(
            "LeaseKeepAlive", rpc.LeaseKeepAliveRequest(ID=lease), repeatable=True, timeout=timeout
        )
        return float(reply.TTL)

    def revoke(self, lease: int, timeout: float | None = None) -> None:
        """End a lease and delete its keys. One that is gone already is no error."""
        rpc, _ = etcd_and_grpc()
        with contextlib.suppress(LeaseGone):
            self._call("LeaseRevoke", rpc.LeaseRevokeRequest(ID=lease), repeatable=True, timeout=timeout)

    # --- watching ---------------------------------------------------------------------------------------------------

    def open_watch(self, ranges: Sequence[KeyRange], revisions: Sequence[int]) -> WatchStream:
        """A stream of what happens in each of `ranges` from its etcd revision on. Called by `watch`, which resumes."""
        rpc, grpc = etcd_and_grpc()
        connection = self._connections.current()
        metadata: Metadata = ()

        def refused(reason: str) -> Unavailable:
            if is_about_token(reason):
                self._login.forget(metadata)
            return NoEtcd(f"cannot watch etcd at {connection.endpoint}: {reason}; it is tried again")

        def broken(error: Any) -> Unavailable:
            self._note(error)
            self._connections.failed(connection)
            return refused(words_of(error))

        requests = Requests(
            watch_request(rpc, keys, revision) for keys, revision in zip(ranges, revisions, strict=True)
        )
        self._count_watches(len(ranges))
        try:
            metadata = self._login.metadata(self._timeout)
            call = connection.stubs.watch.Watch(requests, metadata=metadata)
        except grpc.RpcError as error:
            raise broken(error) from None
        return WatchStream(call, requests, len(ranges), broken, refused, self._count_watches)

    def _count_watches(self, number: int) -> None:
        with self._counting:
            self._counts["Watch"] += number

    # --- one call ---------------------------------------------------------------------------------------------------

    def _call(self, name: str, request: Any, *, repeatable: bool, timeout: float | None = None) -> Any:
        """Send `request`, again to another endpoint where it surely had no effect or may be repeated, until the time is up."""
        _, grpc = etcd_and_grpc()
        end = time.monotonic() + (self._timeout if timeout is None else timeout)
        pauses = _pauses(self._connections.number)
        trouble = "it does not answer"
        with self._counting:
            self._counts[name] += 1
        while time.monotonic() < end:
            connection = self._connections.current()
            metadata: Metadata = ()
            sent = False
            try:
                metadata = self._login.metadata(self._attempt(end))
                if not (repeatable or connection.proven):
                    prove(connection, self._attempt(end))
                sent = True
                limit = self._attempt(end) if repeatable else max(_LEAST, end - time.monotonic())
                reply = connection.stubs.send(name, request, limit, metadata)
            except grpc.RpcError as error:
                trouble = words_of(error)
                self._note(error)
                self._connections.failed(connection, silent=error.code() is grpc.StatusCode.DEADLINE_EXCEEDED)
                renewed = must_authenticate(error) and self._login.forget(metadata)
                if not renewed:
                    raise_if_final(error, connection.endpoint)
                if sent and not repeatable and not renewed and not is_unsent(error):
                    raise Ambiguous(
                        f"cannot tell whether etcd at {connection.endpoint} made a change: {trouble}; "
                        "it is read back before anything is decided"
                    ) from None
            else:
                connection.proven = True
                self._cluster_id = reply.header.cluster_id or self._cluster_id
                return reply
            time.sleep(max(0.0, min(next(pauses), end - time.monotonic())))
        names = ", ".join(self._options.endpoints)
        raise NoEtcd(f"cannot reach etcd at {names}: {trouble}; look whether it runs and --etcd is right")

    def _attempt(self, end: float) -> float:
        """Seconds for one endpoint: where there are others, one that is frozen must leave time for them."""
        share = self._timeout if self._connections.number == 1 else self._timeout / 2
        return max(_LEAST, min(end - time.monotonic(), share))

    def _note(self, error: Any) -> None:
        with self._counting:
            self._counts[f"error {error.code().name}"] += 1


def _smaller(limit: int, page: int) -> int:
    return min(limit, page) if limit else page


def _pauses(endpoints: int) -> Iterator[float]:
    """Seconds between attempts, jittered: none while there are endpoints that were not tried in this round."""
    pause = _FIRST_PAUSE
    while True:
        yield from [0.0] * (endpoints - 1)
        yield pause * (0.5 + _random.random())
        pause = min(pause * 2, _LONGEST_PAUSE)
