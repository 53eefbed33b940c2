"""What a run will need, and whether this machine is fit for it: --plan and --check are answered here, not a step is
taken."""

from pathlib import Path

import torch

from tryon.config import PlanConfig, TrainConfig
from tryon.console import set_up_logging
from tryon.flux.load import FILL_CONFIG, read_transformer_config
from tryon.toy.model import use_toy_model
from tryon.training.check import check
from tryon.training.plan import plan_lines


def answer(
    config: TrainConfig, plan: PlanConfig, data: list[str], pairs: int | None, variants: int, *, toy_asked_for: bool
) -> None:
    """Prints what --plan or --check asks for. Of the models only the transformer's config.json is read.

    data: what is trained on, in lines. pairs, variants: see plan_lines. toy_asked_for: see use_toy_model. Raises
    SystemExit where --check finds that this machine is not fit for the run.
    """
    if plan.check:
        set_up_logging(is_main_process=True)
    if plan.plan and config.toy:
        if toy_asked_for:
            print("this plans the toy")
        else:
            print("no GPU was found: this plans the toy, which would be trained; --gpu_memory 24 plans the real model")
    if config.toy:
        config = use_toy_model(config, toy_asked_for)
    name, price = config.pretrained_inpaint_model_name_or_path, plan.price_per_hour
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if plan.check:
        if not config.toy and device.type != "cuda":
            raise ValueError("there is a GPU that torch cannot use: update the NVIDIA driver, or add --toy")
        shapes = read_transformer_config(name, None) if Path(name).exists() else FILL_CONFIG
        if not check(config, shapes, device, Path(config.output_dir).parent, price):
            raise SystemExit(1)
        return
    try:
        shapes = read_transformer_config(name, config.cache_dir)
    except ValueError as error:
        print(f"the size of FLUX-Fill is assumed, because {error}")
        shapes = FILL_CONFIG
    here = None if plan.gpu_memory else device
    print("planned, data: " + "\n  ".join(data))
    print("\n".join(plan_lines(config, shapes, pairs, variants, here, plan.gpu_memory, price)))
