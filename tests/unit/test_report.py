"""The run's page: made of its folder alone, needing nothing else."""

import html
import json
import logging
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from PIL import Image

from deepfashion_training.preflight import DataConfig
from folder_lists import FolderConfig
from tryon.config import TOY_NOTICE, MaskConfig
from tryon.files import file_hash, save_json, write_manifest
from tryon.profiles import on_toy, quick_test
from tryon.report import DATA_DEFAULTS, add_evaluation, write_data, write_environment, write_report
from tryon.runs import ema_file, lora_file, own_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 40 steps, seen twice, in which somebody gave data and a rank of their own."""
    folder = tmp_path / "deepfashion_lora_quick_test_<1>"
    folder.mkdir()
    config = replace(on_toy(quick_test()), lora_rank=5, lora_alpha=5, max_train_steps=40, output_dir=str(folder))
    masks = MaskConfig(mask_left=0.1)
    save_json(folder / "config.json", {**asdict(config), "dataset_name": "a & b", **asdict(masks)})
    write_environment(folder, "a GPU")
    lines = [{"step": step, "train/loss": 1 / step, "train/seconds": 0.5} for step in range(1, 41)]
    lines += [{"step": step, "time/forward": 3.0, "time/validation": 1.0} for step in (20, 40)]
    lines += [{"step": step, "validation/loss": 0.2, "validation/loss_upper": 0.1} for step in (0, 40)]
    parts = "validation_region/kept", "validation_region/kept_upper", "validation_noise/0.25-0.50"
    lines += [{"step": step, **dict.fromkeys(parts, loss)} for step, loss in ((0, 0.4), (20, 0.1), (40, 0.2))]
    lines += [{"step": step, "drawn/upper": 8 * step, "drawn/full": step} for step in (20, 40)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 41, "tr')
    (folder / "validation").mkdir()
    for step, colour in ((0, "red"), (40, "blue")):
        Image.new("RGB", (8, 8), colour).save(folder / "validation" / f"step-{step:06d}.png")
    return folder


def test_the_page_says_what_the_folder_holds(run: Path) -> None:
    page = write_report(run).read_text()
    assert "<h1>deepfashion_lora_quick_test_&lt;1&gt;</h1>" in page and "<td>a &amp; b</td>" in page
    assert "40 of 40, 4 samples each" in page and "none yet" in page
    assert "5 (default: 16)" in page and "0.1 (default: 0.0)" in page and page.count("mask_") == 1
    assert "lora_alpha" not in page, "it is the rank, as always"
    assert "a GPU" in page
    assert "6.0 s, 75 %" in page and "2.0 s, 25 %" in page and "0.5 s" in page
    cells = "".join(f'<td class="number">{count}</td>' for count in (320, 0, 40))
    assert f"<tr><td>sampled by step 40</td>{cells}</tr>" in page
    assert "<h2>Warnings</h2>" not in page, "there were none"
    assert page.count("<svg") == 1 and "step-000040.png" in page and "step-000000.png" not in page
    assert "<!-- loss -->" in page and "<!-- loss_upper -->" in page and "<!-- kept" not in page
    losses = '<td class="number">0.4000 / 0.1000 / 0.2000</td>'
    assert f"<tr><td>region kept</td>{losses}{losses}</tr>" in page
    assert f'<tr><td>noise 0.25-0.50</td>{losses}<td class="number"></td></tr>' in page
    assert not re.search(r"<(script|link|iframe)|(src|href)=.https?://|url\(http", page), (
        "it must open without a network"
    )


def test_data_and_warnings_are_those_of_the_run(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_data(run, {"training, garment from flat": {"upper": 1200}, "validation": {"full": 3}})
    config = replace(on_toy(quick_test()), output_dir=str(run), resume_from_checkpoint=None)
    with caplog.at_level(logging.INFO), own_run(config, True):
        logging.getLogger("tryon.training.latent_cache").warning("warning: skipped: %s", "a < b\nTraceback")
        logging.getLogger("tryon.training.latent_cache").info("nothing to worry about")
    logging.getLogger("tryon.training.latent_cache").warning("of something else")
    page = write_report(run).read_text()
    assert '<td>training, garment from flat</td><td class="number">1,200</td>' in page
    assert '<td>validation</td><td class="number">0</td><td class="number">0</td><td class="number">3</td>' in page
    assert re.search(r"<li>\d\d:\d\d:\d\d skipped: a &lt; b</li>", page) and page.count("<li>") == 1

    (run / "warnings.log").write_text("".join(f"12:00:00 warning {number}\n" for number in range(25)))
    page = write_report(run).read_text()
    assert "warning 19</li>" in page and "warning 20" not in page and "... and 5 more in warnings.log" in page


def test_the_loss_of_the_only_category_is_drawn_once(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(lines.replace('"validation/loss_upper": 0.1', '"validation/loss_upper": 0.2'))
    page = write_report(run).read_text()
    assert "<!-- loss = loss_upper -->" in page and "<!-- loss -->" not in page

    parts = ("loss_upper", "ema_loss_full", "loss", "loss_lower", "loss_full")
    row = {f"validation/{name}": float(number) for number, name in enumerate(parts)}
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"step": 41, **row}) + "\n")
    shown = re.findall(r"<!-- (\w*loss\w*) -->", write_report(run).read_text())
    assert shown == ["loss", "loss_upper", "loss_lower", "ema_loss_full", "loss_full"], "garments in their order"


def value(mean: float, cases: int = 4) -> dict[str, float]:
    return {"mean": mean, "low": mean - 1, "high": mean + 1, "cases": cases}


# As runs wrote them before evaluation.json had a version, and as evaluate_lora.py did.
OF_OLDER_RUN = {
    "seed": 0, "vae_psnr": 29.9, "length_ok": 0.75,
    "lower": {
        "paired": {"before": {"psnr": 14.63, "ssim": 0.504}, "after": {"psnr": 20.5, "ssim": 0.7},
                   "fill": {"psnr": 10.06, "ssim": 0.461}, "vae": {"psnr": 27.22, "ssim": 0.874}},
    },
}  # fmt: skip
OF_OLDER_COMMAND = {
    "settings": {"data": "drawings", "seed": 0},
    "loras": {"LoRA": {"file": "runs/a/lora.safetensors", "sha256": "0", "step": 9}},
    "not_computed": {"lpips": "No module named 'lpips'"},
    "scores": {
        "paired": {
            each: {
                "cases": 4, "on_edges": value(0.2),
                "base": {"psnr": value(14.63), "ssim": value(0.504), "changed_outside": 0.0},
                "LoRA": {"psnr": value(20.5), "ssim": value(0.7), "changed_outside": 0.0},
                "LoRA - base": {"psnr": {**value(5.87), "marked": False}, "ssim": {**value(0.196), "marked": False}},
            }
            for each in ("lower", "all")
        },
        "unpaired": {each: {"cases": 4, "base": {"changed_outside": 0.0}, "LoRA": {"changed_outside": 0.0}}
                     for each in ("lower", "all")},
    },
}  # fmt: skip


def test_scores_of_today_and_of_both_older_forms_are_shown(run: Path) -> None:
    today = json.loads(json.dumps({"version": 2, **OF_OLDER_COMMAND}))
    of_lower = today["scores"]["paired"]["lower"]
    of_lower |= {
        "fill": {"psnr": value(10.06), "ssim": value(0.461)},
        "vae": {"psnr": value(27.22), "ssim": value(0.874)},
    }
    for name, share in (("LoRA", 0.75), ("base", 0.25)):
        today["scores"]["unpaired"]["all"][name]["length_right"] = value(share)
    models = "".join(f'<td class="number">{cell}</td>' for cell in ("14.63 / 0.504", "20.50 / 0.700", "+5.87 / +0.196"))
    bounds = '<td class="number">10.06 / 0.461</td><td class="number">27.22 / 0.874</td>'
    for scores, cells, length in (
        (today, models + bounds, "3 of 4, before in 1"), (OF_OLDER_RUN, models + bounds, "75%"),
        (OF_OLDER_COMMAND, models, None),
    ):  # fmt: skip
        save_json(run / "evaluation.json", scores)
        page = write_report(run).read_text()
        assert f"<tr><td>lower, paired</td>{cells}</tr>" in page and "unpaired</td>" not in page
        heads = "".join(f'<th class="number">{name}</th>' for name in ("base", "LoRA", "LoRA - base"))
        assert heads in page and "all, paired" not in page
        assert (f"Length of trousers for shorts and the reverse: right in {length}." in page) == (length is not None)
        assert "<code>base</code>: the model without this LoRA" in page


def saved(run: Path, step: int) -> dict[str, object]:
    """A checkpoint of that step, as evaluation.json names its LoRA."""
    file = lora_file(run / f"checkpoint-{step}")
    file.parent.mkdir(parents=True)
    file.write_text(f"LoRA of step {step}")
    write_manifest(file.parent.parent)
    return {"file": str(file), "sha256": file_hash(file)[:16], "step": step}


def verdict_of(run: Path) -> str:
    return re.search(r'<p class="verdict">(.*?)</p>', write_report(run).read_text())[1]


def command(used: Path) -> str:
    return f"python tryon_inference_lora.py --lora {html.escape(str(used))} --image person.jpg"


def test_the_page_opens_with_a_verdict_and_names_the_checkpoint_to_use(run: Path) -> None:
    assert verdict_of(run) == "Nothing can be said yet: no checkpoint is saved."
    older, newest = saved(run, 20), saved(run, 40)
    (run / "metrics.jsonl").write_text('{"step": 20, "validation/loss": 0.3}\n{"step": 40, "validation/loss": 0.2}\n')
    flag = '<span class="flag">--lora</span>'
    words = f"Use checkpoint-40, the newest; it is not scored yet: python evaluate_lora.py {flag} "
    assert verdict_of(run).startswith(words), "no line ends within a flag"
    assert command(run) in (run / "report.html").read_text()

    def scores(**loras: dict[str, object]) -> dict[str, object]:
        of_all: dict[str, object] = {"cases": 6, "base": {"psnr": value(10.0, 6)}}
        for number, heading in enumerate(loras):
            of_all[heading] = {"psnr": value(12.0 - number, 6)}
            of_all[f"{heading} - base"] = {"psnr": {**value(2.0 - number, 6), "marked": number == 0}}
        return {
            "version": 2,
            "settings": {"data": "drawings"},
            "loras": loras,
            "scores": {"paired": {"lower": of_all, "all": of_all}},
        }

    of_end = scores(LoRA=newest)
    for result in of_end["scores"]["paired"].values():
        for part in ("base", "LoRA"):
            result[part]["ssim"] = value(0.5)
    save_json(run / "evaluation.json", of_end)
    own = "on 6 paired pairs better than the base on lower (PSNR +2.00 [+1.00, +3.00])."
    assert verdict_of(run) == f"Use checkpoint-40, the newest: {own}"
    (run / "metrics.jsonl").write_text('{"step": 20, "validation/loss": 0.1}\n{"step": 40, "validation/loss": 0.2}\n')
    lower = "and compare checkpoint-20 with it, whose validation loss is lower (0.1000 instead of 0.2000)"
    assert verdict_of(run) == f"Use checkpoint-40, the newest, {lower}: {own}"

    (run / "scores").mkdir()
    save_json(run / "scores" / "evaluation.json", scores(**{"LoRA 1": older, "LoRA 2": newest}))
    add_evaluation(run, run / "scores")
    assert verdict_of(run) == f"Use checkpoint-20, whose PSNR is the highest of the 2 checkpoints scored: {own}"
    assert command(run / "checkpoint-20") in (run / "report.html").read_text(), "what is advised is what is shown"
    both = run / "scores" / "evaluation.json"
    many = both.read_text()
    both.write_text(many.replace('"cases": 6', '"cases": 5'))
    add_evaluation(run, run / "scores")
    assert command(run) in (run / "report.html").read_text()
    few = "5 pairs cannot say which of the 2 checkpoints scored is better: look at the pictures."
    assert verdict_of(run) == f"Use checkpoint-40, the newest, {lower}; {few}"
    both.write_text(many)
    add_evaluation(run, run / "scores")
    page = (run / "report.html").read_text()
    assert "<th>deepfash…" in page and ", step 20</th>" in page and "LoRA 1" not in page
    assert "checkpoint-20/transformer/pytorch_lora_weights.safetensors, step 20</td>" in page
    cells = ("10.00", "12.00", "*+2.00 [+1.00, +3.00]", "11.00", "+1.00 [+0.00, +2.00]")
    row = "".join(f'<td class="number">{cell}</td>' for cell in cells)
    assert f"<tr><td>lower (6)</td><td>PSNR, mask</td>{row}</tr>" in page and "A star (*) is before" in page
    save_json(both, json.loads(many.replace('"marked": true', '"marked": false')))
    add_evaluation(run, run / "scores")
    assert "A star" not in (run / "report.html").read_text(), "there is none"

    save_json(run / "scores" / "evaluation.json", scores(LoRA=older))
    add_evaluation(run, run / "scores")
    assert verdict_of(run).endswith(f"{lower}: {own}"), "that of the newest checkpoint, not of the last command"
    of_end["scores"]["paired"]["all"]["cases"] = 5
    save_json(run / "evaluation.json", of_end)
    save_json(run / "evaluate_lora.json", scores(**{"any heading": newest}))
    assert verdict_of(run).endswith(f"{lower}: {own}"), "that of more pairs"
    elsewhere = scores(**{"of another run": {**newest, "own_data": False}})
    save_json(run / "evaluate_lora.json", elsewhere)
    few_of_end = "5 paired pairs cannot say whether it is better than the base: look at the pictures."
    assert verdict_of(run).endswith(f"{lower}: {few_of_end}"), "not that of other data"
    assert "<p>Of drawings.</p>" in (run / "report.html").read_text()
    (run / "scores" / "earlier" / "1").mkdir(parents=True)
    save_json(run / "scores" / "earlier" / "1" / "evaluation.json", scores(LoRA=newest))
    assert verdict_of(run).endswith(f"{lower}: {own}"), "an earlier one of more pairs"
    shutil.rmtree(run / "scores" / "earlier")
    save_json(run / "evaluate_lora.json", scores(LoRA=older))
    (run / "evaluation.json").unlink()
    unscored = f"Use checkpoint-40, the newest, {lower}"
    assert verdict_of(run) == f"{unscored}; it is not scored, and checkpoint-20 is: {own}"


def test_the_best_checkpoint_is_the_one_to_use(run: Path) -> None:
    for step in (20, 40):
        saved(run, step)
        save_json(run / f"checkpoint-{step}" / "trainer_state.json", {"keep_best": "loss_upper"})
    rows = [{"step": 20, "validation/loss_upper": 0.1, "validation/loss": 0.3}]
    rows += [{"step": 40, "validation/loss_upper": 0.2, "validation/loss": 0.2}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = "Use checkpoint-20, whose validation loss_upper is the lowest (0.1000); it is not scored yet"
    assert verdict_of(run).startswith(words)
    page = (run / "report.html").read_text()
    assert "<th>best checkpoint</th><td>checkpoint-20</td>" in page and command(run) in page
    assert "checkpoint-20/transformer/pytorch_lora_weights.safetensors</p>" in page

    # Its moving average is better still, and is what was scored.
    (average := ema_file(run / "checkpoint-20")).parent.mkdir()
    average.write_text("average of step 20")
    write_manifest(run / "checkpoint-20")
    rows[0]["validation/ema_loss_upper"] = 0.05
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    measured, gain = {"psnr": value(12.0, 6), "ssim": value(0.5, 6)}, {"psnr": {**value(2.0, 6), "marked": True}}
    of_all = {"cases": 6, "base": measured, "LoRA": measured, "LoRA - base": gain}
    loras = {"LoRA": {"file": str(average), "sha256": file_hash(average)[:16], "step": 20}}
    scores = {"paired": {"lower": of_all, "all": of_all}}
    save_json(run / "evaluation.json", {"version": 2, "settings": {}, "loras": loras, "scores": scores})
    words = "Use checkpoint-20, whose validation loss_upper is the lowest (0.0500): on 6 paired pairs better"
    assert verdict_of(run).startswith(words)
    assert "checkpoint-20/ema/pytorch_lora_weights.safetensors</p>" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("curves", "said"),
    [
        ({"loss_upper": [5, 4, 3, 2]}, "At step 30 the validation loss still falls on upper: more steps may help"),
        (
            {"loss_upper": [5, 3, 4, 3.5, 2.99], "loss_lower": [9, 8, 8, 9, 7.95], "loss_full": [5, 4, 3, 2.9, 3.5]},
            "At step 40 the validation loss still falls on full and has not fallen since step 10 on upper and lower: "
            "more steps may help full alone",
        ),
        (
            {"loss_upper": [1, 2, 3, 4], "loss_lower": [4, 3, 3, 3], "loss_full": [3, 2, 2, 3]},
            "At step 30 the validation loss has not fallen since step 0 on upper and has not fallen since step 10 on "
            "lower and full: further steps did not help",
        ),
        (
            {"loss_upper": [5, 4, 4, 4], "ema_loss_upper": [5, 4.5, 3, 3.5]},
            "At step 30 the validation loss still falls on upper: more steps may help",
        ),
        ({"loss_upper": [1, 2], "loss_lower": [1, 2]}, ""),
        ({}, ""),
    ],
)  # fmt: skip
def test_when_to_stop_follows_from_the_curves(run: Path, curves: dict[str, list[float]], said: str) -> None:
    count = len(next(iter(curves.values()), ()))
    rows = [{f"validation/{name}": curve[index] for name, curve in curves.items()} for index in range(count)]
    lines = [json.dumps({"step": 10 * index, **row}) + "\n" for index, row in enumerate(rows)]
    (run / "metrics.jsonl").write_text("".join(lines))
    assert re.findall(r"<p>(At step .*)\.</p>", write_report(run).read_text()) == ([said] if said else [])


def test_a_run_that_went_on_has_the_steps_of_its_newest_part(run: Path) -> None:
    settings = json.loads((run / "config.json").read_text())
    for step, steps in ((9, 20), (40, 50)):
        save_json(run / f"config-from-{step}.json", {**settings, "max_train_steps": steps})
    assert "40 of 50, 4 samples each" in write_report(run).read_text()
    save_json(run / "config-from-40.json", {**settings, "num_train_epochs": 3})
    assert "40 of those of 3 epochs, 4 samples each" in write_report(run).read_text()


def test_no_default_is_listed_as_a_setting_that_differs(run: Path) -> None:
    assert DATA_DEFAULTS.items() <= {**vars(DataConfig()), **vars(FolderConfig(dataroot="data"))}.items()
    config = replace(on_toy(quick_test()), lora_alpha=16, quantization="none", output_dir=str(run),
                     pretrained_model_name_or_path="toy")  # fmt: skip
    data = DataConfig(dataset_name="drawn")
    save_json(run / "config.json", {**asdict(config), **asdict(data), **asdict(MaskConfig())})
    assert "Settings that differ" not in write_report(run).read_text()
    save_json(run / "config.json", {**asdict(config), **asdict(replace(data, min_reference="flat"))})
    assert "<th>min_reference</th><td>flat (default: same_picture)</td>" in write_report(run).read_text()


def test_pictures_of_scored_pairs_and_of_the_newest_validation_are_shown(run: Path) -> None:
    shutil.copy(run / "validation" / "step-000000.png", run / "evaluation-paired.png")
    page = write_report(run).read_text()
    assert page.count("<img") == 2 and page.index("evaluation-paired.png") < page.index("step-000040.png")


def test_a_toys_page_says_so(run: Path) -> None:
    words = f"<strong>Toy model</strong>: {TOY_NOTICE}."
    assert words in write_report(run).read_text()
    settings = json.loads((run / "config.json").read_text())
    save_json(run / "config.json", {**settings, "toy": False})
    assert words not in write_report(run).read_text()


def test_a_run_that_has_just_begun_has_a_page_and_another_folder_has_none(run: Path, tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "environment.json"):
        (run / name).unlink()
    shutil.rmtree(run / "validation")
    page = write_report(run).read_text()
    assert "0 of 40" in page and "<svg" not in page and "Where time went" not in page and "by region" not in page
    assert "None yet: they are drawn by the first validation." in page
    with pytest.raises(ValueError, match="holds no config.json"):
        write_report(tmp_path)
