"""What is scored shows nobody that the LoRA was trained on, wherever the pictures lie."""

import io
import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from deepfashion_training.held_out import HeldOutConfig, choose_cases, training_settings
from test_dataset import config, load, row, write, write_pictures
from test_folders import write_viton_hd
from tryon.config import TryOnConfig
from tryon.data.category import MaskRule
from tryon.data.persons import PERSONS, person_digests, write_persons
from tryon.runs import lora_file


def people(first: int, count: int, compress_level: int = 6) -> list[dict]:
    """Rows of persons of different colours, as PNG files of that level."""
    rows = []
    for number in range(first, first + count):
        file = io.BytesIO()
        Image.new("RGB", (48, 64), (number, 90, 200)).save(file, "PNG", compress_level=compress_level)
        rows.append({**row(number, "front"), "images": {"bytes": file.getvalue(), "path": None}})
    return rows


def test_persons_of_the_training_are_left_out_of_other_folders_and_layouts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lora = lora_file(tmp_path / "run" / "checkpoint-1")
    name = write(tmp_path / "rows", people(0, 40))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"dataset_name": name}))
    train, held_back = load(name, config(max_validation_samples=4))

    def scored(**data: str) -> int:
        caplog.clear()
        asked, trained = HeldOutConfig(num_samples=None, **data), training_settings([lora])
        models = TryOnConfig(height=64, width=48)
        _, cases = choose_cases(asked, trained, MaskRule(), models, torch.device("cpu"), try_offs=())
        return len(cases["paired"])

    def warnings() -> str:
        return "\n".join(each.message for each in caplog.records if each.levelno >= logging.WARNING)

    # The trained persons in files of other bytes, alone and beside 14 others.
    trained_on = [int(train.pair(index).pid[3:]) for index in range(len(train))]
    again = [each for number in trained_on for each in people(number, 1, compress_level=0)]
    copied = write_pictures(tmp_path / "copied", again)
    mixed = write_pictures(tmp_path / "mixed", again + people(100, 14))
    viton_hd = write_viton_hd(tmp_path / "viton", count=2)
    assert scored(dataset_name=copied) == 3 and "cannot be known" in warnings(), "of an older run"

    write_persons(tmp_path / "run", person_digests(train))
    assert len(json.loads((tmp_path / "run" / PERSONS).read_text())) == len(train)
    with pytest.raises(ValueError, match="the LoRAs were trained on every person that would be scored"):
        scored(dataset_name=copied)
    kept = scored(dataset_name=mixed)
    left_out = 5 - kept
    assert 0 < kept < 5 and f"was trained on the persons of {left_out} of 5 pairs, which are left out" in warnings()
    assert scored(dataset_name=name) == len(held_back) == 4 and not warnings(), "what the run has held back"
    person = Image.open(viton_hd / "test" / "image" / "00000_00.jpg")
    person.save(tmp_path / "person.png")
    assert scored(dataroot=str(viton_hd)) == 2 and not warnings()
    first = load(write(tmp_path / "one", [{**each, "images": {"bytes": (tmp_path / "person.png").read_bytes(),
                 "path": None}} for each in people(0, 2)]), config())[0]  # fmt: skip
    write_persons(tmp_path / "run", person_digests(first))
    assert scored(dataroot=str(viton_hd)) == 1 and "1 of 2 pairs" in warnings()
