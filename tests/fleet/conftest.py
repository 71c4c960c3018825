"""One fleet for each test, on an etcd with authentication; when the test is over, the history of its keys must keep promises 1 and 8."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Etcd
from tests.fleet import fleet
from tests.fleet.checker import prove


@pytest.fixture
def etcd(secured_etcd: Etcd) -> Etcd:
    """Each agent has its own server's rights and no others; what a test reads and plants itself, it does as root."""
    return secured_etcd


@pytest.fixture
def servers(etcd: Etcd, tmp_path: Path) -> Iterator[fleet.Servers]:
    if os.geteuid() != 0 or not all(shutil.which(name) for name in ("git", "dpkg", "dpkg-deb")):
        pytest.skip("needs git, dpkg, dpkg-deb, and root")
    with fleet.running(etcd, tmp_path) as found:
        yield found
        found.end()
        prove(etcd.client, etcd.keys, etcd.since)
        found.prove_recorded()
