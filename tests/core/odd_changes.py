"""The odd changes of four years of a real data centre, judged by hand: what any comparison of versions must say of them.

The history is Neco's own `artifacts.go`, October 2018 to May 2022: 203 sets, whose 202 neighbours differ in 349 artifacts.
All changes that are not plain upgrades stand here, and those upgrades that a simpler order would get wrong. A change that is
not here is an upgrade, reason `version_changed`.
"""

from __future__ import annotations

from typing import NamedTuple

from reconciler.core.artifact import Kind
from reconciler.core.change import Action


class Odd(NamedTuple):
    """`commit` is the first eight digits of the commit that made the change; `before` None is an install, `after` None a removal."""

    commit: str
    kind: Kind
    name: str
    before: str | None
    after: str | None
    action: Action
    why: str


ODD_CHANGES = (
    # Not plain upgrades.
    Odd("d7ad818f", "image", "etcd", "3.3.9-3", "3.3.9-2", "downgrade", "an earlier build of one release"),
    Odd("da7d8afa", "image", "hyperkube", None, "1.11.2-5", "install", "new"),
    Odd("fa596378", "image", "coil", None, "0.3-2", "install", "new"),
    Odd("850fe138", "image", "squid", None, "3.5.27-1-3", "install", "new"),
    Odd("cc167bbb", "deb", "etcdpasswd", "v0.5", "v0.4", "downgrade", "taken back"),
    Odd("f8634468", "image", "omsa", "18.11.01-1", None, "remove", "renamed: setup-hw comes with it"),
    Odd("f8634468", "image", "setup-hw", None, "20190201-1", "install", "renamed: omsa goes with it"),
    Odd("46401f99", "deb", "neco", None, "release-2019.01.17-1", "install", "new"),
    Odd("4301c58e", "image", "coil", "1.0.0-1", "1.0.0.1", "replace", "level: `-` became `.`"),
    Odd("4301c58e", "image", "serf", "0.8.1-5", "0.8.1.5", "replace", "level: `-` became `.`"),
    Odd("4301c58e", "image", "setup-hw", "20190201-1", "20190201.1", "replace", "level: `-` became `.`"),
    Odd("4301c58e", "image", "squid", "3.5.27-1-3", "3.5.27.1.3", "replace", "level: `-` became `.`"),
    Odd("4301c58e", "image", "vault", "1.0.0-1", "1.0.0.1", "replace", "level: `-` became `.`"),
    Odd("6bf0faaf", "image", "setup-hw", "20190201.1", "1.0.0", "replace", "a date became a version"),
    Odd("69039298", "image", "hyperkube", "1.13.2.1", None, "remove", "gone"),
    Odd("31499659", "image", "teleport", None, "4.0.2.2", "install", "new"),
    Odd("2e3c80e5", "deb", "neco", "release-2019.09.27-6738", None, "remove", "gone"),
    Odd("c2b44582", "image", "etcd", "3.3.21.1", "3.3.20.1", "downgrade", "taken back"),
    Odd("9c5c712f", "image", "teleport", "5.0.1.1", None, "remove", "gone"),
    Odd("4c00e9df", "image", "bird", None, "2.0.7.4", "install", "new"),
    Odd("4c00e9df", "image", "chrony", None, "3.5.1.1", "install", "new"),
    Odd("d3054f2f", "image", "cke", "1.18.8", None, "remove", "gone"),
    Odd("45a7f48a", "image", "promtail", None, "2.1.0.1", "install", "new"),
    Odd("420f763b", "os-image", "os-image", "stable/2765.2.4", "stable/2765.2.3", "downgrade", "taken back"),
    Odd("b16072ab", "os-image", "os-image", "stable/2905.2.1", "stable/2765.2.6", "downgrade", "taken back"),
    Odd("f997126f", "image", "cilium", None, "1.11.0.1", "install", "new"),
    Odd("f997126f", "image", "cilium-certgen", None, "0.1.5.1", "install", "new"),
    Odd("f997126f", "image", "cilium-operator-generic", None, "1.11.0.1", "install", "new"),
    Odd("f997126f", "image", "hubble-relay", None, "1.11.0.3", "install", "new"),
    # Upgrades that look odd.
    Odd("d7ad818f", "image", "vault", "0.11", "0.11.0-1", "upgrade", "the missing number is 0, then a build"),
    Odd("cc167bbb", "image", "omsa", "18.08.00-3", "18.11.01-1", "upgrade", "numbers with leading zeros"),
    Odd("cc167bbb", "image", "cke", "0.23-1", "0.25-1", "upgrade", "a build after two numbers"),
    Odd("46401f99", "image", "etcd", "3.3.9-4", "3.3.10-1", "upgrade", "10 is after 9"),
    Odd("4301c58e", "image", "cke", "0.28-1", "1.13.3.1", "upgrade", "another numbering, with one prefix"),
    Odd("4301c58e", "image", "etcd", "3.3.10-1", "3.3.11.1", "upgrade", "`-` became `.` on the way"),
    Odd("4301c58e", "image", "sabakan", "1.1.0-1", "1.2.0.1", "upgrade", "`-` became `.` on the way"),
    Odd("949f2db7", "image", "sabakan", "2.0.1.1", "2.1.0-rc.1.1", "upgrade", "to a candidate"),
    Odd("140bce7c", "image", "sabakan", "2.1.0-rc.1.1", "2.1.0.2", "upgrade", "from the candidate"),
    Odd("6b961ea5", "image", "cke", "1.13.10.1", "1.13.10.2", "upgrade", "a build of one release"),
    Odd("e219b683", "image", "cke", "1.13.17.1", "1.13.18", "upgrade", "the build was given up"),
    Odd("a7edc709", "image", "cke", "1.13.18", "1.14.0-rc1", "upgrade", "to a candidate without a dot"),
    Odd("b7b5cdaf", "image", "cke", "1.14.0-rc1", "1.14.0", "upgrade", "from the candidate"),
    Odd("60dcaed1", "deb", "etcdpasswd", "v0.7", "v1.0.0", "upgrade", "two numbers became three"),
    Odd(
        "60dcaed1",
        "deb",
        "neco",
        "release-2019.01.17-1",
        "release-2019.08.14-5916",
        "upgrade",
        "a prefix with a dash, and a date with dots",
    ),
    Odd(
        "9d2fe02d",
        "deb",
        "neco",
        "release-2019.09.19-6537",
        "release-2019.09.27-6738",
        "upgrade",
        "the same again",
    ),
    Odd("1687bd87", "image", "cke", "1.16.1", "1.16.2-rc.1", "upgrade", "to a candidate"),
    Odd("90e63a9b", "image", "cke", "1.16.2-rc.1", "1.16.2", "upgrade", "from the candidate"),
    Odd("5a9fd395", "image", "squid", "3.5.27.1.9", "3.5.27.1.10", "upgrade", "10 is after 9"),
    Odd(
        "4d23e602", "image", "coil", "1.1.9", "2.0.1", "upgrade", "and another registry: the version says it"
    ),
    Odd(
        "323d796d", "os-image", "os-image", "stable/2605.9.0", "stable/2605.10.0", "upgrade", "10 is after 9"
    ),
    Odd("248eec08", "image", "squid", "3.5.27.1.11", "4.13.1", "upgrade", "fewer numbers"),
    Odd("39499c87", "image", "squid", "5.2.2", "5.4.1.1", "upgrade", "more numbers"),
)
