"""A run's card, and its LoRA as other programs read it."""

import json
import logging
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from jinja2 import Environment
from jinja2.meta import find_undeclared_variables
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from test_report import OF_OLDER_COMMAND, OF_OLDER_RUN, value
from tryon.files import file_hash, read_json, save_json, write_manifest
from tryon.flux.lora_header import read_facts
from tryon.flux.prompts import TRY_OFF_PROMPT
from tryon.profiles import full, on_toy
from tryon.runs import LORA_FILE, STATE_FILE, ema_file, lora_file
from tryon.share import CARD_TEMPLATE, ShareConfig, card_values, export_lora, shared, write_share
from tryon.toy.model import ToyFolders


@pytest.fixture
def finished(run: Path, tmp_path: Path) -> Path:
    """A run with settings and scores, as the drivers leave them."""
    folder = tmp_path / "finished"
    shutil.copytree(run, folder)
    config = replace(full(), num_evaluation_samples=4, num_inference_steps=1)
    save_json(folder / "config.json", {**asdict(config), "dataset_name": "SaffalPoosh/deepFashion-with-masks"})
    scored(folder, "evaluation.json")
    return folder


def scored(run: Path, name: str) -> None:
    """Writes scores of the run's LoRA into one of its files."""
    of_lora = {"LoRA": {"sha256": file_hash(lora_file(run / "checkpoint-1"))[:16], "step": 1}}
    save_json(run / name, {**OF_OLDER_COMMAND, "loras": of_lora})


def share(run: Path, **settings) -> Path:
    """Writes the run's folder share, and returns it."""
    return write_share(ShareConfig(run=str(run), **settings))


def card_of(folder: Path) -> tuple[dict, str]:
    """The card's metadata and its text."""
    _, metadata, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(metadata), text


def trained_on(folder: Path, base: str, transformer: str) -> None:
    """Lets the run's LoRA say that it was trained on these models."""
    lora = lora_file(folder / "checkpoint-1")
    models = {"base": base, "transformer": transformer}
    facts = replace(read_facts(lora), **models, prompt="fixed", max_sequence_length=16, try_off_prompt=TRY_OFF_PROMPT)
    change_header(lora, tryon_lora=json.dumps(asdict(facts)))
    write_manifest(folder / "checkpoint-1")


def change_header(file: Path, **entries: str) -> None:
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    save_file(load_file(file), file, {**header, **entries})


def test_the_card_says_what_was_trained_and_its_python_runs(
    finished: Path, toy: ToyFolders, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"black-forest-labs/FLUX.1-dev": toy.base, "xiaozaa/catvton-flux-alpha": toy.transformer}
    trained_on(finished, *names)
    scored(finished, "evaluation.json")
    folder = share(finished, push_to_hub="user/name")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", LORA_FILE]
    metadata, text = card_of(folder)
    assert text.split("\n\n")[1].startswith(
        "> **Not for commercial use.** [FLUX.1-dev's licence](https://huggingface.co/"
    )
    assert text.count("commercial use.") == 1 and "## Pictures" not in text
    assert metadata["license_name"] == "flux-1-dev-non-commercial-license" and metadata["license"] == "other"
    assert metadata["base_model"] == list(names)[::-1] and metadata["library_name"] == "diffusers"
    assert {"lora", "diffusers", "virtual-try-on"} <= set(metadata["tags"])
    assert metadata["datasets"] == ["SaffalPoosh/deepFashion-with-masks"]
    row = "| lower, paired | 14.63 / 0.504 | 20.50 / 0.700 | +5.87 / +0.196 |"
    assert row in text and "at most 4 of each category" in text and "unpaired |" not in text
    said = "4 paired pairs cannot say whether it is better than the base: look at the pictures"
    assert f"The LoRA of step 1: {said}." in text
    save_json(finished / "evaluation.json", OF_OLDER_RUN)
    _, of_older = card_of(share(finished, push_to_hub="user/name"))
    assert f"{row} 10.06 / 0.461 | 27.22 / 0.874 |" in of_older and "the reverse: right in 75%." in of_older
    losses = [json.loads(line)["validation/loss"] for line in (finished / "metrics.jsonl").read_text().splitlines()
              if "validation/loss" in line]  # fmt: skip
    assert f"| loss | {losses[0]:.4f} | {losses[-1]:.4f} |" in text
    assert "research only" in text and "toy" not in text.lower() and str(finished) not in text
    assert "too: `--take_off person.jpg --category lower --output garment.png`, in place" in text

    (workflow,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    nodes = json.loads(workflow)
    links = [value for node in nodes.values() for value in node["inputs"].values() if isinstance(value, list)]
    assert {link[0] for link in links} == nodes.keys() - {"22"}, "every node but the last is used, and is there"
    assert nodes["2"]["inputs"]["lora_name"] == LORA_FILE and nodes["3"]["inputs"]["width"] == 128

    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for name, path in {**names, "user/name": folder, 'pipeline.to("cuda")': ""}.items():
        assert name in code
        code = code.replace(name, str(path))
    monkeypatch.chdir(pictures)
    for name in ("garment", "person"):
        (pictures / f"{name}.png").rename(f"{name}.jpg")
    exec(code.replace("bfloat16", "float32"), {})
    assert Image.open("dressed.png").size == (64, 96)


def test_a_card_shows_what_evaluate_lora_has_scored(finished: Path) -> None:
    (finished / "evaluation.json").unlink()
    scored(finished, "evaluate_lora.json")
    _, text = card_of(share(finished))
    assert "Means over held-out paired pairs." in text and "| lower (4) | PSNR, mask | 14.63" in text
    assert "The LoRA of step 1: 4 paired pairs cannot say whether it is better" in text


def test_the_cards_template_is_given_all_that_it_names(finished: Path) -> None:
    facts = read_facts(lora_file(finished / "checkpoint-1"))
    settings = json.loads((finished / "config.json").read_text())
    named = find_undeclared_variables(Environment().parse(CARD_TEMPLATE.read_text()))
    assert named == {"card_data", *card_values(finished, None, settings, facts, [])}


def test_a_card_names_the_garments_that_were_trained_on(finished: Path) -> None:
    assert "another: upper-body, lower-body, full-body garments." in card_of(share(finished))[1]
    lora = lora_file(finished / "checkpoint-1")
    change_header(lora, tryon_lora=json.dumps(asdict(replace(read_facts(lora), base_categories=("upper",)))))
    write_manifest(finished / "checkpoint-1")
    _, text = card_of(share(finished))
    assert "another: lower-body, full-body garments." in text and "dress people in these without the LoRA" in text


def test_a_toys_card_says_so_first(finished: Path) -> None:
    config = on_toy(full())
    drawn = {"dataset_name": str(Path(config.data_cache_dir) / "toy" / "data")}
    save_json(finished / "config.json", {**asdict(config), **drawn})
    metadata, text = card_of(share(finished))
    assert text.split("\n\n")[1].startswith("> **This is a toy.**")
    assert metadata["license"] == "apache-2.0" and "base_model" not in metadata and "toy" in metadata["tags"]
    assert "```python" not in text and "FLUX.1-dev" not in text
    assert "Trained for\n1 step on drawings of the toy's world, in" in text
    assert "| frozen weights | as they are |" in text
    assert ", 1 process |" in text and "take_off" not in text
    assert "![step-000001](pictures/step-000001.png)" in text and "Held-out pairs of drawn people.\n" in text


def test_the_newest_checkpoint_is_shared_unless_another_is_given(
    finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newer = shutil.copytree(finished / "checkpoint-1", finished / "checkpoint-2")
    file = lora_file(newer)
    change_header(file, tryon_lora=json.dumps({**asdict(read_facts(file)), "step": 2}))
    write_manifest(newer)
    shutil.copy(finished / "validation" / "step-000001.png", finished / "validation" / "step-000002.png")
    with caplog.at_level(logging.INFO):
        shown = share(finished, with_pictures=True)
    assert caplog.messages == ["checkpoint-2 is shared: the newest"]
    text = card_of(shown)[1]
    assert "Trained for\n2 steps on" in text and "step-000002.png" in text
    assert "14.63" not in text, "these scores are of step 1"

    # The report advises the older one.
    of_all = {"cases": 6, "base": {"psnr": value(10.0)}}
    loras = {}
    for step in (1, 2):
        of_all |= {f"LoRA {step}": {"psnr": value(14.0 - step)}}
        of_all |= {f"LoRA {step} - base": {"psnr": {**value(4.0 - step), "marked": True}}}
        loras[f"LoRA {step}"] = {"sha256": file_hash(lora_file(finished / f"checkpoint-{step}"))[:16], "step": step}
    scores = {"paired": {"lower": of_all, "all": of_all}}
    save_json(finished / "evaluate_lora.json", {"version": 2, "loras": loras, "scores": scores})
    caplog.clear()
    with caplog.at_level(logging.INFO):
        share(finished)
    older = finished / "checkpoint-1"
    assert caplog.messages[1:] == [
        f"the run's report advises checkpoint-1, whose scores are higher: python -m tryon.share {older} shares that"
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        shown = share(older, with_pictures=True)
    assert caplog.messages == ["checkpoint-1 is shared: as given"] and shown == finished / "share"
    text = card_of(shown)[1]
    assert "Trained for\n1 step on" in text and "14.63" in text and "step-000001.png" in text
    lora_file(older).unlink()
    with pytest.raises(ValueError, match="pytorch_lora_weights.safetensors is missing: name the run or another of its"):
        share(older)


def test_the_best_checkpoint_of_a_run_that_keeps_it_is_shared(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    older, newer = finished / "checkpoint-1", shutil.copytree(finished / "checkpoint-1", finished / "checkpoint-2")
    (average := ema_file(older)).parent.mkdir()
    shutil.copy(lora_file(older), average)
    change_header(average, tryon_lora=json.dumps({**asdict(read_facts(average)), "profile": "averaged"}))
    save_json(newer / STATE_FILE, {**read_json(newer / STATE_FILE), "keep_best": "loss"})
    for checkpoint in (older, newer):
        write_manifest(checkpoint)
    rows = {1: {"validation/loss": 0.2, "validation/ema_loss": 0.1}, 2: {"validation/loss": 0.3}}
    lines = [json.dumps({"step": step, **row}) + "\n" for step, row in rows.items()]
    (finished / "metrics.jsonl").write_text("".join(lines))
    with caplog.at_level(logging.INFO):
        folder = share(finished)
    assert caplog.messages[0] == "checkpoint-1 is shared: its validation loss is the lowest"
    assert read_facts(folder / LORA_FILE).profile == "averaged"


def test_people_are_shown_when_asked_for_alone(finished: Path) -> None:
    folder = share(finished, with_pictures=True)
    assert shared(folder) == ["README.md", LORA_FILE, "pictures/step-000001.png"]
    shown = finished / "validation" / "step-000001.png"
    assert (folder / "pictures" / shown.name).read_bytes() == shown.read_bytes()
    assert "Held-out pairs.\n\n![step-000001](pictures/step-000001.png)\n\n## Measured" in card_of(folder)[1]
    assert shared(share(finished)) == ["README.md", LORA_FILE] and not (folder / "pictures").exists()
    shutil.rmtree(finished / "validation")
    with pytest.raises(ValueError, match="has no sample pictures: leave --with_pictures out"):
        share(finished, with_pictures=True)


def test_no_path_of_this_machine_is_shared(finished: Path) -> None:
    trained_on(finished, "/home/somebody/FLUX.1-dev", "/data/fill.safetensors")
    save_json(finished / "config.json", {**asdict(full()), "dataset_name": "/home/somebody/pictures"})
    folder = share(finished)
    facts = read_facts(folder / LORA_FILE)
    assert (facts.base, facts.transformer) == ("FLUX.1-dev", "fill.safetensors")
    metadata, text = card_of(folder)
    assert "somebody" not in text + str(metadata) and "base_model" not in metadata and "datasets" not in metadata
    trained_on(
        finished, "/cache/models--owner--flux-dev/snapshots/0a1b", "/cache/models--a--b/snapshots/2c/transformer"
    )
    facts = read_facts(share(finished) / LORA_FILE)
    assert (facts.base, facts.transformer) == ("owner/flux-dev", "a/b")
    assert 'transformer, base = "<folder of fill.safetensors>", "<folder of FLUX.1-dev>"' in text


def test_what_is_no_finished_run_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no config.json: name the folder of a run"):
        share(tmp_path)
    lora = lora_file(finished / "checkpoint-1")
    state = load_file(lora)
    state[min(state)][0, 0] = float("nan")
    with safe_open(lora, framework="pt") as opened:
        save_file(state, lora, opened.metadata())
    write_manifest(finished / "checkpoint-1")
    with pytest.raises(ValueError, match="holds numbers that are not finite, in 1 of its"):
        share(finished)
    lora.write_bytes(lora.read_bytes()[:-1])
    with pytest.raises(ValueError, match="has no undamaged checkpoint"):
        share(finished)


def test_a_file_that_needs_no_change_takes_no_room(run: Path, tmp_path: Path) -> None:
    file = lora_file(run / "checkpoint-1")
    for _ in range(2):
        export_lora(file, tmp_path / LORA_FILE)
        assert (tmp_path / LORA_FILE).samefile(file)
