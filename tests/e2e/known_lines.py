"""What commands print: a line that a user can do nothing about has no place in it."""

import re

from tryon.config import TOY_NOTICE

NUMBER = r"[\d.e+-]+"
LOADING = r"loading torch, diffusers and transformers \.\.\."
COUNTS = r"\d+ (upper|lower|full)(, \d+ (lower|full))*"
QUICK_TEST = [
    LOADING,
    rf"TOY MODEL, because no GPU was found: a tiny model stands in for FLUX and CatVTON-Flux; {TOY_NOTICE}",
    r"  \w+ +\S.*",  # a setting and its value
    r"drawing the toy's data into \S.*",
    r"drawing: \d+ of \d+, [\d:]+ left",
    r"reading (samples|held-out pairs): \d+ of \d+, [\d:]+ left",
    r"(drawing without the LoRA|validating step \d+): \d+ of \d+, [\d:]+ left",
    r"\d+ of \d+ pairs left out: --base_categories upper",
    rf"(training|validation) pairs: \d+  \({COUNTS}; garment from \d+ flat\)",
    r"(training|validation) samples: \d+( of \d+ pairs in up to \d variants)?, \d+ of them encoded already",
    r"encoding \d+ samples? into .*: (under )?[\d.]+ GB needed, [\d.]+ GB free",
    r"encoding (training|validation) samples: \d+ of \d+, [\d:]+ left",
    r"(training|validation) samples encoded: \d+, [\d.]+ per second, two pictures each; "
    r"for \d+ % of the time it waited for pictures",
    rf"LoRA: rank \d+, {NUMBER} M parameters",
    rf"validation at step \d+: loss {NUMBER}(, loss_(upper|lower|full) {NUMBER})+; pictures in .*\.png",
    rf"step \d+/\d+: loss {NUMBER}, lr {NUMBER}, {NUMBER} s/step(, [\d:]+ left)?",
    r"saved .*/pytorch_lora_weights\.safetensors",
    r"where time went: (\w+ \d+ %(, )?)+",
    rf"sampled: {COUNTS}",
    r"loading .*, .* and .*/pytorch_lora_weights\.safetensors",
    r"scoring: \d+ of \d+, [\d:]+ left",
    r"PSNR in dB, SSIM +base +LoRA +fill +vae",
    rf"(upper|lower|full), (un)?paired +({NUMBER} {NUMBER} *){{4}}",
    r"upper-body garments are dressed without the LoRA, which was not trained on them",
    r"length of trousers for shorts and the reverse: right in \d+ of \d+, before in \d+",
    r"pictures, curves, and how to use the LoRA: .*/report\.html",
    r"finished: .*",
]
INFERENCE = [
    r"this LoRA was trained for \S+ and is used with \S+: the result may suffer",
    r"downloading (under )?[\d.]+ GB of \S+ into .*, which has [\d.]+ GB free",
    r"downloaded \S+",
    r"loading .*, .* and .*/pytorch_lora_weights\.safetensors",
    r"dressing, \d+ steps? at guidance \d+",
    r"wrote .* \(seed \d+; \d+ x \d+ pixels, height x width\)",
]


def unknown_lines(output: str, known: list[str]) -> list[str]:
    """The lines, without their time of day, that are none of the known."""
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in output.splitlines()]
    return [line for line in lines if not any(re.fullmatch(pattern, line) for pattern in known)]
