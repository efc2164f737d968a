"""The rating page in a real browser: keys, going back, a reload, the file that is saved. It needs no ComfyUI."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.test_rating import write_methods
from trilora_core.__main__ import main
from trilora_core.rating import read_key
from trilora_core.rating_results import duels, read_votes

CHROMIUM = os.environ.get("CHROMIUM_PATH") or shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = pytest.mark.browser


@pytest.fixture
def tab():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("NOT TESTED IN A BROWSER: no Chromium was found; install chromium or set CHROMIUM_PATH")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1200, "height": 800})
        tab.complaints = []
        tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
        tab.on("console", lambda said: tab.complaints.append(said.text) if said.type == "error" else None)
        yield tab
        browser.close()


def test_a_study_from_page_to_win_rates(tmp_path, tab) -> None:
    folders = write_methods(tmp_path, "one", "two")
    assert main(["rate", *folders, "--output", str(tmp_path / "s.html"), "--pairs", "3", "--question", "Better?"]) == 0
    key = read_key(tmp_path / "s.key.json")
    tab.goto((tmp_path / "s.html").as_uri())
    tab.keyboard.press("ArrowLeft")  # nothing is chosen before there is a rater
    tab.fill("#rater", 'Ada "A", L.')
    tab.keyboard.press("Enter")
    assert tab.inner_text("#count") == "1 of 3" and tab.inner_text("#question") == "Better?"
    assert tab.inner_text("#caption").startswith("prompt ")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("Backspace")
    assert tab.inner_text("#count") == "2 of 3"
    assert tab.eval_on_selector("#left", "side => side.classList.contains('chosen')"), "what was chosen is shown"
    tab.keyboard.press("ArrowRight")
    tab.reload()
    assert tab.inner_text("#count") == "3 of 3" and tab.inner_text("#name") == 'Ada "A", L.'
    assert tab.is_hidden("#start") and tab.eval_on_selector("#left img", "image => image.complete")
    tab.click("#tie")
    assert tab.is_visible("#end") and tab.is_hidden("#rate")
    with tab.expect_download() as saved:
        tab.click("#save")
    assert saved.value.suggested_filename == f"rating-{key.study}-Ada_A_L_.csv"
    saved.value.save_as(tmp_path / "ada.csv")
    votes = read_votes([tmp_path / "ada.csv"], key)
    assert {vote.rater for vote in votes} == {'Ada "A", L.'} and [vote.tie for vote in votes] == [False, False, True]
    assert [vote.winner for vote in votes[:2]] == [key.pairs[0].left, key.pairs[1].right]
    assert sum(duel.wins + duel.losses + duel.ties for duel in duels(votes, key.methods)) == 3
    tab.once("dialog", lambda asked: asked.accept())
    tab.click("#anew")
    assert tab.is_visible("#start") and tab.input_value("#rater") == ""
    tab.reload()
    assert tab.is_visible("#start") and not tab.complaints
