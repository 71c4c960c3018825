"""The etcd client: the only module that knows etcd3, gRPC and protobuf. Called by everything in `store`.

etcd3 0.12.0's stubs are used, and none of its own calls: they ignore options, wait for ever, or spin while etcd is
away. Its generated modules do not import with protobuf 4 and later, so they are rebuilt from the descriptors that
they carry. All of it is imported when the first client is made: it is most of what a dry run costs at its start.

There is one channel for each endpoint and the client chooses between them itself: gRPC's own choice stays with a
member that has lost its quorum, and knows one name for all members' certificates.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn
from urllib.parse import urlsplit

from reconciler.errors import Ambiguous, Fenced, ReconcilerError, Unavailable, UsageError
from reconciler.store.transaction import (
    MAX_OPERATIONS,
    Compare,
    Delete,
    Event,
    Get,
    Item,
    KeyRange,
    Operation,
    Put,
    Reply,
    Snapshot,
)

PAGE = 10_000
"""Keys in one reply; what is more is read page by page at the same etcd revision."""

_REPLY_LIMIT = 32 << 20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5
_LEAST = 0.2
"""Seconds that an attempt has at least, though less is left: one that is begun with none would only be ambiguous."""
_random = random.SystemRandom()
_FILES_LOOKED_AT_EVERY = 1.0
_CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),  # below this an etcd server hangs up: "too many pings"
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", _REPLY_LIMIT),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # which is how long a connection may take to be made
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),  # what is sent again is decided here, where it is known what it means
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # or a new channel would share a dead one's connection
)


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """Where etcd is and how to be let in. Endpoints are `http(s)://host:port` or `unix:<path>`; files are paths."""

    endpoints: tuple[str, ...]
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    user: str | None = None
    password_file: str | None = None


@dataclass(frozen=True, slots=True)
class WatchReply:
    """What a watch's stream says. `index` is the range's, in the order asked; `compacted` is set where its history is gone."""

    index: int
    revision: int
    events: tuple[Event, ...] = ()
    compacted: int = 0


class Client:
    """One etcd cluster, for any number of threads. `timeout` (seconds) bounds every call, its repetitions included."""

    def __init__(self, options: EtcdOptions, timeout: float = 5.0) -> None:
        self._timeout = timeout
        self._connections = _Connections(options)
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
            rpc, _ = _parts()
            self._call("Status", rpc.StatusRequest(), repeatable=True)
        return f"{self._cluster_id:x}"

    @property
    def counts(self) -> Mapping[str, int]:
        """Calls by name, and errors by gRPC's code, since the start: `Txn`, `error UNAVAILABLE`."""
        with self._counting:
            return dict(self._counts)

    # --- reading and writing ----------------------------------------------------------------------------------------

    def read(self, ranges: Sequence[KeyRange], revision: int | None = None) -> Snapshot:
        """Several ranges at one etcd revision, linearizable: the newest, or `revision`. Raises `Compacted` for one that is gone."""
        limit = PAGE
        while True:
            try:
                return self._read(ranges, revision, limit)
            except _ReplyTooLarge:
                if limit == 1:
                    raise ReconcilerError(
                        f"cannot read {ranges[0].key} and what follows it: one reply is over {_REPLY_LIMIT >> 20} MiB; "
                        "such keys are no part of this keyspace: look for them with etcdctl"
                    ) from None
                limit = max(1, limit // 8)
            except Compacted:
                if revision is not None:
                    raise
                # History was compacted between two pages of the newest state: the state is read again.

    def _read(self, ranges: Sequence[KeyRange], revision: int | None, limit: int) -> Snapshot:
        rpc, _ = _parts()
        asked = [_range_request(rpc, keys, revision, _smaller(keys.limit, limit)) for keys in ranges]
        request = rpc.TxnRequest(success=[rpc.RequestOp(request_range=part) for part in asked])
        reply = self._call("Txn", request, repeatable=True)
        found: list[tuple[Item, ...]] = []
        for keys, response in zip(ranges, reply.responses, strict=True):
            items = _items(response.response_range.kvs)
            more = response.response_range.more
            while more and not 0 < keys.limit <= len(items):
                rest = replace(keys, key=items[-1].key + "\0")
                if keys.order != "key":
                    raise ValueError(f"a range that is sorted by age needs a limit of at most {limit}")
                page = self._call(
                    "Range",
                    _range_request(rpc, rest, reply.header.revision if revision is None else revision, limit),
                    repeatable=True,
                )
                items.extend(_items(page.kvs))
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
        rpc, _ = _parts()
        request = rpc.TxnRequest(
            compare=[_compare_message(rpc, compare) for compare in compares],
            success=[_operation(rpc, operation) for operation in then],
            failure=[_operation(rpc, operation) for operation in otherwise],
        )
        reads_only = all(isinstance(operation, Get) for operation in (*then, *otherwise))
        reply = self._call("Txn", request, repeatable=reads_only)
        return Reply(
            reply.succeeded,
            reply.header.revision,
            tuple(tuple(_items(response.response_range.kvs)) for response in reply.responses),
        )

    # --- leases -----------------------------------------------------------------------------------------------------

    def grant(self, ttl: float) -> tuple[int, float]:
        """A new lease: its id, and the TTL in seconds that etcd granted. One whose answer was lost expires by itself."""
        rpc, _ = _parts()
        reply = self._call("LeaseGrant", rpc.LeaseGrantRequest(TTL=max(1, round(ttl))), repeatable=True)
        if reply.error:
            raise Unavailable(f"cannot get a lease from etcd: {reply.error}")
        return reply.ID, float(reply.TTL)

    def refresh(self, lease: int, timeout: float | None = None) -> float:
        """Keep a lease alive once: the TTL in seconds that it has again, or 0 where etcd does not know it any more."""
        rpc, _ = _parts()
        reply = self._call(
            "LeaseKeepAlive", rpc.LeaseKeepAliveRequest(ID=lease), repeatable=True, timeout=timeout
        )
        return float(reply.TTL)

    def time_to_live(self, lease: int) -> float:
        """Seconds that a lease still has; negative where it is gone."""
        rpc, _ = _parts()
        return float(self._call("LeaseTimeToLive", rpc.LeaseTimeToLiveRequest(ID=lease), repeatable=True).TTL)

    def revoke(self, lease: int, timeout: float | None = None) -> None:
        """End a lease and delete its keys. One that is gone already is no error."""
        rpc, _ = _parts()
        with contextlib.suppress(LeaseGone):
            self._call("LeaseRevoke", rpc.LeaseRevokeRequest(ID=lease), repeatable=True, timeout=timeout)

    # --- watching ---------------------------------------------------------------------------------------------------

    def open_watch(self, ranges: Sequence[KeyRange], revisions: Sequence[int]) -> WatchStream:
        """A stream of what happens in each of `ranges` from its etcd revision on. Called by `watch`, which resumes."""
        rpc, grpc = _parts()
        connection = self._connections.current()
        requests = _Requests(
            _watch_request(rpc, keys, revision) for keys, revision in zip(ranges, revisions, strict=True)
        )
        with self._counting:
            self._counts["Watch"] += 1
        try:
            metadata = self._connections.metadata(self._timeout)
            call = connection.stubs.watch.Watch(requests, metadata=metadata)
        except grpc.RpcError as error:
            raise self._broken(connection, error) from None
        return WatchStream(call, requests, len(ranges), lambda error: self._broken(connection, error))

    def _broken(self, connection: _Connection, error: Any) -> Unavailable:
        self._note(error)
        self._connections.failed(connection)
        if _must_authenticate(error):
            self._connections.forget_token()
        return Unavailable(f"cannot watch etcd at {connection.endpoint}: {_words(error)}; it is tried again")

    # --- one call ---------------------------------------------------------------------------------------------------

    def _call(self, name: str, request: Any, *, repeatable: bool, timeout: float | None = None) -> Any:
        """Send `request`, again to another endpoint where it surely had no effect or may be repeated, until the time is up."""
        _, grpc = _parts()
        end = time.monotonic() + (self._timeout if timeout is None else timeout)
        pauses = _pauses(self._connections.number)
        trouble = "it does not answer"
        with self._counting:
            self._counts[name] += 1
        while time.monotonic() < end:
            connection = self._connections.current()
            sent = False
            try:
                metadata = self._connections.metadata(self._attempt(end))
                if not (repeatable or connection.proven):
                    _prove(connection, self._attempt(end))
                sent = True
                limit = self._attempt(end) if repeatable else max(_LEAST, end - time.monotonic())
                reply = connection.stubs.send(name, request, limit, metadata)
            except grpc.RpcError as error:
                trouble = _words(error)
                self._note(error)
                self._connections.failed(connection, silent=error.code() is grpc.StatusCode.DEADLINE_EXCEEDED)
                if _must_authenticate(error) and self._connections.forget_token():
                    continue
                _raise_if_final(error, connection.endpoint)
                if sent and not repeatable and not _is_unsent(error):
                    raise Ambiguous(
                        f"cannot tell whether etcd at {connection.endpoint} made a change: {trouble}; "
                        "it is read back before anything is decided"
                    ) from None
            else:
                connection.proven = True
                self._cluster_id = reply.header.cluster_id or self._cluster_id
                return reply
            time.sleep(max(0.0, min(next(pauses), end - time.monotonic())))
        return self._connections.unavailable(trouble)

    def _attempt(self, end: float) -> float:
        """Seconds for one endpoint: where there are others, one that is frozen must leave time for them."""
        share = self._timeout if self._connections.number == 1 else self._timeout / 2
        return max(_LEAST, min(end - time.monotonic(), share))

    def _note(self, error: Any) -> None:
        with self._counting:
            self._counts[f"error {error.code().name}"] += 1


class Compacted(ReconcilerError):
    """The etcd revision that was asked for has been compacted: read the newest state instead."""


class LeaseGone(Fenced):
    """etcd does not know the lease (any more): what hangs on it is gone, and nothing more can be hung on it."""


class _ReplyTooLarge(Exception):
    """A reply over the limit: ask for fewer keys at once."""


# --- connections ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Connection:
    """The channel to one endpoint. `proven` once a call has come back on it, until one fails."""

    endpoint: str
    channel: Any
    stubs: _Stubs
    proven: bool = False


class _Stubs:
    """etcd3's stubs on one channel."""

    def __init__(self, rpc: Any, channel: Any) -> None:
        kv, lease = rpc.KVStub(channel), rpc.LeaseStub(channel)
        maintenance = rpc.MaintenanceStub(channel)
        self.watch = rpc.WatchStub(channel)
        self.status = maintenance.Status
        self.authenticate = rpc.AuthStub(channel).Authenticate
        self._keepalive = lease.LeaseKeepAlive
        self._unary = {
            "Range": kv.Range,
            "Txn": kv.Txn,
            "LeaseGrant": lease.LeaseGrant,
            "LeaseRevoke": lease.LeaseRevoke,
            "LeaseTimeToLive": lease.LeaseTimeToLive,
            "Status": maintenance.Status,
        }

    def send(self, name: str, request: Any, timeout: float, metadata: tuple[tuple[str, str], ...]) -> Any:
        if name != "LeaseKeepAlive":
            return self._unary[name](request, timeout=timeout, metadata=metadata)
        call = self._keepalive(iter([request]), timeout=timeout, metadata=metadata)
        try:
            return next(call)
        except StopIteration:
            raise Unavailable("cannot refresh a lease: etcd has ended the stream") from None
        finally:
            call.cancel()


class _Connections:
    """The channels to all endpoints, which of them is used, and the token. Knows the files, and reads them when they change."""

    def __init__(self, options: EtcdOptions) -> None:
        _check(options)
        self.number = len(options.endpoints)
        self._options = options
        self._lock = threading.Lock()
        self._authenticating = threading.Lock()
        self._connections: dict[str, _Connection] = {}
        self._index = _random.randrange(self.number)  # so that a fleet's clients spread over the members
        self._files: tuple[object, ...] = ()
        self._looked = 0.0
        self._token: str | None = None

    def close(self) -> None:
        with self._lock:
            for connection in self._connections.values():
                connection.channel.close()
            self._connections.clear()

    def current(self) -> _Connection:
        """The connection in use."""
        with self._lock:
            self._look_at_files()
            endpoint = self._options.endpoints[self._index]
            if endpoint not in self._connections:
                self._connections[endpoint] = _connect(endpoint, self._options)
            return self._connections[endpoint]

    def failed(self, connection: _Connection, silent: bool = False) -> None:
        """A call on `connection` failed: the next one goes to the next endpoint, and never again where nothing came back (`silent`)."""
        with self._lock:
            connection.proven = False
            if silent and self._connections.get(connection.endpoint) is connection:
                del self._connections[connection.endpoint]
            if self._options.endpoints[self._index] == connection.endpoint:
                self._index = (self._index + 1) % self.number

    def _look_at_files(self) -> None:
        if time.monotonic() - self._looked < _FILES_LOOKED_AT_EVERY:
            return
        self._looked = time.monotonic()
        files = tuple(_stamp(path) for path in (self._options.ca, self._options.cert, self._options.key))
        if files != self._files:
            # Calls in flight keep the old channel until they end.
            self._connections.clear()
            self._files = files

    def metadata(self, timeout: float) -> tuple[tuple[str, str], ...]:
        """What goes with every call. `hasleader` makes a member without quorum refuse at once instead of holding the call."""
        if self._options.user is None:
            return (("hasleader", "true"),)
        with self._authenticating:
            if self._token is None:
                self._token = self._authenticate(timeout)
            return (("hasleader", "true"), ("token", self._token))

    def forget_token(self) -> bool:
        """A call was refused for its token: the next one asks for a new one. False where there was none to renew."""
        had, self._token = self._token is not None, None
        return had

    def _authenticate(self, timeout: float) -> str:
        rpc, grpc = _parts()
        connection = self.current()
        request = rpc.AuthenticateRequest(name=self._options.user, password=_password(self._options))
        try:
            return str(connection.stubs.authenticate(request, timeout=timeout).token)
        except grpc.RpcError as error:
            words = _words(error)
            if "authentication is not enabled" in words:
                return ""
            if error.code().name not in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNAUTHENTICATED"):
                raise
            raise ReconcilerError(
                f"cannot log in to etcd at {connection.endpoint} as {self._options.user}: {words}; "
                f"look at --etcd-user and {self._options.password_file}"
            ) from None

    def unavailable(self, trouble: str) -> NoReturn:
        names = ", ".join(self._options.endpoints)
        raise Unavailable(
            f"cannot reach etcd at {names}: {trouble}; look whether it runs and --etcd is right"
        )


def _check(options: EtcdOptions) -> None:
    if not options.endpoints:
        raise UsageError(
            "cannot connect to etcd: no endpoint is given; name one with --etcd http://host:2379"
        )
    for endpoint in options.endpoints:
        _address(endpoint)
    if bool(options.cert) != bool(options.key):
        raise UsageError(
            "cannot connect to etcd: --etcd-cert and --etcd-key go together, and one of them is missing"
        )
    if bool(options.user) != bool(options.password_file):
        raise UsageError(
            "cannot connect to etcd: --etcd-user and --etcd-password-file go together, and one of them is missing"
        )
    secure = any(endpoint.startswith("https://") for endpoint in options.endpoints)
    if not secure and (options.ca or options.cert):
        raise UsageError(
            "cannot connect to etcd: a CA or a certificate is given but every endpoint is http://; "
            "write https://, or they would be ignored"
        )


def _address(endpoint: str) -> tuple[str, bool]:
    """gRPC's target for an endpoint, and whether it is TLS."""
    if endpoint.startswith("unix:"):
        return "unix:" + endpoint.removeprefix("unix:").removeprefix("//"), False
    try:
        parts = urlsplit(endpoint)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port
    except ValueError:
        right = False
    if not right or parts.path.strip("/") or parts.query or parts.username is not None:
        shown = endpoint.rsplit("@", 1)[-1]
        raise UsageError(
            f"cannot use the etcd endpoint {shown!r}: it must be http://host:port or https://host:port"
        )
    return parts.netloc, parts.scheme == "https"


def _connect(endpoint: str, options: EtcdOptions) -> _Connection:
    rpc, grpc = _parts()
    target, secure = _address(endpoint)
    if secure:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=_file(options.ca, "--etcd-ca"),
            private_key=_file(options.key, "--etcd-key"),
            certificate_chain=_file(options.cert, "--etcd-cert"),
        )
        channel = grpc.secure_channel(target, credentials, options=_CHANNEL_OPTIONS)
    else:
        channel = grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
    return _Connection(endpoint, channel, _Stubs(rpc, channel))


def _file(path: str | None, option: str) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot connect to etcd: {option} {path}: {error.strerror}") from None


def _password(options: EtcdOptions) -> str:
    content = _file(options.password_file, "--etcd-password-file") or b""
    return content.decode(errors="replace").rstrip("\r\n")


def _stamp(path: str | None) -> object:
    if path is None:
        return None
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _prove(connection: _Connection, timeout: float) -> None:
    """See that an endpoint answers and has a leader before a write goes to it: then a failed write is seldom ambiguous."""
    rpc, _ = _parts()
    connection.stubs.status(rpc.StatusRequest(), timeout=timeout, metadata=(("hasleader", "true"),))
    connection.proven = True


def _pauses(endpoints: int) -> Iterator[float]:
    """Seconds between attempts, jittered: none while there are endpoints that were not tried in this round."""
    pause = _FIRST_PAUSE
    while True:
        yield from [0.0] * (endpoints - 1)
        yield pause * (0.5 + _random.random())
        pause = min(pause * 2, _LONGEST_PAUSE)


# --- what an error means --------------------------------------------------------------------------------------------

_UNSENT = (
    "failed to connect",
    "connection refused",
    "dns resolution failed",
    "name resolution",
    "no such file or directory",
    "handshake",
    "no leader",
    "too many requests",
)


def _is_unsent(error: Any) -> bool:
    """Whether etcd surely did nothing: the request never left, or was refused before it was proposed."""
    words = (error.details() or "").lower()
    return any(word in words for word in _UNSENT)


def _must_authenticate(error: Any) -> bool:
    words = error.details() or ""
    return error.code().name == "UNAUTHENTICATED" or "revision of auth store is old" in words


def _raise_if_final(error: Any, endpoint: str) -> None:
    """Raise what no repetition changes; return where another attempt may help."""
    code, words = error.code().name, error.details() or ""
    if code == "RESOURCE_EXHAUSTED" and "larger than max" in words:
        raise _ReplyTooLarge
    if "compacted" in words or "future revision" in words:
        raise Compacted(f"cannot read etcd at {endpoint} at the revision asked for: {words}") from None
    if "requested lease not found" in words:
        raise LeaseGone(f"cannot use the lease at etcd at {endpoint}: {words}") from None
    if "database space exceeded" in words:
        raise Unavailable(
            f"cannot write to etcd at {endpoint}: it has raised the NOSPACE alarm ({words}); "
            "compact and defragment it, then `etcdctl alarm disarm`"
        ) from None
    if code == "PERMISSION_DENIED":
        raise ReconcilerError(
            f"cannot do this in etcd at {endpoint}: {words}; `reconcile etcd-roles` shows what the user's role needs"
        ) from None
    if code == "UNAUTHENTICATED" or "user name is empty" in words:
        raise ReconcilerError(
            f"cannot log in to etcd at {endpoint}: {words}; it wants --etcd-user and --etcd-password-file"
        ) from None
    if code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND", "OUT_OF_RANGE", "UNIMPLEMENTED"):
        raise ReconcilerError(f"etcd at {endpoint} refuses the request: {words}") from None


def _words(error: Any) -> str:
    """etcd's own words, or gRPC's, on one line."""
    words = " ".join((error.details() or "").split())
    return words or error.code().name.lower().replace("_", " ")


# --- messages -------------------------------------------------------------------------------------------------------


def _smaller(limit: int, page: int) -> int:
    return min(limit, page) if limit else page


def _range_request(rpc: Any, keys: KeyRange, revision: int | None, limit: int) -> Any:
    return rpc.RangeRequest(
        key=_key_bytes(keys.key),
        range_end=b"" if keys.end is None else _key_bytes(keys.end),
        limit=limit,
        revision=revision or 0,
        keys_only=keys.keys_only,
        sort_order={"key": 0, "oldest": rpc.RangeRequest.ASCEND, "newest": rpc.RangeRequest.DESCEND}[
            keys.order
        ],
        sort_target=rpc.RangeRequest.KEY if keys.order == "key" else rpc.RangeRequest.CREATE,
        max_create_revision=max(0, keys.created_before - 1),
    )


def _compare_message(rpc: Any, compare: Compare) -> Any:
    message = rpc.Compare(
        key=_key_bytes(compare.key),
        range_end=b"" if compare.end is None else _key_bytes(compare.end),
        result=rpc.Compare.EQUAL if compare.result == "equal" else rpc.Compare.LESS,
    )
    match compare.target:
        case "mod":
            message.target, message.mod_revision = rpc.Compare.MOD, compare.operand
        case "create":
            message.target, message.create_revision = rpc.Compare.CREATE, compare.operand
        case "value":
            message.target, message.value = rpc.Compare.VALUE, compare.operand
    return message


def _operation(rpc: Any, operation: Operation) -> Any:
    match operation:
        case Put(key, value, lease):
            return rpc.RequestOp(request_put=rpc.PutRequest(key=_key_bytes(key), value=value, lease=lease))
        case Delete(keys):
            end = b"" if keys.end is None else _key_bytes(keys.end)
            request = rpc.DeleteRangeRequest(key=_key_bytes(keys.key), range_end=end)
            return rpc.RequestOp(request_delete_range=request)
        case Get(keys):
            return rpc.RequestOp(request_range=_range_request(rpc, keys, None, keys.limit))


def _key_bytes(key: str) -> bytes:
    return key.encode(errors="surrogateescape")


def _items(kvs: Any) -> list[Item]:
    return [
        Item(kv.key.decode(errors="surrogateescape"), kv.value, kv.create_revision, kv.mod_revision, kv.lease)
        for kv in kvs
    ]


# --- a watch's stream -----------------------------------------------------------------------------------------------


class _Requests:
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


def _watch_request(rpc: Any, keys: KeyRange, revision: int) -> Any:
    create = rpc.WatchCreateRequest(
        key=_key_bytes(keys.key),
        range_end=b"" if keys.end is None else _key_bytes(keys.end),
        start_revision=revision,
        progress_notify=True,
    )
    return rpc.WatchRequest(create_request=create)


class WatchStream:
    """Watches on one stream: their replies as values, until it breaks (`Unavailable`) or is cancelled (by any thread).

    Each watch has a number, from 0, in the order in which they were asked for. One that was dropped says nothing more.
    """

    def __init__(
        self, call: Any, requests: _Requests, number: int, broken: Callable[[Any], Unavailable]
    ) -> None:
        self._call = call
        self._requests = requests
        self._asked = number
        self._broken = broken
        self._cancelled = False
        self._ids: dict[int, int] = {}
        self._dropped: set[int] = set()

    def add(self, keys: KeyRange, revision: int) -> int:
        """Watch `keys` too, from an etcd revision on: the watch's number."""
        rpc, _ = _parts()
        self._requests.add(_watch_request(rpc, keys, revision))
        self._asked += 1
        return self._asked - 1

    def drop(self, index: int) -> None:
        """End one watch."""
        rpc, _ = _parts()
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
        _, grpc = _parts()
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
                    raise Unavailable(f"cannot watch etcd: {reply.cancel_reason or 'it cancelled the watch'}")
                yield WatchReply(index, reply.header.revision, compacted=reply.compact_revision)
            elif reply.created:
                # Nothing of the past has been sent yet: the revision in the header is no place to resume from.
                yield WatchReply(index, 0)
            else:
                items = _items(event.kv for event in reply.events)
                events = tuple(
                    Event(event.type == event.DELETE, item)
                    for event, item in zip(reply.events, items, strict=True)
                )
                yield WatchReply(index, reply.header.revision, events)
        raise Unavailable("cannot watch etcd: it has ended the stream")


# --- the library ----------------------------------------------------------------------------------------------------

_loaded: list[tuple[Any, Any]] = []
_loading = threading.Lock()


def _parts() -> tuple[Any, Any]:
    """etcd3's messages and stubs, and gRPC: imported by the first who asks."""
    if not _loaded:
        with _loading:
            if not _loaded:
                _loaded.append(_load())
    return _loaded[0]


def _load() -> tuple[Any, Any]:
    # gRPC writes its own log lines to standard error, which is ours.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    _rebuild_generated_modules()
    import etcd3.etcdrpc as rpc
    import grpc

    return rpc, grpc


def _rebuild_generated_modules() -> None:
    """Put working `etcd3.etcdrpc.{kv,auth,rpc}_pb2` in place of those that protobuf 4 and later refuse.

    Each carries its serialized descriptor as one literal; protobuf's own builder makes the classes from it. The
    descriptors go into a pool of their own: names such as `rpc.proto` are not etcd's alone.
    """
    import ast
    import importlib.util
    import re
    import sys

    from google.protobuf import descriptor_pool
    from google.protobuf.internal import builder

    spec = importlib.util.find_spec("etcd3")
    if spec is None or spec.origin is None:
        raise ReconcilerError(
            "cannot talk to etcd: the Python package etcd3 is missing; install this program anew"
        )
    folder = Path(spec.origin).parent / "etcdrpc"
    pool = descriptor_pool.DescriptorPool()
    for name in ("kv", "auth", "rpc"):
        source = (folder / f"{name}_pb2.py").read_text(encoding="latin-1")
        literal = re.search(r"serialized_pb=(?:_b\()?(b?'(?:[^'\\\n]|\\.)*')", source)
        if literal is None:
            raise ReconcilerError(
                f"cannot talk to etcd: {folder / name}_pb2.py is not etcd3 0.12.0's; install that version"
            )
        value = ast.literal_eval(literal[1])
        serialized = value if isinstance(value, bytes) else value.encode("latin-1")
        descriptor = pool.AddSerializedFile(serialized)
        module = ModuleType(f"etcd3.etcdrpc.{name}_pb2")
        module.__dict__["DESCRIPTOR"] = descriptor
        builder.BuildMessageAndEnumDescriptors(descriptor, module.__dict__)
        builder.BuildTopDescriptorsAndMessages(descriptor, module.__name__, module.__dict__)
        sys.modules[module.__name__] = module
