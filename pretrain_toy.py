"""Trains the toy's weights from nothing: a VAE on all its drawings, then a FLUX-Fill transformer on upper-body garments
only, as catvton-flux-alpha was; and a SegFormer that labels the parts of drawn people.

    python pretrain_toy.py --stage vae
    python pretrain_toy.py --stage transformer
    python pretrain_toy.py --stage parser

Everything follows from the seed and the step, so an interrupted stage goes on as if it had not been: start it again,
with the same flags.
The result, half-precision weights and a manifest, lies in <output_dir>/weights; the project's own is tryon/toy/weights.
"""

from collections.abc import Iterator
from pathlib import Path

from tryon.cli import parse, run_script
from tryon.console import MODEL_LIBRARIES, load_libraries, set_up_logging
from tryon.toy.pretrain.config import PretrainConfig


def read_settings(argv: list[str]) -> PretrainConfig:
    """The flags, checked. Raises ValueError, in one sentence, for every mistake."""
    description = "Trains the toy's weights from nothing."
    (config,) = parse(argv, "python pretrain_toy.py", description, PretrainConfig, problems=problems_of)
    return config


def problems_of(config: PretrainConfig) -> Iterator[str]:
    """What is wrong with the flags beyond single values."""
    if config.stage == "transformer" and not (Path(config.output_dir) / "weights" / "vae.safetensors").is_file():
        yield f"{config.output_dir} has no weights/vae.safetensors: run --stage vae first"


def main(argv: list[str]) -> None:
    config = read_settings(argv)
    set_up_logging(is_main_process=True)
    load_libraries(*MODEL_LIBRARIES)
    import torch

    from tryon.toy.pretrain.parser import parser_stage
    from tryon.toy.pretrain.stage import run_stage
    from tryon.toy.pretrain.transformer import transformer_stage
    from tryon.toy.pretrain.vae import vae_stage

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    make_stage = {"vae": vae_stage, "transformer": transformer_stage, "parser": parser_stage}[config.stage]
    run_stage(make_stage(config, device), config, command=" ".join(["python pretrain_toy.py", *argv]))


if __name__ == "__main__":
    run_script(main)
