"""A tiny FLUX-Fill model of the real classes, in the real folder layouts: no download. VAE and transformer have the
weights that pretrain_toy.py gave them, the text encoders random ones from a seed. And a human parser for drawn people.

The transformer lies at the root of one folder, as catvton-flux-alpha does; tokenizers, text encoders, VAE and
scheduler lie in another, as in FLUX.1-dev. Everything downstream treats them as any other model.
"""

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tryon.config import TOY_NOTICE, TrainConfig, TryOnConfig
from tryon.data.category import CATEGORIES
from tryon.files import MANIFEST, files_fingerprint, read_json, replace_json, replacing, save_json
from tryon.flux.lora_header import TOY, LoraFacts, is_for_toy
from tryon.flux.prompts import FIXED_PROMPT, prompt_for

logger = logging.getLogger(__name__)

NOTICE = f"a tiny model stands in for FLUX and CatVTON-Flux; {TOY_NOTICE}"
MODEL_VERSION = 5
MODEL_SEED = 0
WEIGHTS = Path(__file__).parent / "weights"
TEXT_WIDTH = 64
CHARACTERS = [chr(code) for code in range(33, 127)]
# The ATR labels that the toy's parser tells apart: drawn people carry nothing, and left and right are one.
PARSER_LABELS = (
    "Background", "Face", "Left-arm", "Left-leg", "Left-shoe", "Upper-clothes", "Skirt", "Pants", "Dress",
)  # fmt: skip
# FLUX.1-dev's own, which names a transformer too; pipelines are loaded from it with another one in its place.
MODEL_INDEX = {
    "_class_name": "FluxPipeline", "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"], "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
}  # fmt: skip


@dataclass(frozen=True)
class ToyFolders:
    """base: laid out as FLUX.1-dev, without a transformer. transformer: laid out as catvton-flux-alpha."""

    base: Path
    transformer: Path


def use_toy_model(config: TrainConfig, asked_for: bool) -> TrainConfig:
    """The configuration with the paths of the toy's model, which is built in seconds where it is not there yet, and a
    word in the log that it is used. asked_for: by the user; otherwise there is no GPU."""
    logger.info("TOY MODEL%s: %s", "" if asked_for else ", because no GPU was found", NOTICE)
    folders = toy_model(Path(config.data_cache_dir))
    base, transformer = str(folders.base), str(folders.transformer)
    return replace(config, pretrained_model_name_or_path=base, pretrained_inpaint_model_name_or_path=transformer)


def use_toy_model_for_try_on(config: TryOnConfig, facts: LoraFacts) -> TryOnConfig:
    """The configuration with the paths of the toy's model where the toy is asked for, or the LoRA was trained on it and
    no other model is named. facts: the LoRA's."""
    if not is_for_toy(config, facts):
        return config
    logger.info("TOY MODEL%s: %s", "" if config.toy else ", because the LoRA was trained on it", NOTICE)
    if facts.known and facts.transformer != (name := toy_name()):
        logger.warning(
            "this LoRA was trained for %s and is used with %s: the result may suffer", facts.transformer, name
        )
    folders = toy_model(Path(config.data_cache_dir).expanduser().absolute())
    return replace(config, toy=True, base=str(folders.base), transformer=str(folders.transformer))


def parser_for_try_on(config: TryOnConfig, facts: LoraFacts) -> str | None:
    """The parser that finds what people wear, for a LoRA with these facts: its training's, else the toy's own where
    people are dressed with the toy; None: the usual one."""
    if facts.mask_parser:
        return facts.mask_parser
    return str(toy_parser(Path(config.data_cache_dir).expanduser())) if is_for_toy(config, facts) else None


def toy_name(weights: Path = WEIGHTS) -> str:
    """What a LoRA that was trained on the toy calls its models: other weights, another name."""
    files = [file for name in ("transformer", "vae") if (file := weights / f"{name}.safetensors").is_file()]
    digest = files_fingerprint(*files)[:8] if files else "random"
    return f"{TOY}-v{MODEL_VERSION}-{digest}"


def toy_model(cache_dir: Path, weights: Path = WEIGHTS) -> ToyFolders:
    """The toy's folders below `cache_dir`, built there in seconds where they are not yet.

    weights: a folder with pretrained weights; a part that has none there stays random.
    """
    folder = cache_dir / "toy" / toy_name(weights)
    build_once(folder, lambda staging: build_toy_model(staging, weights))
    return ToyFolders(base=folder / "base", transformer=folder / "transformer")


def toy_parser(cache_dir: Path, weights: Path = WEIGHTS) -> Path:
    """The folder of the human parser for drawn people, which tryon.data.human_parser.load_parser takes, below
    `cache_dir`; built there where it is not yet. weights: a folder with parser.safetensors."""
    file = weights / "parser.safetensors"
    folder = cache_dir / "toy" / f"parser-{files_fingerprint(file)[:8]}"

    def build(staging: Path) -> None:
        _pretrained(new_parser(), file).save_pretrained(staging)
        parser_processor().save_pretrained(staging)

    build_once(folder, build)
    return folder


def build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Builds a folder, whole or not at all, where it is not there yet."""
    if folder.exists():
        return
    try:
        with replacing(folder) as staging:
            build(staging)
    except OSError:
        if not folder.exists():  # else another process was faster; its files are the same
            raise


def build_toy_model(folder: Path, weights: Path) -> None:
    """Writes folder/base and folder/transformer: VAE and transformer with the weights where there are some, all else
    random from a fixed seed, the same on every machine."""
    base = folder / "base"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(MODEL_SEED)
        _clip_tokenizer().save_pretrained(base / "tokenizer")
        _t5_tokenizer().save_pretrained(base / "tokenizer_2")
        _clip_encoder().save_pretrained(base / "text_encoder")
        _t5_encoder().save_pretrained(base / "text_encoder_2")
        _pretrained(new_vae(), weights / "vae.safetensors").save_pretrained(base / "vae")
        scheduler().save_pretrained(base / "scheduler")
        save_json(base / "model_index.json", MODEL_INDEX)
        _pretrained(new_transformer(), weights / "transformer.safetensors").save_pretrained(folder / "transformer")


def write_weights(folder: Path, name: str, model: torch.nn.Module, facts: dict[str, Any]) -> Path:
    """Writes folder/<name>.safetensors in half precision, and its hash with the facts to the folder's manifest."""
    file, manifest = folder / f"{name}.safetensors", folder / MANIFEST
    with replacing(file) as staging:
        save_file({key: tensor.half().contiguous().cpu() for key, tensor in model.state_dict().items()}, staging)
    entry = {"sha256": sha256(file.read_bytes()).hexdigest(), **facts}
    replace_json(manifest, {**read_json(manifest), file.name: entry})
    return file


def _pretrained(model: torch.nn.Module, file: Path) -> torch.nn.Module:
    """The model with the file's weights, or as it is where there is none."""
    if file.is_file():
        entry = json.loads((file.parent / MANIFEST).read_text()).get(file.name, {})
        if entry.get("sha256") != sha256(file.read_bytes()).hexdigest():
            raise ValueError(f"{file} is not what its manifest says: check the project's files out again")
        model.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
    return model


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """FLUX.1-dev's scheduler with more noise, for inference in two steps: the second starts at sigma 0.88. With
    FLUX.1-dev's own shifts that would be 0.62, and try-ons 0.1 dB worse (benchmarks/log.md)."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, base_shift=2.0, max_shift=2.0)


def _prompts() -> list[str]:
    return [FIXED_PROMPT, *(prompt_for("category", category) for category in CATEGORIES)]


def _clip_tokenizer() -> CLIPTokenizer:
    """Its vocabulary is single characters, and merges that build every word of our prompts from its left."""
    merges: dict[tuple[str, str], None] = {}
    words = {word for prompt in _prompts() for word in re.findall("[a-z]+", prompt.lower())}
    for word in sorted(words):
        symbols = [*word[:-1], f"{word[-1]}</w>"]
        head = symbols[0]
        for symbol in symbols[1:]:
            merges[(head, symbol)] = None
            head += symbol
    tokens = [*CHARACTERS, *(f"{c}</w>" for c in CHARACTERS), *dict.fromkeys(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=77)


def _t5_tokenizer() -> T5Tokenizer:
    words = sorted({word for prompt in _prompts() for word in prompt.split()})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -4.0)]
    pieces += [(f"\u2581{word}", -2.0) for word in words] + [(character, -8.0) for character in CHARACTERS]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def _clip_encoder() -> CLIPTextModel:
    tokenizer = _clip_tokenizer()
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=TEXT_WIDTH, intermediate_size=2 * TEXT_WIDTH, num_hidden_layers=2,
        num_attention_heads=2, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ))  # fmt: skip


def _t5_encoder() -> T5EncoderModel:
    return T5EncoderModel(T5Config(
        vocab_size=len(_t5_tokenizer()), d_model=TEXT_WIDTH, d_kv=TEXT_WIDTH // 2, d_ff=2 * TEXT_WIDTH,
        num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
    ))  # fmt: skip


def new_vae() -> AutoencoderKL:
    """FLUX's VAE with narrow layers: 8x smaller pictures of 16 channels, no quant convolutions."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 48, 96, 96), layers_per_block=1, norm_num_groups=8, latent_channels=16,
        scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
        force_upcast=False, mid_block_add_attention=False,
    )  # fmt: skip


def new_transformer() -> FluxTransformer2DModel:
    """FLUX-Fill's transformer with few narrow blocks."""
    return FluxTransformer2DModel(
        in_channels=384, out_channels=64, num_layers=2, num_single_layers=4, attention_head_dim=32,
        num_attention_heads=7, joint_attention_dim=TEXT_WIDTH, pooled_projection_dim=TEXT_WIDTH,
        axes_dims_rope=(8, 12, 12), guidance_embeds=True,
    )  # fmt: skip


def new_parser() -> SegformerForSemanticSegmentation:
    """A narrow SegFormer. Without what is drawn at random in training: its steps follow from their number alone."""
    labels = dict(enumerate(PARSER_LABELS))
    return SegformerForSemanticSegmentation(SegformerConfig(
        strides=[2, 4, 2, 2],  # cells of 2 pixels, or waistbands are found too low; and of 8, as usual, next
        patch_sizes=[7, 7, 3, 3], depths=[1, 1, 2, 2], hidden_sizes=[16, 32, 64, 96],
        num_attention_heads=[1, 2, 4, 6], decoder_hidden_size=64, classifier_dropout_prob=0.0, drop_path_rate=0.0,
        id2label=labels, label2id={label: index for index, label in labels.items()},
    ))  # fmt: skip


def parser_processor() -> SegformerImageProcessorPil:
    """Pictures as the parser takes them: of the toy's shape, 3 pixels wide for 4 high."""
    return SegformerImageProcessorPil(size={"height": 192, "width": 144})
