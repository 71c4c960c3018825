"""`schemathesis` against the page that is served: whatever fits it, and what does not, is answered as it says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.web.agent import Behind, serving

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
PROGRAM = shutil.which("schemathesis", path=str(Path(sys.executable).parent)) or shutil.which("schemathesis")


@pytest.mark.skipif(PROGRAM is None, reason="needs schemathesis")
@pytest.mark.parametrize("header", ["X-Gitlab-Token: s3cret", "X-Gitlab-Token: guess"])
def test_every_answer_is_as_the_page_says(tmp_path: Path, header: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    with serving(Behind(), webhook_secret_file=secret) as server:
        url = f"http://127.0.0.1:{server.port}"
        done = subprocess.run(
            [
                PROGRAM or "schemathesis", "run", "--url", url, "--header", header, "--max-examples", "40",
                "--checks", CHECKS,
                "--seed", "1", "--no-color", f"{url}/openapi.json",
            ],
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout
