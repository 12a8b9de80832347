from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import chromium
from kit import SMALL, Dira, kit
from PIL import Image

from dira_core.report.page import Chart, Page, Pictures, Section, render, tile

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    '" onload="alert(1)',
    "<script>alert(1)<",
    "' onmouseover='alert(1)",
    "[link=http:x]red[",
    "{{ 7 * 7 }}{% raw %}",
    "\x1b[31mred",
    "&lt;script&gt;",
    "=cmd|calc",
]
"""Names of files, as far as a disk takes them (case 36 of injections)."""


class Tags(HTMLParser):
    """Collect what a browser would act on."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def harmless(page: str) -> Tags:
    """Check that a page has no script, no handler, and asks for nothing."""
    found = Tags(page)
    assert {"script", "iframe", "object", "form", "a"}.isdisjoint(found.names)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    asking = [value for name, value in found.attributes if name in ("src", "href", "data")]
    assert all(value.startswith("data:") for value in asking)
    return found


@pytest.mark.parametrize("name", [*HOSTILE, "</title><script>alert(1)</script>"])
def test_every_text_of_a_page_is_text(name: str) -> None:
    picture = tile(np.zeros((2, 2), np.uint8), name)
    section = Section(
        name, name, [(name, name)], [Chart(name, "")], [Pictures(name, [name], [[picture]])]
    )
    found = harmless(render(Page(name, name, [section], [name])))
    assert found.text.count(name.replace("&lt;", "<").replace("&gt;", ">")) >= 8 or "&" in name
    assert ("alt", name) in found.attributes


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_report_of_a_run_on_hostile_names_is_quiet_in_a_browser(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, dira: Dira
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for number, name in enumerate(HOSTILE):
        pixels = rng.integers(0, 255, (16, 16)).astype(np.uint8)
        Image.fromarray(pixels).save(images / f"{name}{number}.png", "PNG")
    flags = [*SMALL]
    flags[flags.index("small-set")] = str(images)
    with kit(tmp_path_factory.mktemp("kit")):
        code, _, err = dira("run", *flags, "--name", "mine")
        assert code == 0, err
        run = (tmp_path / "runs/mine").rename(tmp_path / "runs/<svg onload=alert(1)>")
        with (run / "metrics.jsonl").open("a") as file:
            alarm = {"step": 4, "alarm": "<script>alert(1)</script>"}
            file.write(json.dumps(alarm) + "\n")
        code, _, err = dira("report", str(run))
    assert code == 0, err
    path = run / "report.html"
    found = harmless(path.read_text())
    for said in ("Critic", "Restorations", "Nearest", "gradients/cos_dis_res", "<script>alert"):
        assert said in found.text
    assert found.names.count("img") == 6 * 4 + 6 * 4 + 6 * 6
    looked_at(path, tmp_path / "profile", found.names.count("img"))


def looked_at(path: Path, profile: Path, pictures: int) -> None:
    """Open a page: every picture loads, the console is silent, nothing else is asked for."""
    with chromium(profile) as browser:
        browser.get_log("performance")
        browser.get(path.as_uri())
        sizes = browser.execute_script("return [...document.images].map(i => i.naturalWidth)")
        console = browser.get_log("browser")
        events = [json.loads(each["message"])["message"] for each in browser.get_log("performance")]
    assert len(sizes) == pictures
    assert all(sizes)
    assert console == []
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    page = path.as_uri()  # a browser's own first tab asks for things as well
    asked = {each["request"]["url"] for each in sent if each["documentURL"] == page}
    assert {url for url in asked if not url.startswith("data:")} == {page}


def test_a_folder_of_something_else_is_refused(tmp_path: Path, dira: Dira) -> None:
    code, _, err = dira("report", str(tmp_path))
    assert code == 2
    assert "neither a run nor a study" in err
