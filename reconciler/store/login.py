"""Who the client is to etcd: the password becomes a token, which goes with every call and is renewed. Called by `client`."""

from __future__ import annotations

import threading

from reconciler.errors import NoEtcd, ReconcilerError
from reconciler.store.connections import NEEDS_LEADER, Connections, EtcdOptions, read_file
from reconciler.store.library import etcd_and_grpc
from reconciler.store.refusal import words_of

Metadata = tuple[tuple[str, str], ...]


class Login:
    """The token of one user, for any number of threads; nothing where no user is named."""

    def __init__(self, options: EtcdOptions, connections: Connections) -> None:
        self._options = options
        self._connections = connections
        self._authenticating = threading.Lock()
        self._token: str | None = None

    def metadata(self, timeout: float) -> Metadata:
        """What goes with every call. One thread asks for a token, and the others wait for it, `timeout` seconds at most."""
        if self._options.user is None:
            return (NEEDS_LEADER,)
        token = self._token
        if token is None:
            if not self._authenticating.acquire(timeout=timeout):
                raise NoEtcd("cannot log in to etcd: it does not answer; it is tried again")
            try:
                token = self._token = self._token or self._authenticate(timeout)
            finally:
                self._authenticating.release()
        return _with(token)

    def forget(self, refused: Metadata) -> bool:
        """A call was refused for the token in its metadata: unless somebody has a newer one already, the next call asks for
        one. False where there is no user to ask for.
        """
        if self._token is not None and refused == _with(self._token):
            self._token = None
        return self._options.user is not None

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


def _with(token: str) -> Metadata:
    """An etcd without authentication has no tokens, and refuses the empty one as well."""
    return (NEEDS_LEADER, ("token", token)) if token else (NEEDS_LEADER,)


def _password(options: EtcdOptions) -> str:
    content = read_file(options.password_file, "--etcd-password-file") or b""
    return content.decode(errors="replace").rstrip("\r\n")
