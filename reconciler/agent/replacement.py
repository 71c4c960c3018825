"""The agent's replacement: what is handed over, how it is started outside, and the process there. Called by `perform/own`, and run as a module.

The state directory has the note of what is to replace the agent; the process outside (`python -m
reconciler.agent.replacement`) makes that change with the same drivers, and notes what became of it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from reconciler.core.artifact import Artifact, Image, Pin
from reconciler.errors import HostError, ReconcilerError
from reconciler.ground import process
from reconciler.host import place, units
from reconciler.host.containers import Containers
from reconciler.host.driver import Driver, Host
from reconciler.host.ledger import Ledger
from reconciler.host.packages import Packages
from reconciler.host.runtime import storage_environment
from reconciler.wire.artifact import artifact_from_json, artifact_json
from reconciler.wire.document import Fields, decode

NOTE, OUTPUT = "replacement.json", "replacement.log"
_START = 60.0


@dataclass(frozen=True, slots=True)
class Replacement:
    """One hand-over. `by` is the process that has made it, `times` how often this artifact was handed over.

    `outcome` is None as long as the process outside has not ended, then empty, or why it failed. `by_systemd`: there is none,
    systemd itself stops the old agent's container and starts the new one's.
    """

    artifact: Artifact
    pin: Pin | None
    runtime: Literal["auto", "podman", "docker"]
    by: str
    times: int
    outcome: str | None = None
    by_systemd: bool = False


def recall(host: Host) -> Replacement | None:
    """What was handed over last; None where nothing was."""
    path = host.state_dir / NOTE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from None
    fields = Fields(decode(data, str(path)), str(path))
    pin, artifact = fields.mapping("pin"), fields.mapping("artifact")
    return Replacement(
        artifact_from_json("image" if fields.text("kind") == "image" else "deb", artifact),
        Pin(str(pin["digest"]), str(pin["address"])) if pin else None,
        _runtime(fields.text("runtime")),
        fields.text("by"),
        fields.integer("times"),
        fields.text("outcome") if fields.boolean("ended", False) else None,
        fields.boolean("by_systemd", False),
    )


def _runtime(word: str) -> Literal["auto", "podman", "docker"]:
    match word:
        case "podman" | "docker" as asked:
            return asked
        case _:
            return "auto"


def forget(host: Host) -> None:
    """The next hand-over is a first one."""
    with contextlib.suppress(FileNotFoundError):
        (host.state_dir / NOTE).unlink()


def hand_over(wanted: Replacement, host: Host) -> None:
    """Note it, and start what replaces the agent, outside of all that ends with it. Raises `HostError`."""
    image = wanted.artifact if isinstance(wanted.artifact, Image) else None
    unit = image.container.unit if image and image.container else None
    if image is not None and unit and units.has_systemd(host):
        _note(replace(wanted, by_systemd=True), host)
        Containers(host, Ledger.open(host), runtime=wanted.runtime).hand_to_systemd(image, wanted.pin)
        return
    if host.exec != "direct":
        raise HostError(
            f"cannot replace the agent's container on server {host.lrn} from inside it: give it a `unit`, so that the host's "
            "systemd starts the new one"
        )
    _note(wanted, host)
    command = [sys.executable, "-m", __name__, str(host.root), str(host.state_dir), str(host.lrn)]
    if units.has_systemd(host):
        # A unit of its own: neither its control group nor its end is the agent's.
        settings = [f"--setenv={name}={value}" for name, value in sorted(storage_environment().items())]
        name = f"--unit=reconciler-replacement-{wanted.by[:12]}-{wanted.times}"
        process.run(["systemd-run", "--quiet", "--collect", name, *settings, *command], timeout=_START)
    else:
        inherited = place.inherited(host)
        process.launch([*command, *map(str, inherited)], output=host.state_dir / OUTPUT, pass_fds=inherited)


def main(words: Sequence[str]) -> int:
    """The process outside: ROOT STATE-DIR NUMBER [LOCK]. `LOCK` is the descriptor that keeps the next agent off until this one has ended."""
    root, state_dir, lrn, *lock = words
    host = Host(Path(root), "direct", Path(state_dir), int(lrn), lock_fd=int(lock[0]) if lock else None)
    wanted = recall(host)
    if wanted is None:
        return 0
    try:
        _driver(wanted, host).apply(wanted.artifact, wanted.pin)
        outcome = ""
    except ReconcilerError as error:
        outcome = str(error)
    except Exception as error:  # the agent waits for an outcome, whatever it is
        traceback.print_exc()
        outcome = f"an error in what replaces it: {type(error).__name__}: {error}"
    _note(replace(wanted, outcome=outcome), host)
    return 1 if outcome else 0


def _driver(wanted: Replacement, host: Host) -> Driver:
    ledger = Ledger.open(host)
    if isinstance(wanted.artifact, Image):
        return Containers(host, ledger, runtime=wanted.runtime)
    return Packages(host, ledger)


def _note(noted: Replacement, host: Host) -> None:
    document: dict[str, Any] = {
        "kind": noted.artifact.key.kind,
        "artifact": artifact_json(noted.artifact),
        "pin": {"digest": noted.pin.digest, "address": noted.pin.address} if noted.pin else {},
        "runtime": noted.runtime,
        "by": noted.by,
        "times": noted.times,
        "ended": noted.outcome is not None,
        "outcome": noted.outcome or "",
        "by_systemd": noted.by_systemd,
    }
    place.publish(host.state_dir / NOTE, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
