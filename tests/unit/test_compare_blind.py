"""Two LoRAs compared by people: the page, what it saves, and what is said of the answers."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from tryon.compare_blind import main, pairs_to_compare, said_by
from tryon.files import file_hash, write_manifest
from tryon.runs import lora_file
from tryon.scores import INPUTS, LINES, input_path, picture_path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
COLOURS = {"a": "red", "b": "blue"}
PAIRS = 6


@pytest.fixture
def runs(tmp_path: Path) -> tuple[str, str]:
    """Two runs, each scored by itself on the same pairs, in another order: one's results are red, the other's blue."""
    for run, colour in COLOURS.items():
        file = lora_file(tmp_path / run / "checkpoint-1")
        file.parent.mkdir(parents=True)
        file.write_text(run)
        write_manifest(tmp_path / run / "checkpoint-1")
        scores, digest, lines = tmp_path / run / "scores", file_hash(file)[:16], []
        for kind in ("paired", "unpaired"):
            for index in range(PAIRS):
                pair = index if run == "a" else PAIRS - 1 - index
                places = {picture_path(scores, (digest, kind, index)): colour}
                places |= {input_path(scores, name, kind, index): "white" for name in INPUTS}
                for path, shown in places.items():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.new("RGB", (8, 8), shown).save(path)
                place = {"model": digest, "kind": kind, "case": index, "key": f"{kind} {pair}", "name": f"pair {pair}"}
                lines.append({**place, "psnr": 20.0 + (run == "a"), "leftovers": 0.1 + (run == "a")})
        (scores / LINES).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(tmp_path / "a"), str(tmp_path / "b")


def test_pairs_and_sides_are_drawn_by_lot(runs: tuple[str, str]) -> None:
    pairs = pairs_to_compare(runs, 40, 0)
    assert sorted(pair["name"] for pair in pairs) == [f"unpaired pair {number}" for number in range(PAIRS)]
    assert {pair["left"] for pair in pairs} == {"a", "b"} and all(pair["left"] != pair["right"] for pair in pairs)
    of_colour = {pair["pictures"][2 + (pair["left"] == "b")] for pair in pairs}
    assert len(of_colour) == 1, "the red one is where the key says"
    assert all(pair["scores"] == {"psnr": [21.0, 20.0], "leftovers": [1.1, 0.1]} for pair in pairs)
    assert pairs == pairs_to_compare(runs, 40, 0) != pairs_to_compare(runs, 40, 1)
    assert len(pairs_to_compare(runs, 2, 0)) == 2


def test_a_page_does_not_take_the_place_of_another(runs: tuple[str, str], tmp_path: Path) -> None:
    another = str(shutil.copytree(runs[1], tmp_path / "c's"))
    shutil.copytree(Path(another) / "checkpoint-1", Path(another) / "checkpoint-2")
    for other in (runs[1], another, f"{another}/checkpoint-1"):
        main([runs[0], other, "--count", "1"])
    assert sorted(page.name for page in (tmp_path / "a").glob("*.html")) == [
        "compare_blind_step-1_b-step-1.html", "compare_blind_step-1_c-s-step-1.html",
        "compare_blind_step-1_c-s-step-2.html",
    ]  # fmt: skip


def test_what_cannot_be_compared_is_refused(runs: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="or are the same LoRA: first run python evaluate_lora.py --lora"):
        main([runs[0], runs[0]])
    with pytest.raises(ValueError, match="1 run given: name two"):
        main([runs[0]])
    with pytest.raises(ValueError, match="--read .*nothing.json is no file$"):
        main(["--read", str(tmp_path / "nothing.json")])
    for content in (b"", b"# Title", b"\x89PNG", b"[1]", b'{"answers": 3}'):
        (tmp_path / "other.json").write_bytes(content)
        with pytest.raises(ValueError, match="other.json is no file of answers: name the one that the page's button"):
            main(["--read", str(tmp_path / "other.json")])
    shutil.rmtree(tmp_path / "a" / "scores" / "inputs")
    with pytest.raises(ValueError, match="holds no persons and garments: give its evaluate_lora.py command again"):
        main([*runs, "--page", str(tmp_path / "page.html")])


def test_wins_and_agreement() -> None:
    def answer(chosen: str, **scores: list[float]) -> dict[str, object]:
        return {"name": "", "chosen": chosen, "scores": scores}

    answers = [answer("a", psnr=[21.0, 20.0], lpips=[0.1, 0.2])] * 8
    answers += [answer("b", psnr=[21.0, 20.0], lpips=[0.2, 0.1])] * 2
    answers += [answer("same", psnr=[21.0, 20.0]), answer("b", psnr=[20.0, 20.0])]
    assert said_by({"a": "runs/one", "b": "runs/two", "answers": answers}) == [
        "A: runs/one", "B: runs/two", "A better: 8, B better: 3, same: 1",
        "A is preferred in 8 of 11, 73% [43%, 90%]: no more than chance",
        "PSNR, mask agrees in 8 of 10, 80% [49%, 94%]: no more than chance",
        "LPIPS agrees in 10 of 10, 100% [72%, 100%]",
    ]  # fmt: skip
    assert said_by({"a": "one", "b": "two", "answers": []})[-1] == "A better: 0, B better: 0, same: 0"
    few, enough = (said_by({"a": "one", "b": "two", "answers": answers[:count]})[3] for count in (5, 6))
    assert few == "A is preferred in 5 of 5, 100% [57%, 100%]: too few to say"
    assert enough == "A is preferred in 6 of 6, 100% [61%, 100%]"


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")
def test_people_answer_in_a_browser(runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, saved = tmp_path / "a" / "compare_blind_step-1_b-step-1.html", tmp_path / "answers.json"
    main([*runs])
    assert f"open {page} in a browser" in capsys.readouterr().out, "beside the first run's files"
    pairs = pairs_to_compare(runs, 40, 0)
    keys = ["ArrowLeft" if pair["left"] == "a" else "ArrowRight" for pair in pairs[:3]] + ["ArrowDown", "ArrowLeft"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 390, "height": 844})
        opened.goto(page.as_uri())

        def press(key: str, then: int) -> None:
            """Answers a pair, and waits until that one is shown."""
            opened.keyboard.press(key)
            expect(opened.locator("#place")).to_contain_text(f"Pair {then};")

        shown = opened.locator("body").inner_text()
        assert not any(run in shown for run in runs), "nobody sees which is which"
        assert opened.evaluate("document.documentElement.scrollWidth") <= 390
        boxes = [figure.bounding_box() for figure in opened.locator("figure").all()]
        assert len({box["width"] for box in boxes}) == 1 and boxes[1]["x"] == boxes[3]["x"], "all of one size"
        marked = opened.locator("figure.chosen")
        expect(opened.locator("#keys")).to_be_hidden()
        for number, key in enumerate(keys[:3], 2):
            expect(marked).to_have_count(0)
            press(key, number)
        for key in keys[3:]:
            opened.keyboard.press(key)  # at once: none is dropped
        expect(opened.locator("#place")).to_contain_text("Pair 6;")
        press("ArrowUp", 5)
        expect(marked).to_have_attribute("data-side", "left")
        opened.reload()
        expect(opened.locator("#place")).to_have_text(f"Pair 6; 5 of {PAIRS} answered.")  # answers stay
        press("ArrowUp", 5)
        press("ArrowDown", 6)
        expect(opened.locator("#end")).to_be_hidden()
        opened.keyboard.press("ArrowDown")
        expect(opened.locator("#end")).to_contain_text("All pairs are answered: save the answers.")
        expect(opened.locator(".chosen button")).to_have_text("the same")
        expect(opened.get_by_role("button", name="save the answers")).to_be_in_viewport(ratio=1)
        with opened.expect_download() as download:
            opened.get_by_role("button", name="save the answers").click()
        download.value.save_as(saved)
        if folder := os.environ.get("TRYON_SCREENSHOTS"):
            opened.screenshot(path=Path(folder) / "compare_blind_phone.png")
            opened.set_viewport_size({"width": 1280, "height": 800})
            opened.screenshot(path=Path(folder) / "compare_blind_desktop.png")
        browser.close()
    main(["--read", str(saved)])
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == [f"A: {runs[0]}", f"B: {runs[1]}", "A better: 3, B better: 0, same: 3"]
    assert said[4:] == ["PSNR, mask agrees in 3 of 3, 100% [44%, 100%]: too few to say",
                        "leftovers agrees in 0 of 3, 0% [0%, 56%]: too few to say"]  # fmt: skip
