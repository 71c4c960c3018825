"""The OpenAPI page of the agent's HTTP interface, made from the schemas that the answers are checked with. Called by `app`.

`python -m reconciler.web.openapi` prints it, as it stands in `docs/openapi.json`.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from typing import Any

from reconciler import __version__
from reconciler.wire.schema import load

_SECURITY: list[dict[str, list[str]]] = [{}, {"token": []}]


def document() -> dict[str, Any]:
    """The page: OpenAPI 3.1, whose schemas are JSON Schema as it is."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "reconciler agent",
            "version": __version__,
            "description": "What an agent shows, and the one thing that it can be told: fetch now.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://127.0.0.1:8470"}],
        "paths": {
            "/livez": {"get": _probe("livez", "Whether every loop gives signs of life")},
            "/readyz": {
                "get": _probe(
                    "readyz",
                    "Whether the agent can work: its loops live, it has read a revision, and reaches etcd",
                )
            },
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "summary": "Metrics for Prometheus",
                    "security": _SECURITY,
                    "responses": {
                        "200": {
                            "description": "Prometheus' text format",
                            "content": {"text/plain": {"schema": {"type": "string"}}},
                        },
                        **_errors("401"),
                    },
                }
            },
            "/hooks/git": {"post": _hook()},
            "/api/v1/status": {"get": _read("status", "What `reconcile status --output json` prints")},
            "/api/v1/plan": {
                "get": _read("plan", "What `reconcile --dry-run --all --output json` prints", "409")
            },
            "/openapi.json": {
                "get": {
                    "operationId": "openapi",
                    "summary": "This page",
                    "security": _SECURITY,
                    "responses": {"200": _json("This page", {"type": "object"}), **_errors("401")},
                }
            },
        },
        "components": {
            "schemas": {**_schema("status"), **_schema("plan"), "health": _HEALTH, "error": _ERROR},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The content of --token-file; wanted where --listen is not loopback, or a token file is given.",
                }
            },
        },
    }


_HEALTH = {
    "type": "object",
    "additionalProperties": False,
    "required": ["ok", "reasons"],
    "properties": {
        "ok": {
            "type": "boolean",
            "description": "Whether it is so; the status says the same.",
            "examples": [True],
        },
        "reasons": {
            "type": "array",
            "description": "What is overdue or missing, each as a sentence. git or a registry that is away stands here too, and leaves an agent ready.",
            "items": {"type": "string"},
            "examples": [[]],
        },
    },
}
_ERROR = {
    "type": "object",
    "additionalProperties": False,
    "required": ["error"],
    "properties": {"error": {"type": "string", "description": "Why there is no other answer."}},
}
_MEANINGS = {
    "400": "The body cannot be read",
    "401": "The token, signature or secret is wrong",
    "404": "Webhooks are off here",
    "409": "The desired state cannot be planned: it is refused, and the message says why",
    "413": "The body is larger than 1 MiB",
    "503": "Nothing has been looked at yet",
}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _errors(*statuses: str) -> dict[str, Any]:
    return {status: _json(_MEANINGS[status], _ref("error")) for status in statuses}


def _probe(name: str, summary: str) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": _json("It is so", _ref("health")), "503": _json("It is not", _ref("health"))},
    }


def _read(name: str, summary: str, *errors: str) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "description": "From what the agent's loops last read.",
        "security": _SECURITY,
        "responses": {"200": _json(summary, _ref(name)), **_errors("401", *errors, "503")},
    }


def _hook() -> dict[str, Any]:
    def header(name: str, words: str) -> dict[str, Any]:
        return {"name": name, "in": "header", "description": words, "schema": {"type": "string"}}

    push = {"schema": {"type": "object", "description": "The push, as the host describes it."}}
    form = {
        "schema": {
            "type": "object",
            "required": ["payload"],
            "properties": {
                "payload": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "description": "The same, as text.",
                }
            },
        }
    }
    answer = {
        "type": "object",
        "additionalProperties": False,
        "required": ["fetch", "reason"],
        "properties": {
            "fetch": {"type": "boolean", "description": "Whether git is fetched for it."},
            "reason": {"type": ["string", "null"], "description": "Why not."},
        },
    }
    return {
        "operationId": "hook",
        "summary": "A push webhook of GitHub, GitLab or Gitea: fetch now",
        "description": "One of the three headers proves that the sender knows the secret of --webhook-secret-file.",
        "parameters": [
            header("X-Hub-Signature-256", "GitHub: `sha256=` and the body's HMAC in hex."),
            header("X-Gitea-Signature", "Gitea: the body's HMAC in hex."),
            header("X-Gitlab-Token", "GitLab: the secret itself."),
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": push, "application/x-www-form-urlencoded": form},
        },
        "responses": {
            "202": _json("Fetched for, or ignored with a reason", answer),
            **_errors("400", "401", "404", "413"),
        },
    }


def _schema(name: str) -> dict[str, Any]:
    """A schema and its definitions, as components: `#/$defs/x` of it becomes `#/components/schemas/x`."""
    whole = {key: value for key, value in load(name).items() if key not in ("$schema", "$id", "$defs")}
    parts = {name: whole, **load(name).get("$defs", {})}
    moved: dict[str, Any] = json.loads(json.dumps(parts).replace('"#/$defs/', '"#/components/schemas/'))
    return moved


@cache
def body() -> bytes:
    """The page as text."""
    return json.dumps(document(), indent=2, ensure_ascii=False).encode() + b"\n"


if __name__ == "__main__":
    sys.stdout.write(body().decode())
