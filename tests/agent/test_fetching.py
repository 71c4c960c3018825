"""What is said of fetches that are under way."""

from __future__ import annotations

from reconciler.agent.fetching import Fetching
from reconciler.core.artifact import OS_IMAGE, Key


def test_what_is_waited_for_is_told_in_bytes() -> None:
    onward: list[tuple[str, int, int | None]] = []
    fetching = Fetching(lambda *told: onward.append(told))
    fetching.take("image/web", 12_300_000, 200_100_000)
    fetching.take("deb/endless", 5_000_000, None)
    fetching.take(f"{OS_IMAGE.subject} kernel", 50_000_000, 50_000_000)
    fetching.take(f"{OS_IMAGE.subject} initrd", 1_000_000, 400_000_000)
    waited_for = [Key("image", "web"), Key("image", "webby"), OS_IMAGE, Key("deb", "endless")]
    assert fetching.text(waited_for) == (
        "fetches deb/endless 5.0 MB, image/web 12.3 of 200.1 MB, image/webby, os-image 51.0 of 450.0 MB"
    )
    assert onward[0] == ("image/web", 12_300_000, 200_100_000)
    fetching.begin()
    assert fetching.text([Key("image", "web")]) == "fetches image/web"
