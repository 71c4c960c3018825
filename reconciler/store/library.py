"""etcd3's messages and stubs, and gRPC, made to work with the protobuf of today. Called by what speaks to etcd in `store`.

etcd3 0.12.0's stubs are used, and none of its own calls: they ignore options, wait for ever, or spin while etcd is
away. Its generated modules do not import with protobuf 4 and later, so they are rebuilt from the descriptors that
they carry. All of it is imported by the first who asks: it is most of what a dry run costs at its start.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from reconciler.errors import ReconcilerError
from reconciler.ground.imports import left_out

_loaded: list[tuple[Any, Any]] = []
_loading = threading.Lock()


def etcd_and_grpc() -> tuple[Any, Any]:
    """etcd3's messages and stubs, and gRPC, imported by the first who asks."""
    if not _loaded:
        with _loading:
            if not _loaded:
                _loaded.append(_load())
    return _loaded[0]


def _load() -> tuple[Any, Any]:
    # gRPC writes its own log lines to standard error, which is ours.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        with left_out("grpc.aio", whole=True):
            import grpc
            from grpc import _common
        with left_out("etcd3") as folder:
            _rebuild_generated_modules(folder / "etcdrpc")
            import etcd3.etcdrpc as rpc
    except ModuleNotFoundError as error:
        raise ReconcilerError(
            f"cannot talk to etcd: the Python package {error.name} is missing; install this program anew"
        ) from None

    # A thread that waits for a stream's next message is woken ten times a second, only to wait again: in a daemon that
    # idles, a third of what it costs. A message, an error and a cancellation wake it at once.
    _common.MAXIMUM_WAIT_TIMEOUT = 2.0
    return rpc, grpc


def _rebuild_generated_modules(folder: Path) -> None:
    """Put working `etcd3.etcdrpc.{kv,auth,rpc}_pb2` in place of those that protobuf 4 and later refuse.

    Each carries its serialized descriptor as one literal; protobuf's own builder makes the classes from it. The
    descriptors go into a pool of their own: names such as `rpc.proto` are not etcd's alone.
    """
    import ast
    import re

    from google.protobuf import descriptor_pool
    from google.protobuf.internal import builder

    pool = descriptor_pool.DescriptorPool()
    for name in ("kv", "auth", "rpc"):
        source = (folder / f"{name}_pb2.py").read_text(encoding="latin-1")
        literal = re.search(r"serialized_pb=(?:_b\()?(b?'(?:[^'\\\n]|\\.)*')", source)
        if literal is None:
            raise ReconcilerError(
                f"cannot talk to etcd: {folder / name}_pb2.py is not etcd3 0.12.0's; install that version"
            )
        value = ast.literal_eval(literal[1])
        serialized = value if isinstance(value, bytes) else value.encode("latin-1")
        descriptor = pool.AddSerializedFile(serialized)
        module = ModuleType(f"etcd3.etcdrpc.{name}_pb2")
        module.__dict__["DESCRIPTOR"] = descriptor
        builder.BuildMessageAndEnumDescriptors(descriptor, module.__dict__)
        builder.BuildTopDescriptorsAndMessages(descriptor, module.__name__, module.__dict__)
        sys.modules[module.__name__] = module
