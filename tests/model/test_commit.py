"""Promise 12 without a clock: a request whose answer is lost lands when everything it compares has come true again."""

from __future__ import annotations

from collections.abc import Sequence

from reconciler.errors import Ambiguous
from reconciler.store.client import Client
from reconciler.store.commit import Guard, commit
from reconciler.store.transaction import Compare, Operation, Reply, absent, delete, mod_is, put
from tests.model.etcd import Etcd, Txn


class Late(Client):
    """The first request is under way while others change etcd; `held` is what may still land."""

    def __init__(self, etcd: Etcd, meanwhile: Sequence[Operation]) -> None:
        self.etcd, self._meanwhile = etcd, meanwhile
        self.held: Txn | None = None

    def pause(self, seconds: float) -> None:
        pass

    def txn(
        self, compares: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> Reply:
        txn = Txn(tuple(compares), tuple(then), tuple(otherwise))
        if self.held is None:
            self.held = txn
            self.etcd = self.etcd.write(*self._meanwhile)
            raise Ambiguous("no answer came")
        self.etcd, reply = self.etcd.txn(txn)
        return reply


def test_what_was_given_up_does_not_land_when_its_guard_holds_again() -> None:
    """A repair is refused because a rollout has opened; the rollout ends, and the repair's first request arrives."""
    etcd = Etcd().write(put("step", "old"))
    before = etcd.get("step")
    assert before
    client = Late(etcd, [put("phase", "open")])
    write = put("step", "running")
    guards = [
        Guard(mod_is("step", before.mod_revision), "the record has changed"),
        Guard(absent("phase"), "a rollout has begun"),
    ]
    assert not commit(client, guards, [write], witness=write).made
    assert client.held
    after, reply = client.etcd.write(delete("phase")).txn(client.held)
    assert not reply.succeeded
    record = after.get("step")
    assert record and record.value == b"old"


def test_what_landed_is_known_to_be_made() -> None:
    etcd = Etcd().write(put("step", "old"))
    before = etcd.get("step")
    assert before
    client = Late(etcd, [put("step", "running")])
    write = put("step", "running")
    outcome = commit(
        client, [Guard(mod_is("step", before.mod_revision), "the record has changed")], [write], witness=write
    )
    found = client.etcd.get("step")
    assert outcome.made and found and outcome.revision == found.mod_revision
