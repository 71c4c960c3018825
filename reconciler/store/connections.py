"""The channels to etcd's endpoints, and which of them is used. Called by `client` and `login`.

There is one channel for each endpoint and the choice between them is made here: gRPC's own stays with a member that
has lost its quorum, and knows one name for all members' certificates.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from reconciler.errors import Ambiguous, UsageError
from reconciler.store.library import etcd_and_grpc

REPLY_LIMIT = 32 << 20
"""Bytes of one reply; what is larger is asked for in parts."""

NEEDS_LEADER = ("hasleader", "true")
"""Metadata of every call: a member without quorum refuses at once instead of holding it."""

_random = random.SystemRandom()
_FILES_LOOKED_AT_EVERY = 1.0
_CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),  # below this an etcd server hangs up: "too many pings"
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", REPLY_LIMIT),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # which is how long a connection may take to be made
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A reply is not followed by a ping that measures how large the window should be, and by timers that wake four threads
    # for a second: half of what gRPC's own threads cost an agent at rest. The window is large from the start instead.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 20),
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


@dataclass(slots=True)
class Connection:
    """The channel to one endpoint. `proven` once a call has come back on it, until one fails."""

    endpoint: str
    channel: Any
    stubs: Stubs
    proven: bool = False


class Stubs:
    """etcd3's stubs on one channel."""

    def __init__(self, rpc: Any, channel: Any, endpoint: str) -> None:
        self._endpoint = endpoint
        kv, lease = rpc.KVStub(channel), rpc.LeaseStub(channel)
        maintenance = rpc.MaintenanceStub(channel)
        self.watch = rpc.WatchStub(channel)
        self.status = maintenance.Status
        self.authenticate = rpc.AuthStub(channel).Authenticate
        self._unary = {
            "Range": kv.Range,
            "Txn": kv.Txn,
            "LeaseGrant": lease.LeaseGrant,
            # A stream in etcd's API. Of one request and its reply it is the same on the wire as any other call, which needs
            # no thread for its requests and wakes none that waits for other streams' replies. A stream may end without one.
            "LeaseKeepAlive": channel.unary_unary(
                "/etcdserverpb.Lease/LeaseKeepAlive",
                request_serializer=rpc.LeaseKeepAliveRequest.SerializeToString,
                response_deserializer=rpc.LeaseKeepAliveResponse.FromString,
            ),
            "LeaseRevoke": lease.LeaseRevoke,
            "Status": maintenance.Status,
        }

    def send(self, name: str, request: Any, timeout: float, metadata: tuple[tuple[str, str], ...]) -> Any:
        reply = self._unary[name](request, timeout=timeout, metadata=metadata)
        if reply is None:
            raise Ambiguous(
                f"cannot tell what became of {name}: etcd at {self._endpoint} has ended the call without an answer"
            )
        return reply


class Connections:
    """The channels to all endpoints, and which of them is used. Knows the files, and reads them when they change."""

    def __init__(self, options: EtcdOptions) -> None:
        _check(options)
        self.number = len(options.endpoints)
        self._options = options
        self._lock = threading.Lock()
        self._connections: dict[str, Connection] = {}
        self._index = _random.randrange(self.number)  # so that a fleet's clients spread over the members
        self._files: tuple[object, ...] = ()
        self._looked = 0.0

    def close(self) -> None:
        with self._lock:
            for connection in self._connections.values():
                connection.channel.close()
            self._connections.clear()

    def current(self) -> Connection:
        """The connection in use."""
        with self._lock:
            self._look_at_files()
            endpoint = self._options.endpoints[self._index]
            if endpoint not in self._connections:
                self._connections[endpoint] = _connect(endpoint, self._options)
            return self._connections[endpoint]

    def failed(self, connection: Connection, silent: bool = False) -> None:
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


def _connect(endpoint: str, options: EtcdOptions) -> Connection:
    rpc, grpc = etcd_and_grpc()
    target, secure = _address(endpoint)
    if secure:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=read_file(options.ca, "--etcd-ca"),
            private_key=read_file(options.key, "--etcd-key"),
            certificate_chain=read_file(options.cert, "--etcd-cert"),
        )
        channel = grpc.secure_channel(target, credentials, options=_CHANNEL_OPTIONS)
    else:
        channel = grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
    return Connection(endpoint, channel, Stubs(rpc, channel, endpoint))


def read_file(path: str | None, option: str) -> bytes | None:
    """The content of the file that `option` names, if it names one."""
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot connect to etcd: {option} {path}: {error.strerror}") from None


def _stamp(path: str | None) -> object:
    if path is None:
        return None
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def prove(connection: Connection, timeout: float) -> None:
    """See that an endpoint answers and has a leader before a write goes to it: then a failed write is seldom ambiguous."""
    rpc, _ = etcd_and_grpc()
    connection.stubs.status(rpc.StatusRequest(), timeout=timeout, metadata=(NEEDS_LEADER,))
    connection.proven = True
