"""A declarative GitOps reconciler for the servers that come before Kubernetes."""

__version__ = "0.1.0"
