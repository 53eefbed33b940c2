"""A page on which people compare two LoRAs without knowing which is which, and what their answers say.

python -m tryon.compare_blind RUN_A RUN_B            writes the page; evaluate_lora.py scored both on the same pairs
python -m tryon.compare_blind --read answers.json    wins, and which scores agree with people
"""

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tryon.cli import parse, run_script
from tryon.config import MOST_SEED, setting
from tryon.files import file_hash, read_json
from tryon.pages import TEMPLATES, jpeg_url, render
from tryon.runs import find_lora, lora_name, run_of
from tryon.scores import FEW, INPUTS, LEAST_CASES, LOWER_IS_BETTER, OF_CASES, input_path, picture_path, read_lines
from tryon.units import plural

PAGE = "compare_blind_{}.html"  # with the names of both LoRAs, so that no comparison takes another's place


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Which LoRAs are compared, on how many pairs; or which answers are read."""

    runs: tuple[str, ...] = setting((), "two runs or checkpoints", positional=True)
    page: str | None = setting(
        None, "where the page is written; if not given, in the first run's folder, named after both LoRAs"
    )
    count: int = setting(40, "pairs on the page", 1, 1000)
    seed: int = setting(0, "seed of the pairs, their order, and the sides", 0, MOST_SEED)
    read: str | None = setting(None, "say what the answers in this file mean, which the page's button saved")


def problems_of(config: CompareConfig) -> Iterator[str]:
    """What is wrong with the flags beyond single values."""
    if config.read and config.runs:
        yield "--read needs no runs: leave them out"
    if config.read and not Path(config.read).expanduser().is_file():
        yield f"--read {config.read} is no file"
    if not config.read and len(config.runs) != 2:
        yield f"{plural(len(config.runs), 'run')} given: name two runs or checkpoints, or --read a file of answers"


def pairs_to_compare(runs: tuple[str, ...], count: int, seed: int) -> list[dict[str, Any]]:
    """Up to `count` pairs that both LoRAs dressed, drawn by lot: pictures as `data:` URLs, which LoRA is at the left,
    and the scores of both. Unpaired ones where there are some: a new garment is what people judge.

    Raises ValueError where the LoRAs were not scored on the same pairs.
    """
    files = [find_lora(run) for run in runs]
    digests = [file_hash(file)[:16] for file in files]
    folders = [run / "scores" for run in dict.fromkeys(map(run_of, files)) if run]
    found: list[dict[tuple[str, str], tuple[Path, dict[str, Any]]]] = [{}, {}]
    for folder in folders:
        for (model, kind, _), line in read_lines(folder).items():
            for of_lora, digest in zip(found, digests, strict=True):
                if model == digest:
                    of_lora[kind, line["key"]] = folder, line
    both = sorted(found[0].keys() & found[1].keys())
    both = [each for each in both if each[0] == "unpaired"] or [each for each in both if each[0] == "paired"]
    if not both or digests[0] == digests[1]:
        raise ValueError(
            f"{runs[0]} and {runs[1]} were not scored on the same pairs, or are the same LoRA: first run "
            f"python evaluate_lora.py --lora {runs[0]} {runs[1]}"
        )
    lot, pairs = random.Random(seed), []
    for place in lot.sample(both, min(count, len(both))):
        (folder, line), (other_folder, other) = (of_lora[place] for of_lora in found)
        kind, index = line["kind"], line["case"]
        inputs = [input_path(folder, name, kind, index) for name in INPUTS]
        if not all(path.is_file() for path in inputs):
            raise ValueError(f"{folder} holds no persons and garments: give its evaluate_lora.py command again")
        results = {
            "a": picture_path(folder, (line["model"], kind, index)),
            "b": picture_path(other_folder, (other["model"], other["kind"], other["case"])),
        }
        left, right = lot.sample("ab", 2)
        pictures = [jpeg_url(Image.open(path).convert("RGB")) for path in (*inputs, results[left], results[right])]
        scores = {name: [line[name], other[name]] for name in OF_CASES if name in line and name in other}
        name = f"{kind} {line['name']}"
        pairs.append({"name": name, "pictures": pictures, "left": left, "right": right, "scores": scores})
    return pairs


def page_of(name: str, other: str) -> Path:
    """Where the page is written unless another place is named: in the folder of the first run, else of its LoRA's file,
    by that one's step and the other's name, such as compare_blind_step-8000_shirts-step-4000.html."""
    file = find_lora(name).absolute()
    folder = run_of(file) or file.parent
    names = lora_name(file).removeprefix(folder.name), lora_name(find_lora(other))
    return folder / PAGE.format("_".join(re.sub(r"[^\w.]+", "-", each).strip("-") for each in names))


def read_answers(file: Path) -> dict[str, Any]:
    """The answers as said_by takes them. Raises ValueError where the file holds something else."""
    try:
        answers = read_json(file)
    except ValueError:
        answers = {}
    if not {"a", "b", "answers"} <= answers.keys():
        raise ValueError(f"{file} is no file of answers: name the one that the page's button saved")
    return answers


def said_by(answers: dict[str, Any]) -> list[str]:
    """Lines: who won how often, with a 95 % interval (Wilson), and how often each score agrees, where people and score
    prefer one of the two; fewer than LEAST_CASES say nothing. answers: {"a", "b": names, "answers": [{"chosen": "a",
    "b" or "same", "scores": {measure: [of a, of b]}}]}."""
    a, b, given = answers["a"], answers["b"], answers["answers"]
    wins = Counter(each["chosen"] for each in given)
    lines = [f"A: {a}", f"B: {b}", f"A better: {wins['a']}, B better: {wins['b']}, same: {wins['same']}"]
    if decided := [each for each in given if each["chosen"] != "same"]:
        lines.append(f"A is preferred in {_share(wins['a'], len(decided))}")
    for name, how in OF_CASES.items():
        differing = [each for each in decided if len(set(each["scores"].get(name, ()))) == 2]
        agreeing = 0
        for each in differing:
            of_a, of_b = each["scores"][name]
            agreeing += ((of_a < of_b) if name in LOWER_IS_BETTER else (of_a > of_b)) == (each["chosen"] == "a")
        if differing:
            lines.append(f"{how.heading.removesuffix(', %')} agrees in {_share(agreeing, len(differing))}")
    return lines


def _share(count: int, total: int) -> str:
    from scipy.stats import binomtest  # a second, and not before it is needed

    interval = binomtest(count, total).proportion_ci(method="wilson")
    chance = ": no more than chance" if interval.low <= 0.5 <= interval.high else ""
    doubt = f": {FEW}" if total < LEAST_CASES else chance
    return f"{count} of {total}, {count / total:.0%} [{interval.low:.0%}, {interval.high:.0%}]{doubt}"


def main(argv: list[str]) -> None:
    description = "Lets people compare two LoRAs blindly, and reads their answers."
    (config,) = parse(argv, "python -m tryon.compare_blind", description, CompareConfig, problems=problems_of)
    if config.read:
        print("\n".join(said_by(read_answers(Path(config.read).expanduser()))))
        return
    pairs = pairs_to_compare(config.runs, config.count, config.seed)
    page = Path(config.page).expanduser().absolute() if config.page else page_of(*config.runs)
    names = dict(zip("ab", config.runs, strict=True))
    page.write_text(render(TEMPLATES / "compare_blind.html.j2", name="Which is better?", names=names, pairs=pairs))
    print(f"{plural(len(pairs), 'pair')}: open {page} in a browser")


if __name__ == "__main__":
    run_script(main)
