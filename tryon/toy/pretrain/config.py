"""The settings of the toy's pretraining. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal

from tryon.config import MOST, MOST_AT_ONCE, MOST_SEED, PROJECT, setting

# The stages in their order, and after which share of --max_time each stops where all run. The transformer, which needs
# the finished VAE, has what that leaves over.
STAGE_ENDS = {"vae": 0.88, "transformer": 0.88, "parser": 1.0}


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The flags of pretrain_toy.py."""

    stage: Literal["vae", "transformer", "parser", "all"] = setting(
        "vae", "what is trained; the transformer needs the VAE"
    )
    output_dir: str = setting(str(PROJECT / "runs" / "pretrain_toy"), "where log, state and weights are written")
    seed: int = setting(0, "seed of drawings, weights and noise", 0, MOST_SEED)
    drawings: int = setting(12000, "diptychs drawn for training; the parser never sees a drawing twice", 1, MOST)
    drawing_processes: int = setting(0, "processes that draw; 0: the one that trains does", 0, MOST_AT_ONCE)
    held_out: int = setting(32, "diptychs, or people, drawn for the measurements", 1, MOST)
    save_every: int = setting(
        500, "steps between two measurements, with weights written and a state that can be gone on from", 1, MOST
    )
    max_time: str | None = setting(
        None, "save and stop this long after the start, hh:mm; with exit code 124 where steps are left"
    )

    vae_steps: int = setting(3000, "optimiser steps of the VAE", 1, MOST)
    vae_batch_size: int = setting(16, "crops of 64 x 64 pixels per step", 1, MOST_AT_ONCE)
    vae_learning_rate: float = setting(1e-3, "peak learning rate of the VAE", 0, MOST)

    compile: bool = setting(False, "compile the transformer's blocks: a minute more, then faster steps")
    transformer_steps: int = setting(9500, "optimiser steps of the transformer", 1, MOST)
    transformer_batch_size: int = setting(16, "diptychs per step", 1, MOST_AT_ONCE)
    transformer_learning_rate: float = setting(
        8e-3, "peak learning rate of Muon, for the transformer's matrices", 0, MOST
    )

    parser_steps: int = setting(3000, "optimiser steps of the parser", 1, MOST)
    parser_batch_size: int = setting(8, "drawn people per step", 1, MOST_AT_ONCE)
    parser_learning_rate: float = setting(8e-3, "peak learning rate of Muon, for the parser's matrices", 0, MOST)
