"""Prints docs/training.md's table of what each profile needs on GPUs of several sizes: planned, not measured.

python -m benchmarks.hardware_needs
"""

from dataclasses import replace

from tryon.config import TrainConfig
from tryon.console import MODEL_LIBRARIES, load_libraries
from tryon.profiles import PROFILES

if __name__ == "__main__":
    load_libraries(*MODEL_LIBRARIES)

from tryon.flux.load import FILL_CONFIG
from tryon.flux.memory import (
    TransformerCosts,
    card_memory,
    quantization_for,
    recomputed_every,
    training_memory,
    transformer_costs,
    weights_kept,
    which_recompute,
)
from tryon.units import GB

CARDS = (12, 16, 24, 32, 48, 80)  # GB that cards are sold as


def lines() -> list[str]:
    """The table in Markdown."""
    configs = {name: make() for name, make in PROFILES.items()}
    costs = {name: transformer_costs(config, FILL_CONFIG) for name, config in configs.items()}
    rows = ["| sold as | " + " | ".join(f"`{name}`" for name in configs) + " |", "|---" * (len(configs) + 1) + "|"]
    for card in CARDS:
        cells = [_cell(config, costs[name], card_memory(card)) for name, config in configs.items()]
        rows.append(f"| {card} GB, {card_memory(card) / GB:.1f} usable | " + " | ".join(cells) + " |")
    return rows


def _cell(config: TrainConfig, costs: TransformerCosts, memory: int) -> str:
    """What "auto" chooses, with --offload where nothing else fits."""
    config = replace(config, quantization=quantization_for(config.quantization, memory))
    for offload in (False, True):
        config = replace(config, offload=offload)
        every = recomputed_every(config, costs, memory)
        need = training_memory(config, costs, every).total
        if need <= memory:
            kept = weights_kept(config) + (" `--offload`" if offload else "")
            return f"{need / GB:.0f} GB: {kept}, {which_recompute(every)} recomputes"
    return "does not fit"


if __name__ == "__main__":
    print("\n".join(lines()))
