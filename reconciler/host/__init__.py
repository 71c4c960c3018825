"""One server, and how it is changed: a driver for each kind of artifact, policy, ledger, reboot and health."""
