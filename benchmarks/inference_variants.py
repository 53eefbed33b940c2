"""Ways to try on that benchmarks/inference.py times. Imports nothing heavy."""

from dataclasses import dataclass

from tryon.config import Quantization


@dataclass(frozen=True)
class Variant:
    """A way to infer: the command line's flags of these names, and whether the LoRA is folded into the weights."""

    quantization: Quantization = "none"
    offload: bool = False
    fold: bool = False
    compile: bool = False
    cache: float | None = None  # the threshold of a First-Block-Cache

    @property
    def placement(self) -> tuple[bool, Quantization, bool]:
        """Equal for variants that can share a transformer; in this order they run."""
        return self.quantization != "none" or self.offload, self.quantization, self.offload


ALWAYS = {"stock": Variant(), "eager": Variant()}
VARIANTS = {
    "none": Variant(fold=True),
    "first_block:0.05": Variant(fold=True, cache=0.05),
    "first_block:0.1": Variant(fold=True, cache=0.1),
    "first_block:0.2": Variant(fold=True, cache=0.2),
    "compile": Variant(fold=True, compile=True),
    "compile_first_block:0.05": Variant(fold=True, compile=True, cache=0.05),
    "compile_first_block:0.1": Variant(fold=True, compile=True, cache=0.1),
    "compile_first_block:0.2": Variant(fold=True, compile=True, cache=0.2),
    "fp8": Variant(quantization="fp8"),
    "fp8_compile": Variant(quantization="fp8", compile=True),
    "nf4": Variant(quantization="nf4"),
    "nf4_compile": Variant(quantization="nf4", compile=True),
    "nf4_offload": Variant(quantization="nf4", offload=True),
}
