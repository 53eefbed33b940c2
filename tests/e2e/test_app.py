"""The app in a real browser: one try-on, the messages, and nothing from any network."""

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from PIL import Image

from app_lora import PAINT_IS_MASK, PAINT_IS_WORN, dress, load_rule, main, painted_mask
from conftest import PROJECT
from tryon.config import TryOnConfig
from tryon.lora import read_facts
from tryon.masks import agnostic_mask
from tryon.pipeline import load_try_on
from tryon.runs import find_lora
from tryon.sample import fit_mask, fit_picture, to_picture
from tryon.toy.drawing import draw_garment, draw_person
from tryon.toy.model import use_toy_model_for_try_on
from tryon.toy.world import VIEWS, random_outfit, random_person

pytestmark = pytest.mark.e2e

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def page_url(run: Path, data_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app, started as a user starts it, and ended by Ctrl-C."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            sys.executable, "app_lora.py", "--lora", str(run), "--port", str(port), "--steps", "2",
            "--data_cache_dir", str(data_cache),
        ],
        cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "HF_HOME": str(tmp_path_factory.mktemp("home"))},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    said = ""
    while "serving" not in said:
        line = process.stdout.readline()
        assert line, f"the app ended: {said}"
        said += line
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGINT)
    said += process.communicate(timeout=30)[0]
    assert process.returncode == 130
    assert "Traceback" not in said and "Warning" not in said, said


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """A folder with person.png and garment.png of the toy's world, in the size of photographs."""
    rng = np.random.default_rng(5)
    outfit = random_outfit(rng, "lower")
    person = draw_person(random_person(rng), outfit, VIEWS[0], 768, 576).image
    person.save(tmp_path / "person.png")
    draw_garment(outfit[0], 768, 576).image.save(tmp_path / "garment.png")
    return tmp_path


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")
def test_a_person_is_dressed_in_the_browser(page_url: str, drawn: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=120_000)  # a machine may be busy
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(120_000)
        asked: list[str] = []
        errors: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(page_url)
        dress = page.locator("#dress")

        dress.click()
        expect(page.locator("#words")).to_contain_text("Give a picture of the person first.")
        page.locator("#person input[type=file]").first.set_input_files(str(drawn / "person.png"))
        dress_until(page, "Give a picture of the garment first.")
        page.locator("#garment input[type=file]").first.set_input_files(str(drawn / "garment.png"))
        dress_until(page, "Paint over the part of the person that is to be dressed.")

        box = page.locator("#person canvas").first.bounding_box()
        middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.move(*middle)
        page.mouse.down()
        page.mouse.move(middle[0] + 10, middle[1] + 60, steps=8)
        page.mouse.up()
        page.locator("#category").get_by_text("lower").click()
        page.locator("#random input").uncheck()
        page.locator("#seed input").fill("7")
        if folder := os.environ.get("TRYON_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / "app_before.png")
        dress.click()
        expect(page.locator("#words")).to_contain_text("Seed 7, 96 x 64 pixels (height x width).")
        shown = page.locator("#result img")
        expect(shown).to_be_visible()
        picture = Image.open(io.BytesIO(page.request.get(shown.get_attribute("src")).body())).convert("RGB")

        page.locator("#random input").check()
        dress.click()
        expect(page.locator("#words")).not_to_contain_text("Seed 7,")
        expect(page.locator("#seed input")).not_to_have_value("7")
        expect(page.locator("#words")).to_contain_text("96 x 64 pixels (height x width).")
        page.wait_for_timeout(2000)  # the editor may still upload, and a broken upload is a traceback in the app's log
        if folder := os.environ.get("TRYON_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / "app_after.png")
        browser.close()

    person = to_picture(fit_picture(Image.open(drawn / "person.png"), 96, 64))
    changed = (np.asarray(picture) != np.asarray(person)).any(-1)
    assert changed[48, 32], "what was painted is repainted"
    assert not changed[:16].any() and not changed[-16:].any(), "what was not painted stays"
    assert errors == []
    assert [url for url in asked if not url.startswith((page_url, "data:", "blob:"))] == []


def dress_until(page, words: str) -> None:
    """Presses the button until the page answers with these words: it says nowhere when a picture has arrived."""
    for _ in range(60):
        page.locator("#dress").click()
        for _ in range(10):
            page.wait_for_timeout(200)
            if words in page.locator("#words").inner_text():
                return
    raise AssertionError(f"the page says {page.locator('#words').inner_text()!r}, not {words!r}")


@pytest.mark.parametrize("path", ["/etc/hostname", str(PROJECT / "README.md"), "../README.md"])
def test_the_page_serves_none_of_the_machines_files(page_url: str, path: str) -> None:
    with pytest.raises(HTTPError) as refused:
        urlopen(f"{page_url}/gradio_api/file={path}")
    assert refused.value.code in (403, 404)


def test_what_is_painted_on_any_layer_is_the_mask() -> None:
    layers = [Image.new("RGBA", (6, 4)) for _ in range(2)]
    layers[0].putpixel((1, 1), (255, 0, 0, 255))
    layers[1].putpixel((5, 3), (255, 0, 0, 178))
    layers[1].putpixel((0, 0), (255, 0, 0, 20))
    mask = np.asarray(painted_mask((6, 4), layers))
    assert {(int(x), int(y)) for y, x in zip(*mask.nonzero(), strict=True)} == {(1, 1), (5, 3)}
    assert painted_mask((6, 4), []).getbbox() is None


def test_what_is_worn_is_hidden_by_the_rule_of_the_training(run: Path, data_cache: Path, drawn: Path) -> None:
    lora = find_lora(str(run))
    config = TryOnConfig(lora=str(run), data_cache_dir=str(data_cache))
    model = load_try_on(use_toy_model_for_try_on(config, read_facts(lora)), lora)
    person, paint = Image.open(drawn / "person.png"), Image.new("RGBA", (576, 768))
    paint.paste((255, 0, 200, 200), (200, 300, 376, 420))
    editor = {"background": person.convert("RGBA"), "layers": [paint]}
    worn = torch.zeros(1, 768, 576, dtype=torch.bool)
    worn[:, 300:420, 200:376] = True
    before = np.asarray(to_picture(fit_picture(person, 96, 64)))
    for choice, hidden in ((PAINT_IS_MASK, worn), (PAINT_IS_WORN, agnostic_mask(worn, "lower"))):
        mask = fit_mask(Image.fromarray(hidden[0].numpy()), 96, 64)[0].bool().numpy()
        garment = Image.open(drawn / "garment.png")
        hide = load_rule(replace(read_facts(lora), mask_rule="rectangle"), None)
        picture, seed = dress(model, (96, 64), hide, editor, garment, "lower", choice, 1, 1.0, 3, False)
        changed = (np.asarray(picture) != before).any(-1)
        assert seed == 3 and not changed[~mask].any() and changed[mask].mean() > 0.9


def test_a_rule_that_nobody_here_can_follow_is_not_offered(run: Path) -> None:
    facts = read_facts(find_lora(str(run)))
    assert load_rule(facts, None) is None, "its data had masks of its own"
    assert load_rule(replace(facts, mask_rule="hull"), None) is None, "its data had label maps"
    assert load_rule(None, None) is not None


def test_what_is_missing_is_named(run: Path, data_cache: Path) -> None:
    with pytest.raises(ValueError, match="--lora is missing; --port 0 is too small"):
        main(["--port", "0"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} cannot be used"):
            main(["--lora", str(run), "--port", str(port), "--data_cache_dir", str(data_cache)])
