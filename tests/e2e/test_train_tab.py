"""The tab "Train" of the app in a real browser: a training is started, outlives the page, is stopped, goes on, ends."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import SMALL, environment, metrics, served_app, wait_for_no_process_with
from test_app import press_until
from tryon.app.page import Page
from tryon.app.session import Session
from tryon.app.train_page import SOURCES, TrainPage, check_table
from tryon.config import TryOnConfig
from tryon.runs import find_lora, process_of

pytestmark = pytest.mark.e2e

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Steps that are long enough to press a button in one.
SLOW = (*SMALL, "--height", "96", "--width", "64", "--gradient_accumulation_steps", "16", "--validation_steps", "100")


@pytest.fixture
def page_url(tmp_path: Path, data_cache: Path) -> Iterator[str]:
    """The app without any LoRA."""
    variables = environment(tmp_path / "runs")
    with served_app("--train", "--data_cache_dir", data_cache, variables=variables) as url:
        yield url


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")
def test_a_training_outlives_the_page_is_stopped_and_goes_on(page_url: str, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=120_000)  # a machine may be busy
    run = tmp_path / "runs" / "first"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def opened():
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(120_000)
            page.goto(page_url)
            return page

        def screenshot(name: str) -> None:
            if folder := os.environ.get("TRYON_SCREENSHOTS"):
                page.wait_for_timeout(1000)
                page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

        page = opened()
        expect(page.locator("#run-state")).to_contain_text("There is no run yet.")
        name, steps = page.locator("#name").bounding_box(), page.locator("#train-steps").bounding_box()
        assert name["height"] == steps["height"], "boxes side by side are of one height"
        page.locator("#name textarea, #name input").fill("first")
        page.locator("#note textarea, #note input").fill("<b>is it red?")
        page.locator("#train-steps textarea, #train-steps input").fill("6")
        page.get_by_text("Further flags").click()
        page.locator("#more textarea").fill(" ".join(SLOW))
        page.locator("#start").click()
        expect(page.locator("#train-said")).to_contain_text("Started: first.")
        page.get_by_role("tab", name="Try on").click()
        expect(page.locator("#about")).to_contain_text("There is no LoRA yet")
        page.locator("#examples img").first.click()
        press_until(page, page.locator("#find"), "There is no LoRA yet")
        page.close()
        assert os.getsid(process_of(run)) == process_of(run), "it outlives the app and its terminal too"

        page = opened()
        state = page.locator("#run-state")
        expect(state).to_contain_text(re.compile("Running, step [1-5] of 6; about .* left"))
        expect(page.locator("#grid-said")).to_have_text("Validation pictures of step 0, before the training:")
        expect(page.locator("#runs")).to_contain_text("<b>is it red?")
        page.locator("#stop-run").click()
        expect(state).to_contain_text(re.compile("Stopped, step [1-5] of 6"))
        expect(state).not_to_contain_text("SIG")
        assert max(metrics(run)) < 6
        page.locator("#train-steps textarea, #train-steps input").fill("7")
        page.locator("#resume").click()
        expect(state).to_contain_text("Starting")
        expect(state).to_contain_text(re.compile("Loading, step [1-5] of 6"))
        expect(state).not_to_contain_text("left")
        expect(page.locator("#train-said")).to_contain_text("first goes on to step 7.")
        expect(state).to_contain_text("Finished, step 7 of 7")
        expect(state).to_contain_text(f"--init_lora {run} in Further flags")
        expect(page.locator("#resume")).to_be_enabled()
        expect(state).to_contain_text(str(run / "report.html"))
        expect(page.locator("#grid-said")).to_have_text("Validation pictures of step 7:")
        expect(page.locator("#grid img")).to_be_visible()
        expect(page.locator("#training")).to_be_visible()
        screenshot("train_desktop")

        # Its LoRA is tried on in the tab that was there before it, and in a page that is opened now.
        for reload in (False, True):
            if reload:
                page.reload()
            page.get_by_role("tab", name="Try on").click()
            expect(page.locator("#lora input")).to_have_value("first, step 7 (newest)")
            expect(page.locator("#about")).to_contain_text("Profile quick_test, step 7;")
        page.locator("#examples img").first.click()
        press_until(page, page.locator("#dress"), "pixels (height x width)")
        expect(page.locator("#result img").first).to_be_visible()
        expect(page.locator("#dress")).to_be_enabled()
        page.get_by_role("tab", name="Train").click()

        page.set_viewport_size({"width": 390, "height": 844})
        page.locator("#delete").click()
        expect(page.locator("#question")).to_contain_text("Delete first with all its LoRAs")
        assert page.evaluate("document.documentElement.scrollWidth") == 390, "nothing is wider than a phone"
        assert page.locator("#runs").evaluate("table => table.scrollWidth - table.clientWidth") == 0, "nor is the table"
        assert page.locator("#runs td").first.bounding_box()["width"] > 90, "long names of runs take few lines"
        screenshot("train_phone")
        page.locator("#yes").click()
        expect(state).to_contain_text("There is no run yet.")
        browser.close()
    assert not run.exists()
    wait_for_no_process_with(str(run))


def test_the_try_on_is_the_other_tab_with_its_endpoints_and_new_loras(run: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(run / "checkpoint-1", runs / "older" / "checkpoint-1")
    first = find_lora(str(runs))
    session = Session(TryOnConfig(), lambda *_: None, lambda facts: None, first, runs, tmp_path, None, None)
    try_on = Page(session, [], lambda facts: "")
    alone = list(try_on.blocks.get_api_info()["named_endpoints"])
    page = TrainPage(try_on, runs, [])
    assert list(page.blocks.get_api_info()["named_endpoints"]) == alone and "/try_on" in alone
    (first_of_start,) = (each for each in page.blocks.fns.values() if (page.start_button._id, "click") in each.targets)
    assert first_of_start.fn()[page.plan] == "", "no plan stays below a refusal"
    shutil.copytree(run / "checkpoint-1", runs / "trained meanwhile" / "checkpoint-2")
    os.utime(find_lora(str(runs / "trained meanwhile")))
    listed = try_on.list_loras({try_on.lora: str(first), try_on.others: []})
    assert any(name.startswith("trained meanwhile, step 2") for name, _ in listed[try_on.lora].choices)
    said = page.conclude_check([["checked", "found", "allowed"], ["fit for this run: ", "everything is right"]])
    assert "fit for this run" in said[page.said] and "fit for" not in said[page.plan], "the verdict is said once"
    labels = {name: page.name_data({page.source: name})[page.data] for name in SOURCES}
    assert [(box.visible, box.label) for box in labels.values()] == [
        (False, ""), (True, "Folder"), (True, "Name on the hub")
    ]  # fmt: skip
    assert "VITON-HD, DressCode, or image/ and cloth/ alone" in labels["a folder of photographs"].info


def test_what_is_right_in_a_check_is_folded() -> None:
    rows = [["checked", "found", "allowed"], ["a", "0", "1", "right"], ["b", "9", "1", "WRONG"], ["a step", "2 s"]]
    first, folded = check_table(rows).split("<details>")
    assert "WRONG" in first and "a step" in first and "right" not in first
    assert folded.startswith("<summary>1 part right</summary>")
    assert "<details>" not in check_table(rows[2:]), "nothing is right"
