"""The app in a real browser and through its client: try-ons, masks, the history, messages, nothing from any network."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import urlopen

import gradio as gr
import numpy as np
import pytest
from gradio.data_classes import FileData
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import ExifTags, Image, ImageOps

from app_lora import first_lora, main, read_users
from conftest import PROJECT
from launch import served_app
from test_inference import with_facts
from tryon.app.layout import describe
from tryon.app.mask_layers import as_paint
from tryon.app.page import Page
from tryon.app.session import Session, panel_sizes, recipe_of_result
from tryon.app.take_off_page import TakeOffPage, in_tabs
from tryon.config import TOY_NOTICE, TryOnConfig
from tryon.data.category import MaskRule
from tryon.flux.lora_header import read_facts
from tryon.flux.prompts import TRY_OFF_PROMPT
from tryon.inference.pipeline import TryOnModel, load_try_on, usable_rule
from tryon.inference.recipe import read_recipe
from tryon.runs import find_lora, lora_name
from tryon.toy.draw import write_pictures
from tryon.toy.model import use_toy_model_for_try_on

pytestmark = pytest.mark.e2e

# What screen readers read aloud.
SPOKEN = "document.querySelectorAll('[aria-live]').forEach((live) => window.spoken.add(live.textContent))"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def loras(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two runs with a LoRA each, the newer one at another step."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(run / "checkpoint-1", folder / "older" / "checkpoint-1")
    shutil.copytree(run / "checkpoint-1", folder / "newer" / "checkpoint-2")
    for name, age in (("older/checkpoint-1", 100), ("newer/checkpoint-2", 0)):
        file = find_lora(str(folder / name))
        os.utime(file, (file.stat().st_mtime - age,) * 2)
    return folder


@pytest.fixture(scope="module")
def page_url(loras: Path, data_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    variables = {**os.environ, "HF_HOME": str(tmp_path_factory.mktemp("home"))}
    with served_app("--lora", loras, "--data_cache_dir", data_cache, variables=variables) as url:
        yield url


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's examples, in the size of photographs: person-1.png wears something lower-body."""
    folder = tmp_path_factory.mktemp("drawn")
    write_pictures(folder)
    (folder / "words.png").write_text("no picture")
    return folder


def picture_of(page, selector: str) -> np.ndarray:
    """The picture that an <img> of the page shows."""
    source = page.locator(selector).first.get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(page.request.get(source).body())).convert("RGB"))


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")
def test_a_person_is_dressed_in_the_browser(page_url: str, drawn: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=120_000)  # a machine may be busy
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(120_000)
        asked: list[str] = []
        errors: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.add_init_script(f"window.spoken = new Set(); setInterval(() => {SPOKEN}, 100)")
        page.goto(page_url)
        dress, said = page.locator("#dress"), page.locator("#said")
        expect(page.locator("#about")).to_contain_text(f"Toy model: {TOY_NOTICE}.")
        expect(page.get_by_text("Upload an image")).to_be_visible()
        expect(page.get_by_text("select the draw tool to start")).to_be_hidden()

        def slide(name: str, value: int) -> None:
            """Sets a slider by its number, again where the page, still unfolding, has put the old one back."""
            number, range_ = page.locator(f"#{name} input[type=number]"), page.locator(f"#{name} input[type=range]")
            for _ in range(60):
                number.fill(str(value))
                number.press("Tab")
                page.wait_for_timeout(500)
                if range_.input_value() == str(value):
                    return
            raise AssertionError(f"{name} stays at {range_.input_value()}")

        def assert_seen(*names: str) -> None:
            for name in names:
                box = page.locator(f"#{name}").bounding_box()
                assert box["y"] >= 0 and box["y"] + box["height"] <= 800, f"{name} is seen without scrolling"
                assert box["x"] >= 0 and box["x"] + box["width"] <= 1280, f"{name} is not cut off"

        def screenshot(name: str) -> None:
            if folder := os.environ.get("TRYON_SCREENSHOTS"):
                page.wait_for_timeout(1000)
                page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

        # A file that the editor cannot open is refused in words.
        dress.click()
        expect(said).to_contain_text("Give a picture of the person first.")
        refused = "This file is no picture that can be read"
        give_until(page, page.locator("#person input[type=file]").first, drawn / "words.png", refused)
        assert set(errors) == {"The source image could not be decoded."}
        errors.clear()
        page.reload()

        # What is missing is said, one thing after the other.
        dress.click()
        expect(said).to_contain_text("Give a picture of the person first.")
        page.locator("#person input[type=file]").first.set_input_files(str(drawn / "person-1.png"))
        expect(said).to_have_text("Give a garment, or press an example.")
        press_until(page, dress, "Give a picture of the garment first.")
        garment = page.locator("#garment input[type=file]").first
        garment.set_input_files(str(drawn / "words.png"))
        expect(page.locator("#garment-said")).to_contain_text(refused)
        expect(page.locator("#garment img")).to_have_count(0)  # one given before is another test's
        garment.set_input_files(str(drawn / "garment-1.png"))
        expect(page.locator("#garment img")).to_have_attribute("src", re.compile("garment-1.png$"))
        expect(said).to_contain_text("Person and garment are there: press Dress.")

        # Where nothing is painted, a mask is made and shown, as the button would make it.
        page.locator("#category").get_by_text("lower").click()
        dress.click()
        expect(said).to_contain_text("768 x 576 pixels")
        expect(page.locator("#history img")).to_have_count(1)
        screenshot("app_mask_made")

        # The parser makes a mask; what is painted and erased on it stays when a slider makes it larger.
        page.locator("#find").click()
        expect(said).to_contain_text("The pink area will be repainted: 36% of the picture.")
        page.wait_for_timeout(1000)  # nothing on the page says when the editor has drawn

        def draw(row: float) -> None:
            """A stroke from the picture's middle at a share of its height."""
            page.evaluate("window.scrollTo(0, 0)")
            box = page.locator("#person canvas").first.bounding_box()
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] * row
            page.mouse.move(x, y)
            page.mouse.down()
            page.mouse.move(x + 10, y + 8, steps=4)
            page.mouse.up()

        draw(0.25)
        page.locator("#person").get_by_label("Erase").click()
        draw(0.8)
        page.get_by_text("Change the mask").click()
        slide("further-up", 4)
        for _ in range(6):
            page.locator("#further-up input[type=range]").press("ArrowRight")
        expect(said).to_contain_text("The pink area will be repainted: 42% of the picture.")
        page.wait_for_timeout(1000)

        # Two results of a seed, at the photograph's own size.
        page.locator("#settings").get_by_text("Settings").click()
        page.locator("#random input").uncheck()
        page.locator("#seed input").fill("7")
        slide("count", 2)
        dress.click()
        expect(said).to_contain_text("Seeds 7 to 8; 768 x 576 pixels (height x width).")
        expect(page.locator("#results img")).to_have_count(2)
        expect(dress).to_be_enabled()
        person = np.asarray(Image.open(drawn / "person-1.png").convert("RGB"))
        first = picture_of(page, "#results img")
        changed = (first != person).any(-1)
        rows = np.flatnonzero(changed[:, 200:376].mean(1) > 0.5)
        assert changed[-20:, 200:376].mean() > 0.9, "down to the lower edge"
        assert 255 < rows[rows > 200][0] < 285, "from the waist, row 352, up by a tenth and a little"
        assert changed[60:250].any() and not changed[:40].any(), "a stroke of the brush above, and nothing else"
        assert not changed[650:665, 286:300].any(), "and one of the eraser below"
        captions, shown = page.locator("#results .caption-label"), page.locator("#shown")
        for number, seed in ((0, 7), (1, 8)):
            expect(captions).to_have_text(["newer, step 2, seed 7", "newer, step 2, seed 8"])
            page.locator("#results img").nth(number).click()
            expect(shown).to_have_text(f"After: newer, step 2, seed {seed}")
            expect(page.locator("#results")).to_be_hidden()
            with page.expect_download() as download:
                page.locator("#result").get_by_label("Download").click()
            assert download.value.suggested_filename == f"person-1_garment-1_newer-step-2_{seed}.png"
            assert_seen("result")
            page.locator("#all-results").click()
        page.locator("#settings").get_by_text("Settings").click()
        page.get_by_text("Change the mask").click()
        screenshot("app_desktop")
        assert_seen("person", "garment", "find", "dress", "said", "results", "examples")

        # Undo takes back the slider's steps, the strokes, the mask.
        undone = 0
        while "There is no mask" not in said.inner_text():
            page.locator("#undo").click()
            page.wait_for_timeout(1500)
            undone += 1
            assert undone < 12
        assert undone >= 3
        expect(page.locator("#further-up input[type=range]")).to_have_value("0")
        page.locator("#undo").click()
        expect(said).to_contain_text("There is nothing to undo.")

        # Another LoRA, another seed each time, then back to the first try-on.
        page.locator("#lora input").click()
        page.get_by_text("older, step 1").click()
        expect(page.locator("#about")).to_contain_text("step 1;")
        page.locator("#settings").get_by_text("Settings").click()
        page.locator("#random input").check()
        dress.click()
        expect(said).not_to_contain_text("Seeds 7 to 8")
        expect(page.locator("#history img")).to_have_count(3)
        page.locator("#history img").nth(1).click()
        expect(said).to_contain_text("Seeds 7 to 8")
        expect(page.locator("#seed input")).to_have_value("7")
        expect(page.locator("#random input")).not_to_be_checked()
        expect(page.locator("#lora input")).to_have_value("newer, step 2 (newest)")
        page.wait_for_timeout(2000)  # as above
        dress.click()
        expect(page.locator("#history img")).to_have_count(4)
        assert (picture_of(page, "#results img") == first).all(), "what is restored gives the same again"

        # The base and another LoRA beside the LoRA, all large, with their names.
        page.locator("#base input").check()
        page.locator("#others input").click()
        page.get_by_role("option", name="older, step 1").click()
        page.locator("#others input").press("Escape")
        page.locator("#category").get_by_text("upper").click()  # the mask that was brought back is not made again
        dress.click()
        expect(captions).to_have_text(["newer, step 2, seed 7", "base, seed 7", "older, step 1, seed 7"])
        expect(dress).to_be_enabled()
        expect(said).to_contain_text(
            re.compile("But .*% of the upper-body garment that is worn.* lies outside the mask")
        )
        assert page.get_by_text("lies outside the mask").count() <= 2, "one toast at most, and the line that stays"
        page.evaluate("window.scrollTo(0, 0)")
        assert_seen("results")
        assert page.locator("#results img").nth(2).bounding_box()["height"] > 250
        cut_off = page.locator("#results .grid-wrap").evaluate("grid => grid.scrollHeight - grid.clientHeight")
        assert cut_off == 0, "the lower row is seen whole"
        screenshot("app_compared")

        # A long one is stopped; the button is locked meanwhile.
        expect(page.locator("#steps input[type=number]")).to_have_value("1")  # as the LoRA was trained
        slide("steps", 100)
        slide("count", 4)
        dress.click()
        expect(dress).to_be_disabled()
        expect(page.locator("#results")).to_contain_text("/100")
        page.locator("#stop").click()
        expect(said).to_contain_text("Stopped: nothing was made.")
        expect(dress).to_be_enabled()

        # An example, on a phone, in the dark.
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 390, "height": 844})
        page.locator("#examples img").nth(2).click()
        expect(page.locator("#category input[value=full]")).to_be_checked()
        assert page.evaluate("document.documentElement.scrollWidth") == 390, "nothing is wider than a phone"
        seeds = page.locator("#history .caption-label").evaluate_all("them => them.map(each => each.clientHeight)")
        assert len(seeds) == 5 and max(seeds) < 25, "numbers are not broken"
        tops = [
            page.locator(f"#{name}").bounding_box()["y"] for name in ("person", "garment", "find", "dress", "results")
        ]
        assert tops == sorted(tops), "one column, in the order of the way"
        screenshot("app_phone")
        spoken = page.evaluate("[...window.spoken]")
        assert spoken and not [words for words in spoken if words.startswith("common.")], "words, no keys of Gradio"
        browser.close()
    assert errors == []
    assert [url for url in asked if not url.startswith((page_url, "data:", "blob:"))] == []


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")
@pytest.mark.parametrize(("first", "second"), [("words.png", "garment-1.png"), ("garment-1.png", "words.png")])
def test_a_garment_given_while_another_is_checked_is_checked_too(
    page_url: str, drawn: Path, first: str, second: str
) -> None:
    """A picture stays, whatever is said of the one before; a file that is none is refused, however busy the page is."""
    from playwright.sync_api import Route, expect, sync_playwright

    expect.set_options(timeout=60_000)
    held: list[Route] = []

    def hold_the_first(route: Route) -> None:
        if held:
            route.continue_()
        else:
            held.append(route)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(page_url, timeout=60_000)
        expect(page.locator("#said")).to_contain_text("Give a person and a garment")
        page.route("**/gradio_api/run/**", hold_the_first)
        page.locator("#garment input[type=file]").set_input_files(str(drawn / first))
        for _ in range(300):
            page.wait_for_timeout(100)
            if held:
                break
        with page.expect_response("**/gradio_api/upload*"):
            page.locator("#garment input[type=file]").set_input_files(str(drawn / second))
        page.wait_for_timeout(1000)
        with page.expect_response("**/gradio_api/run/**"):
            held[0].continue_()
        page.wait_for_timeout(2000)  # for the second check, and for what would come of the first
        if second == "words.png":
            expect(page.locator("#garment-said")).to_contain_text("This file is no picture that can be read")
            expect(page.locator("#garment img")).to_have_count(0)
        else:
            expect(page.locator("#garment img")).to_have_attribute("src", re.compile("garment-1.png$"))
            expect(page.locator("#garment-said")).to_have_count(0)
        browser.close()


def press_until(page, button, words: str) -> None:
    """Presses the button until the page answers with these words: it says nowhere when a picture has arrived."""
    for _ in range(60):
        button.click()
        for _ in range(10):
            page.wait_for_timeout(200)
            if words in page.locator("#said").inner_text():
                return
    raise AssertionError(f"the page says {page.locator('#said').inner_text()!r}, not {words!r}")


def give_until(page, upload, file: Path, words: str) -> None:
    """Gives the file until the page answers with these words, which go through Gradio's queue: answers may be late."""
    for _ in range(12):
        upload.set_input_files(str(file))
        for _ in range(50):
            page.wait_for_timeout(200)
            if page.get_by_text(words).count():
                return
    raise AssertionError(f"the page does not say {words!r}")


def test_programs_use_the_named_endpoint(page_url: str, drawn: Path, tmp_path: Path) -> None:
    client = Client(page_url, verbose=False, download_files=tmp_path)
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/try_on", "/info"}
    newest, older = client.predict(api_name="/info")
    assert (newest["name"], newest["step"], older["name"]) == ("newer, step 2", 1, "older, step 1")
    assert newest["sizes"][0] == "96 x 64, as trained"
    picture = Image.open(drawn / "person-1.png").convert("RGB")
    lying = Image.Exif()
    lying[ExifTags.Base.Orientation] = 6
    picture.rotate(90, expand=True).save(tmp_path / "person.png", exif=lying)
    mask = Image.new("L", picture.size)
    mask.paste(255, (150, 400, 400, 768))
    mask.save(tmp_path / "mask.png")
    Image.fromarray(np.full((64, 64), 1000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("L", picture.size, 1).save(tmp_path / "ones.png")
    (tmp_path / "broken.png").write_bytes((drawn / "person-1.png").read_bytes()[:9000])
    asked = {
        "person": handle_file(tmp_path / "person.png"), "garment": handle_file(drawn / "garment-1.png"),
        "category": "lower", "steps": 1, "count": 2, "seed": 3, "api_name": "/try_on",
    }  # fmt: skip
    results, settings = client.predict(mask=handle_file(tmp_path / "mask.png"), **asked)
    assert settings == {
        "lora": "newer, step 2", "strength": 1, "category": "lower", "height": 96, "width": 64, "steps": 1,
        "guidance": 30, "seeds": [3, 4], "give_back": False,
    }  # fmt: skip
    assert [Path(each["image"]).name for each in results] == [f"person_garment-1_newer-step-2_{n}.png" for n in (3, 4)]
    result = np.asarray(Image.open(results[0]["image"]).convert("RGB"))
    changed, hidden = (result != np.asarray(picture)).any(-1), np.asarray(mask) > 0
    assert not changed[~hidden].any() and changed[hidden].mean() > 0.9

    ImageOps.invert(mask).save(tmp_path / "inverted.png")
    mask.paste(255, (150, 0, 400, 768))
    mask.save(tmp_path / "high.png")
    for name, words in (("inverted", "white is repainted, it looks inverted"), ("high", "of face and hair above the")):
        job = client.submit(mask=handle_file(tmp_path / f"{name}.png"), **asked)
        assert len(job.result()[0]) == 2
        updates = (job.communicator.updates.get_nowait() for _ in range(job.communicator.updates.qsize()))
        said = [log for log, _ in (update.log for update in updates if getattr(update, "log", None))]
        assert len(said) == 1 and words in said[0], said

    results, _ = client.predict(mask=None, **asked)
    made = (np.asarray(Image.open(results[0]["image"]).convert("RGB")) != np.asarray(picture)).any(-1)
    assert made[400:].any() and not made[:300].any(), "without a mask the parser makes one"
    for wrong, message in (
        ({"seed": -1}, "The seed must be a whole number"),
        ({"garment": None}, "Give a picture of the garment first."),
        *(
            ({what: handle_file(file)}, f"The file of the {what} is no picture that can be read: give a PNG")
            for what in ("person", "garment", "mask")
            for file in (drawn / "words.png", tmp_path / "broken.png")
        ),
        (
            {"garment": handle_file(tmp_path / "deep.png")},
            "The picture of the garment cannot be used, as its pixels are",
        ),
        ({"mask": handle_file(tmp_path / "ones.png")}, "the mask has no white in it, its largest value is 1 of 255"),
        ({"category": "trousers"}, "Give a category, one of upper, lower, full."),
        ({"lora": "/etc/hostname"}, "This LoRA is not there"),
        ({"size": "9 x 9"}, "There is no size 9 x 9: choose one of 96 x 64, as trained; "),
        ({"count": 5}, "There may be 1 to 4 results, 1 to 100 steps and guidance of 0 to 100."),
        ({"steps": 10**9}, "There may be 1 to 4 results, 1 to 100 steps"),
        ({"strength": 2}, "The LoRA's strength must be from 0, the model without it, to 1.5."),
    ):
        with pytest.raises(AppError, match=message):
            client.predict(**{**asked, **wrong})
    mine = {**asked, "mask": handle_file(tmp_path / "mask.png"), "count": 1}
    strengths = [client.predict(**mine, strength=strength)[0][0]["image"] for strength in (1, 0.5, 0)]
    assert len({Image.open(dressed).tobytes() for dressed in strengths}) == 3
    results, settings = client.predict(**{**asked, "seed": None, "steps": None, "count": 1, "lora": "older, step 1"})
    assert 0 <= settings["seeds"][0] < 10**6 and len(results) == 1 and settings["lora"] == "older, step 1"


def test_what_is_transparent_is_white_in_a_garment_and_nothing_in_a_mask(
    page_url: str, drawn: Path, tmp_path: Path
) -> None:
    """As in training and from the command line."""
    client = Client(page_url, verbose=False, download_files=tmp_path)
    garment = Image.open(drawn / "garment-1.png").convert("RGB")
    cut_out = garment.convert("RGBA")
    white = (np.asarray(garment) == 255).all(-1)
    cut_out.putalpha(Image.fromarray(np.where(white, 0, 255).astype(np.uint8)))
    cut_out.save(tmp_path / "cut_out.png")
    region = Image.new("L", garment.size)
    region.paste(255, (150, 400, 400, 768))
    region.save(tmp_path / "mask.png")
    clear = Image.new("RGBA", garment.size, "white")
    clear.putalpha(region)
    clear.save(tmp_path / "clear.png")
    dressed = []
    for worn, mask in (("garment-1.png", "mask.png"), ("cut_out.png", "clear.png")):
        pictures = {
            "person": handle_file(drawn / "person-1.png"),
            "garment": handle_file((drawn if worn == "garment-1.png" else tmp_path) / worn),
            "mask": handle_file(tmp_path / mask),
        }
        results, _ = client.predict(**pictures, category="lower", steps=1, seed=3, api_name="/try_on")
        dressed.append(np.asarray(Image.open(results[0]["image"]).convert("RGB")).astype(int))
    assert np.abs(dressed[0] - dressed[1]).max() <= 1
    recipe = read_recipe(Path(results[0]["image"]))
    assert recipe.loras == ("newer, step 2",) and recipe.flags["seed"] == 3 and "tryon" in recipe.versions
    assert str(tmp_path.parent) not in str(recipe), "none of the machine's paths"


def test_settings_are_taken_from_a_result(loras: Path, drawn: Path, tmp_path: Path) -> None:
    first, older = find_lora(str(loras / "newer")), find_lora(str(loras / "older"))
    session = session_of(first, loras, tmp_path)
    page = Page(session, [], lambda facts: "")
    made = session.request(
        lora=older, strength=0.5, person=Image.open(drawn / "person-1.png"), garment=Image.new("RGB", (9, 9)),
        mask=Image.new("L", (576, 768), 255), category="full", size=None, steps=7, guidance=20, count=1, seed=5,
        called=("a", "b"),
    )  # fmt: skip
    result = session.file(Image.new("RGB", (9, 9)), "result", made.recipe(5))
    set_to = page.take_settings({page.made: result, page.lora: str(first)})
    assert set_to[page.lora] == str(older) and set_to[page.category] == "full" and set_to[page.strength] == 0.5
    assert set_to[page.steps].value == 7 and set_to[page.guidance].value == 20 and set_to[page.seed] == 5
    assert set_to[page.said] == "All settings are as for that picture; person, garment and mask are yours to give."
    stranger = session.file(Image.new("RGB", (9, 9)), "result", replace(made.recipe(5), loras=("other, step 9",)))
    set_to = page.take_settings({page.made: stranger, page.lora: str(first)})
    assert set_to[page.lora] == str(first) and "other, step 9, is not here" in set_to[page.said]
    with pytest.warns(UserWarning, match="does not say how it was made"):  # Gradio's way without a browser
        said = page.take_settings({page.made: str(drawn / "person-1.png"), page.lora: str(first)})
    assert "does not say how it was made" in said[page.said] and len(said) == 1


def test_the_documented_programs_run(page_url: str, drawn: Path, tmp_path: Path) -> None:
    """What docs/app.md shows for Python and for curl."""
    document = (PROJECT / "docs" / "app.md").read_text()
    (in_python,) = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    (with_curl,) = re.findall(r"```shell\n(.*?)```", document, re.DOTALL)
    for name in ("person", "garment"):
        assert f"{name}.jpg" in in_python and f"{name}.jpg" in with_curl
        Image.open(drawn / f"{name}-1.png").convert("RGB").save(tmp_path / f"{name}.jpg")
    for file, text, command in (("a.py", in_python, [sys.executable]), ("a.sh", with_curl, ["bash", "-eu"])):
        assert "http://127.0.0.1:7860" in text
        (tmp_path / file).write_text(text.replace("http://127.0.0.1:7860", page_url))
        done = subprocess.run([*command, file], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "'strength': 0.8" in done.stdout.replace('"', "'") and "newer, step 2" in done.stdout
    assert "person_garment_newer-step-2-strength-0.8_7.png" in done.stdout
    assert Image.open(tmp_path / "dressed.png").size == (576, 768)


@pytest.mark.parametrize("path", ["/etc/hostname", str(PROJECT / "README.md"), "../README.md"])
def test_the_page_serves_none_of_the_machines_files(page_url: str, path: str) -> None:
    with pytest.raises(HTTPError) as refused:
        urlopen(f"{page_url}/gradio_api/file={path}")
    assert refused.value.code in (403, 404)


def test_an_upload_that_is_broken_off_is_nobodys_fault(page_url: str) -> None:
    """At its end the page has written no traceback (see page_url)."""
    place = urlparse(page_url)
    head = "POST /gradio_api/upload HTTP/1.1\r\nHost: {}\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    part = '--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    with socket.create_connection((place.hostname, place.port)) as connection:
        connection.sendall(f"{head.format(place.netloc)}Content-Length: 100000\r\n\r\n{part}".encode())
    assert urlopen(page_url).status == 200


def session_of(first: Path, runs: Path, folder: Path) -> Session:
    """A session whose models are not loaded."""
    return Session(TryOnConfig(), lambda lora, strength: None, lambda facts: None, first, runs, folder, None, None)


def test_loras_are_named_described_and_chosen(run: Path, loras: Path, tmp_path: Path) -> None:
    newest, folder = first_lora(TryOnConfig(lora=str(loras)))
    assert folder == loras and lora_name(newest) == "newer, step 2"
    named, folder = first_lora(TryOnConfig(lora=str(loras / "older")))
    assert folder == loras and lora_name(named) == "older, step 1"
    facts = read_facts(newest)
    assert "the masks of its data set; this page makes rectangles" in describe(facts, (96, 64))
    without = describe(replace(facts, base_categories=("upper", "full")), (96, 64))
    assert "; upper-body and full-body garments are dressed without the LoRA, which was not trained on" in without
    assert "takes photographs of people as garment" in describe(replace(facts, worn_reference_share=0.2), (96, 64))
    assert usable_rule(facts) == MaskRule()
    moved = replace(facts, mask_rule="hull", mask_offsets=(0.1, 0.0, 0.0, 0.0), mask_parser="some/parser")
    assert usable_rule(moved) == MaskRule("hull", 0.1, parser="some/parser")
    assert list(panel_sizes((768, 576)).values()) == [(768, 576), (512, 384), (1024, 768)]
    assert list(panel_sizes((16, 16)).values()) == [(16, 16)]
    session = session_of(newest, loras, tmp_path)
    assert session.chosen(str(named)) == named
    assert session.chosen("older, step 1") == named
    with pytest.raises(ValueError, match="or not any more"):
        session.chosen("/etc/hostname")
    shutil.copyfile(newest, tmp_path / "lora.safetensors")
    assert first_lora(TryOnConfig(lora=str(tmp_path / "lora.safetensors")))[0].name == "lora.safetensors"


def test_the_list_of_loras_begins_with_the_newest_and_marks_the_best(loras: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(loras, runs)
    shutil.copytree(runs / "older" / "checkpoint-1", runs / "older" / "checkpoint-2")
    for step, age in ((1, 200), (2, 100)):
        file = find_lora(str(runs / "older" / f"checkpoint-{step}"))
        os.utime(file, (file.stat().st_mtime - age,) * 2)
    session = session_of(find_lora(str(runs / "older" / "checkpoint-1")), runs, tmp_path)
    names = ["newer, step 2 (newest)", "older, step 2", "older, step 1"]
    assert [name for name, _ in session.labelled_loras()] == names
    losses = [{"step": 0, "validation/loss": 0.1}, {"step": 1, "validation/loss": 0.2}, {"step": 1}]
    losses += [{"step": 2, "validation/loss": 0.3}]
    (runs / "older" / "metrics.jsonl").write_text("\n".join(map(json.dumps, losses)))
    names[2] = "older, step 1 (lowest validation loss of its run)"
    assert [name for name, _ in session.labelled_loras()] == names


def test_a_page_outlives_the_checkpoint_that_it_began_with(loras: Path, tmp_path: Path) -> None:
    """A training that goes on removes its older ones."""
    shutil.copytree(loras, tmp_path / "runs")
    first, _ = first_lora(TryOnConfig(lora=str(tmp_path / "runs")))
    page = Page(session_of(first, tmp_path / "runs", tmp_path), [], lambda facts: "")
    shown = page.list_loras({page.lora: str(first), page.others: [str(first)]})
    assert set(shown) == {page.lora, page.others} and len(shown[page.lora].choices) == 2
    assert shown[page.others].choices == shown[page.lora].choices and shown[page.others].visible
    assert shown[page.others].value == [str(first)]
    shutil.rmtree(first.parents[1])
    shown = page.list_loras({page.lora: str(first), page.others: [str(first)]})
    assert shown[page.lora].value == str(find_lora(str(tmp_path / "runs" / "older")))
    assert shown[page.about].startswith("Profile full, step 1;")
    with pytest.raises(ValueError, match="or not any more"):
        page.session.chosen(str(first))
    with pytest.raises(ValueError, match="or not any more"):  # of a try-on that waited for its turn
        recipe_of_result(first, {})
    assert not shown[page.others].visible and shown[page.others].value == [], "there is no other one"
    shutil.rmtree(tmp_path / "runs" / "older")
    shown = page.list_loras({page.lora: shown[page.lora].value, page.others: []})
    assert shown[page.lora].choices == [] and shown[page.about].startswith("There is no LoRA yet")
    with pytest.raises(ValueError, match="There is no LoRA yet"):
        page.session.chosen("")


def test_what_somebody_wears_is_taken_off_where_a_lora_has_learnt_it(
    run: Path, loras: Path, drawn: Path, data_cache: Path, tmp_path: Path
) -> None:
    models = TryOnConfig(data_cache_dir=str(data_cache))

    def load(lora: Path, strength: float) -> TryOnModel:
        return load_try_on(use_toy_model_for_try_on(replace(models, lora_scale=strength), read_facts(lora)), lora)

    able = with_facts(run, tmp_path / "able.safetensors", try_off_prompt=TRY_OFF_PROMPT)
    (tmp_path / "shown").mkdir()
    session = replace(session_of(able, loras, tmp_path / "shown"), load=load)
    assert [file for _, file in session.loras_for_try_off()] == [str(able)] and len(session.loras()) == 3
    page = TakeOffPage(session)
    result, said = page.take_off(str(drawn / "person-1.png"), "lower", None, 3)
    assert said == {"lora": lora_name(able), "category": "lower", "steps": 1, "guidance": 30, "seed": 3}
    assert Image.open(result).size == (64, 96) and Path(result).name.startswith("person-1_lower_")
    assert (recipe := read_recipe(Path(result))).flags["seed"] == 3 and recipe.loras == (lora_name(able),)
    other, _ = page.take_off(str(drawn / "person-1.png"), "lower", str(able), 4)
    assert Image.open(other).tobytes() != Image.open(result).tobytes()
    (endpoint,) = (each for each in page.blocks.fns.values() if each.api_name == "take_off")
    unread = endpoint.inputs[0].preprocess(FileData(path=str(drawn / "words.png")))
    for given, message in (
        ((str(drawn / "person-1.png"), "lower", "newer, step 2"), "this LoRA has not learnt to take garments off"),
        ((str(drawn / "person-1.png"), "trousers"), "Give a category, one of upper, lower, full."),
        ((None, "lower"), "Give a picture of the person first."),
        ((unread, "lower"), "The file of the person is no picture that can be read"),
    ):
        with pytest.raises(gr.Error, match=message):
            page.take_off(*given)
    tabs = in_tabs(Page(session, [], lambda facts: ""), page)
    assert set(tabs.get_api_info()["named_endpoints"]) == {"/try_on", "/info", "/take_off"}


def test_undo_brings_back_a_person_that_was_taken_away(loras: Path, drawn: Path, tmp_path: Path) -> None:
    """With the mask that was painted, after another person took their place and after the picture was cleared."""
    (tmp_path / "shown").mkdir()
    page = Page(session_of(find_lora(str(loras / "newer")), loras, tmp_path / "shown"), [], lambda facts: "")
    person, other = (Image.open(drawn / f"person-{number}.png").convert("RGB") for number in (1, 2))
    mask = np.zeros(person.size[::-1], np.uint8)
    mask[400:500, 200:300] = 255
    kept = page._kept({page.person: {"background": person, "layers": [as_paint(mask)]}, page.masks: ()})
    for background in (other, None):
        shown = page.undo({page.person: {"background": background, "layers": []}, page.masks: kept})
        assert Image.open(shown[page.person]["background"]).tobytes() == person.tobytes()
        assert (shown[page.masks][-1].mask == mask).all()


def test_what_is_missing_is_named(run: Path, data_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--lora is missing: give a run.*; --port 0 is too small"):
        main(["--port", "0"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} of 127.0.0.1 cannot be used"):
            main(["--lora", str(run), "--port", str(port), "--data_cache_dir", str(data_cache)])
    (tmp_path / "users").write_text("ada:secret\n\ngrace:with:colon\n", encoding="utf-8-sig")
    assert read_users(str(tmp_path / "users")) == [("ada", "secret"), ("grace", "with:colon")]
    (tmp_path / "users").write_text("ada\n")
    for file, message in (("users", "has to hold a line name:password"), ("nobody", "cannot be read")):
        with pytest.raises(ValueError, match=message):
            read_users(str(tmp_path / file))
