"""The page in a real browser, light, dark and at the width of a phone: drawn, silent, and asking for nothing."""

from __future__ import annotations

import shutil
import threading

import pytest

from muse_core.report.reading import read_runs
from muse_core.report.serving import Reports, server_of
from muse_core.report.writing import write_report

api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
pytest.importorskip("vl_convert", reason="drawing needs vl-convert-python")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BROKEN = """[...document.querySelectorAll("td")].flatMap(cell => {
  if (!cell.firstChild) return [];
  return [...cell.textContent.matchAll(/[^\\s-]+/g)].filter(word => {
    const range = document.createRange();
    range.setStart(cell.firstChild, word.index);
    range.setEnd(cell.firstChild, word.index + word[0].length);
    return word[0].length <= 20 && range.getClientRects().length > 1;
  }).map(word => word[0]);
})"""
"""Words of tables that stand on two lines."""
DRAWN = "document.documentElement.dataset.drawn"


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        if BROWSER is None:
            pytest.skip("needs Chromium: apt-get install chromium")
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser, address, *, width=1100, scheme="light"):
    """The page once it is drawn, and what it said and asked for."""
    heard: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: heard.append(request.url))
    page.on("dialog", lambda dialog: heard.append(dialog.message))
    page.goto(address)
    page.wait_for_function(f"{DRAWN} === '{scheme}'")
    return page, heard


def test_the_page_is_drawn_silently_in_both_schemes_and_fits_a_phone(browser, made_run, tmp_path):
    file = write_report(read_runs([made_run("one"), made_run("two", rate=0.02)]), tmp_path / "out")
    for width, scheme in ((1100, "light"), (390, "dark")):
        page, heard = opened(browser, file.as_uri(), width=width, scheme=scheme)
        assert [one for one in heard if one not in (file.as_uri(), "data:,")] == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(BROKEN) == []
        pictures = page.query_selector_all(".picture")
        assert pictures and all(picture.query_selector("svg .mark-line, svg .mark-rect") for picture in pictures)
        assert all(0 < picture.query_selector("svg").bounding_box()["width"] <= width for picture in pictures)
        page.close()
    page, _ = opened(browser, file.as_uri())
    before = page.inner_html("#picture-throughput")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{DRAWN} === 'dark'")
    assert page.inner_html("#picture-throughput") != before
    page.close()


def test_a_served_page_loads_itself_anew_when_the_run_has_gone_on(browser, made_run):
    from muse_core.metrics.jsonl import Records

    run = made_run("one", finished=False)
    with server_of(Reports([run]), 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        page, heard = opened(browser, address)
        page.wait_for_timeout(300)  # it has asked for the state once
        records = Records(run)
        records.metrics({"event": "train", "stage": 0, "step": 47, "loss": 1.0, "perplexity": 2.0})
        records.close()
        page.get_by_text("47 of 40").wait_for()
        assert {one for one in heard if one != "data:,"} == {address, f"{address}state"}
        page.close()
        server.shutdown()
