"""`schemathesis` against the page that is served: whatever fits it, and what does not, is answered as it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.web.agent import Behind, serving

PROGRAM = Path(sys.executable).with_name("schemathesis")
NOT_CHECKED = "positive_data_acceptance"
"""A body may fit the page and be no push of ours: that a form's `payload` is JSON, for instance, a schema cannot say."""


@pytest.mark.parametrize(
    ("header", "examples"), [("X-Gitlab-Token: s3cret", 30), ("X-Gitlab-Token: guess", 10)]
)
def test_every_answer_is_as_the_page_says(tmp_path: Path, header: str, examples: int) -> None:
    """With the secret and without it; methods that are not there and headers that are broken among them."""
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    with serving(Behind(), webhook_secret_file=secret) as server:
        url = f"http://127.0.0.1:{server.port}"
        argv: list[str | Path] = [
            PROGRAM,
            "run",
            "--url",
            url,
            "--header",
            header,
            "--no-color",
            "--seed",
            "1",
        ]
        argv += ["--max-examples", str(examples), "--checks", "all", "--exclude-checks", NOT_CHECKED]
        argv += [f"{url}/openapi.json"]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    assert "❌" not in done.stdout
