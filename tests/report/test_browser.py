"""The page in a real browser: silent, alone, and no wider than the screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from medssl.report import read_examples, write_report

from .browser import Browser
from .conftest import Made


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    examples = read_examples(made.store, made.runs)
    kept = {"probe": made.probe, "compare": made.compare, "store": made.store}
    return write_report(made.run, **kept, examples=examples, out=out).out


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["laptop", "phone"])
def test_the_page_shows_without_complaint_or_request(browser: Browser, page: Path, width: int, scheme: str) -> None:
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(page, width=width, scheme=scheme)
    assert browser.complaints == []
    assert {url for url in browser.requests if not url.startswith("data:")} == {page.as_uri()}
    assert browser.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert browser.value("[...document.querySelectorAll('svg')].every(s => s.getBoundingClientRect().height > 100)")
    assert browser.value("document.querySelectorAll('h2').length") == 5


def test_ink_and_lines_stand_out_in_light_and_dark(browser: Browser, page: Path) -> None:
    for scheme in ("light", "dark"):
        browser.open(page, scheme=scheme)
        ratio = """(() => {
            const probe = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
            const light = name => {
                probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name);
                probe.fillRect(0, 0, 1, 1);
                const c = [...probe.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v / 255)
                    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2];
            };
            const against = name => {
                const [a, b] = [light(name), light('--page')].sort((x, y) => y - x);
                return (a + 0.05) / (b + 0.05);
            };
            return ['--ink', '--soft', '--series-1', '--series-2'].map(against);
        })()"""
        ink, soft, one, two = browser.value(ratio)
        assert ink > 7, scheme  # WCAG 2.2, 1.4.6
        assert soft > 4.5, scheme  # 1.4.3
        assert min(one, two) > 3, scheme  # 1.4.11


def test_the_page_prints(browser: Browser, page: Path, tmp_path: Path) -> None:
    browser.open(page)
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
