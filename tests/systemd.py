"""A host root where systemd seems to run: `systemctl` is a script that does what it is documented to do with a simple service."""

from __future__ import annotations

from pathlib import Path

_SYSTEMCTL = """#!/bin/bash
# What systemctl does with a service that is started by one command. It is systemd that starts it: who asks hands nothing down.
for fd in $(ls /proc/$$/fd); do [ "$fd" -le 2 ] || [ "$fd" -eq 255 ] || eval "exec $fd>&-"; done
root=$(cat "$0.root")
echo "$*" >> "$0.log"
verb=$1; shift
case $1 in --*) shift ;; esac
unit=$root/etc/systemd/system/$1
case $verb in
daemon-reload) exit 0 ;;
esac
[ -e "$unit" ] || { echo "Unit $1 not loaded." >&2; exit 5; }
run() { sed -n "s/^$1=-*//p" "$unit" | sed 's/%%/%/g; s/[$][$]/$/g' | while read -r line; do eval "env $(sed -n 's/^Environment=//p' "$unit" | tr '\\n' ' ') $line" </dev/null >/dev/null || exit 1; done; }
case $verb in
enable) touch "$unit.enabled" ;;
disable) rm -f "$unit.enabled" ;;
stop) run ExecStop; run ExecStopPost; exit 0 ;;
restart) run ExecStop; run ExecStopPost; run ExecStart ;;
esac
"""


class Systemd:
    """`systemctl` in `directory`, and with `boot` a host root where systemd seems to run."""

    def __init__(self, directory: Path) -> None:
        self._program = directory / "systemctl"
        directory.mkdir()
        self._program.write_text(_SYSTEMCTL)
        self._program.chmod(0o755)

    def boot(self, root: Path) -> None:
        """From now on `root` is where units stand and run."""
        self._program.with_name("systemctl.root").write_text(str(root))
        (root / "run/systemd/system").mkdir(parents=True)
        (root / "etc/systemd/system").mkdir(parents=True, exist_ok=True)

    @property
    def calls(self) -> list[str]:
        log = self._program.with_name("systemctl.log")
        return log.read_text().splitlines() if log.exists() else []
