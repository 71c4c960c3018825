"""Who the client is to etcd: the password becomes a token, which goes with every call and is renewed. Called by `client`."""

from __future__ import annotations

import threading

from reconciler.errors import ReconcilerError
from reconciler.store.connections import NEEDS_LEADER, Connections, EtcdOptions, read_file
from reconciler.store.library import etcd_and_grpc
from reconciler.store.refusal import words_of


class Login:
    """The token of one user, for any number of threads; nothing where no user is named."""

    def __init__(self, options: EtcdOptions, connections: Connections) -> None:
        self._options = options
        self._connections = connections
        self._authenticating = threading.Lock()
        self._token: str | None = None

    def metadata(self, timeout: float) -> tuple[tuple[str, str], ...]:
        """What goes with every call."""
        if self._options.user is None:
            return (NEEDS_LEADER,)
        with self._authenticating:
            if self._token is None:
                self._token = self._authenticate(timeout)
            return (NEEDS_LEADER, ("token", self._token))

    def forget(self) -> bool:
        """A call was refused for its token: the next one asks for a new one. False where there was none to renew."""
        had, self._token = self._token is not None, None
        return had

    def _authenticate(self, timeout: float) -> str:
        rpc, grpc = etcd_and_grpc()
        connection = self._connections.current()
        request = rpc.AuthenticateRequest(name=self._options.user, password=_password(self._options))
        try:
            return str(connection.stubs.authenticate(request, timeout=timeout).token)
        except grpc.RpcError as error:
            words = words_of(error)
            if "authentication is not enabled" in words:
                return ""
            if error.code().name not in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNAUTHENTICATED"):
                raise
            raise ReconcilerError(
                f"cannot log in to etcd at {connection.endpoint} as {self._options.user}: {words}; "
                f"look at --etcd-user and {self._options.password_file}"
            ) from None


def _password(options: EtcdOptions) -> str:
    content = read_file(options.password_file, "--etcd-password-file") or b""
    return content.decode(errors="replace").rstrip("\r\n")
