"""Trains the toy's weights from nothing: a VAE on all its drawings, then a FLUX-Fill transformer on upper-body garments
only, as catvton-flux-alpha was; and a SegFormer that labels the parts of drawn people.

    python pretrain_toy.py --stage vae
    python pretrain_toy.py --stage transformer
    python pretrain_toy.py --stage parser

Everything follows from the seed and the step, so an interrupted stage goes on as if it had not been: start it again,
with the same flags.
The result, half-precision weights and a manifest, lies in <output_dir>/weights; the project's own is tryon/toy/weights.

All three in nine minutes of an H100 with 16 cores, and rehearsed on a CPU in three; what the time does not allow, the
same command goes on with:

    python pretrain_toy.py --stage all --max_time 0:09 --drawing_processes 16 --compile --save_every 2000 \\
        --drawings 24000 --vae_batch_size 128 --transformer_batch_size 128 --parser_batch_size 16
    python pretrain_toy.py --stage all --max_time 0:03 --drawing_processes 2 --compile --save_every 10 \\
        --drawings 64 --held_out 4 --vae_steps 20 --transformer_steps 20 --parser_steps 20 --output_dir runs/rehearsal
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tryon.cli import parse, run_script
from tryon.config import seconds_of
from tryon.console import MODEL_LIBRARIES, load_libraries, set_up_logging
from tryon.files import MANIFEST, read_json
from tryon.signals import TIME_IS_UP, asked_to_stop, stop_after
from tryon.toy.pretrain.config import STAGE_ENDS, PretrainConfig
from tryon.units import plural

logger = logging.getLogger(__name__)


def read_settings(argv: list[str]) -> PretrainConfig:
    """The flags, checked. Raises ValueError, in one sentence, for every mistake."""
    description = "Trains the toy's weights from nothing."
    (config,) = parse(argv, "python pretrain_toy.py", description, PretrainConfig, problems=problems_of)
    return config


def problems_of(config: PretrainConfig) -> Iterator[str]:
    """What is wrong with the flags beyond single values."""
    vae = read_json(Path(config.output_dir) / "weights" / MANIFEST).get("vae.safetensors")
    if config.stage == "transformer" and vae is None:
        yield f"{config.output_dir} has no weights/vae.safetensors: run --stage vae first"
    elif config.stage == "transformer" and (left := vae.get("steps_left")):
        yield f"the VAE in {config.output_dir} has {plural(left, 'step')} left: run --stage vae to its end first"


def main(argv: list[str]) -> None:
    config = read_settings(argv)
    set_up_logging(is_main_process=True)
    load_libraries(*MODEL_LIBRARIES)
    import torch

    from tryon.toy.pretrain.parser import parser_stage
    from tryon.toy.pretrain.stage import is_finished, run_stage
    from tryon.toy.pretrain.transformer import transformer_stage
    from tryon.toy.pretrain.vae import vae_stage

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    make_stage = {"vae": vae_stage, "transformer": transformer_stage, "parser": parser_stage}
    command, code = " ".join(["python pretrain_toy.py", *argv]), 0
    for stage, end in STAGE_ENDS.items() if config.stage == "all" else ((config.stage, 1.0),):
        one = replace(config, stage=stage)
        if config.stage == "all" and is_finished(one):
            logger.info("%s: finished", stage)
            continue
        if stage == "transformer" and code:  # another VAE would be another task
            logger.info("transformer: waits for the VAE's last step")
            continue
        stop_after(end * seconds_of(config.max_time) if config.max_time else None)
        if not run_stage(make_stage[stage](one, device), one, command):
            code = TIME_IS_UP
        if (stop := asked_to_stop()) > TIME_IS_UP:  # a signal
            raise SystemExit(stop)
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    run_script(main)
