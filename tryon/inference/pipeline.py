"""One way to infer, used by validation, command line, app and evaluation: stock FluxFillPipeline on our diptych."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FirstBlockCacheConfig,
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxTransformer2DModel,
)
from PIL import Image
from torch import Tensor, nn

from tryon.config import TryOnConfig, cache_threshold, is_nowhere
from tryon.data.category import Category, MaskRule, left_to_base
from tryon.data.sample import (
    PromptEmbedding,
    TryOnSample,
    make_diptych,
    sample_of_pictures,
    split_diptych,
    to_picture,
    try_off_sample,
    upright_rgb,
    usable_mask,
)
from tryon.flux.attention import choose_attention
from tryon.flux.compiler import can_compile, compile_blocks
from tryon.flux.encode import decode_latents
from tryon.flux.load import fetch_models, load_scheduler, load_transformer, load_vae, read_transformer_config
from tryon.flux.lora import attach_lora, fold_lora
from tryon.flux.lora_header import LoraFacts, panel_size, read_facts
from tryon.flux.memory import check_inference_fits, check_panel_fits, choose_quantization
from tryon.flux.packing import count_tokens, pack_latents, unpack_latents
from tryon.flux.placement import place, quantise
from tryon.flux.prompt_cache import cache_prompts
from tryon.flux.prompts import prompt_key, prompts_of
from tryon.inference.photograph import put_back, window_of

logger = logging.getLogger(__name__)


def build_pipeline(
    transformer: FluxTransformer2DModel, vae: AutoencoderKL, scheduler: FlowMatchEulerDiscreteScheduler
) -> FluxFillPipeline:
    """The diffusers pipeline around loaded parts, without text encoders: prompts come as embeddings."""
    no_texts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipeline = FluxFillPipeline(scheduler=scheduler, vae=vae, transformer=transformer, **no_texts)
    pipeline.set_progress_bar_config(disable=True)
    vae.enable_slicing()  # a picture at a time: less memory, and on a CPU several times faster than a batch
    return pipeline


@dataclass(frozen=True)
class TryOnModel:
    """Everything that inference needs, loaded. prompts: by prompt_key. size: height and width of the panel.
    cache: as in `try_on_batch`. originals: weights without the LoRA, as fold_lora keeps them; None: it is not folded,
    as one that `without_its_lora` switches off never is.
    scale: the LoRA's strength.
    """

    pipeline: FluxFillPipeline
    prompts: dict[str, PromptEmbedding]
    lora: Path
    facts: LoraFacts
    size: tuple[int, int]
    cache: float | None
    originals: dict[nn.Parameter, Tensor] | None
    scale: float


def trained_rule(facts: LoraFacts) -> MaskRule:
    """The mask rule that a LoRA was trained with. Raises ValueError where its data brought their own masks, by a rule
    that is not known."""
    if facts.mask_rule == "given":
        raise ValueError("this LoRA was trained with masks that its data set had: give a --mask of that kind")
    return MaskRule(facts.mask_rule, *facts.mask_offsets, parser=facts.mask_parser)


def usable_rule(facts: LoraFacts) -> MaskRule:
    """The mask rule that a LoRA was trained with, or the default rule where its data brought their own masks. Use it
    where somebody looks at the mask that is made."""
    return MaskRule() if facts.mask_rule == "given" else trained_rule(facts)


def load_try_on(config: TryOnConfig, lora: Path, *, fold: bool = False) -> TryOnModel:
    """Loads a LoRA and the models that it was trained for: its header names them where the configuration does not.

    lora: its file (see lora_on_disk). fold: adds it to the weights, where these are neither quantised nor offloaded and
    it is for all categories, which is faster; it can be swapped then, but not switched off. On a CUDA device in bf16,
    else in float32 on the CPU. Raises ValueError, in one sentence, where a part cannot be loaded or not every key of
    the LoRA is used.
    """
    facts, hub_cache = read_facts(lora), config.cache_dir
    length, size = facts.max_sequence_length, panel_size(config, facts)
    for given, trained in ((config.base, facts.base), (config.transformer, facts.transformer)):
        if facts.known and given not in (None, trained) and not config.toy:
            logger.warning("this LoRA was trained for %s and is used with %s: the result may suffer", trained, given)
    base, transformer = config.base or facts.base, config.transformer or facts.transformer
    for name in (base, transformer):
        if is_nowhere(name):
            raise ValueError(
                f"{name} is neither here nor a hub name: name the models that this LoRA was trained for with --base "
                "and --transformer"
            )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    quantization = choose_quantization(config.quantization, device)
    if not config.offload:
        check_inference_fits(read_transformer_config(transformer, hub_cache), quantization, dtype, device)
    texts = prompts_of(facts.prompt, facts.try_off_prompt)
    logger.info("loading %s, %s and %s", base, transformer, lora)
    say_what_is_left(facts)
    files = fetch_models(base, transformer, hub_cache)
    data_cache = Path(config.data_cache_dir).expanduser()
    check_panel_fits(size, files.base, dtype, device)
    embeddings = cache_prompts(sorted(set(texts.values())), files.base, length, dtype, device, data_cache)
    model = load_transformer(files.transformer, dtype)
    folds = fold and quantization == "none" and not (config.offload or facts.base_categories)
    originals = {} if folds else None
    if originals is None:
        attach_lora(model, lora, config.lora_scale)
    choose_attention(model, 1, count_tokens(*size) + length, device, data_cache)
    vae, scheduler = load_vae(files.base, dtype, device), load_scheduler(files.base)
    model.eval().to(dtype)  # the LoRA too: one precision throughout
    quantise(model, quantization, config.offload, device)
    place(model, config.offload, device)
    if originals is not None:
        _attach_folded(model, lora, config.lora_scale, originals)
    if config.compile and can_compile(device):
        compile_blocks(model)
    pipeline = build_pipeline(model, vae, scheduler)
    prompts = {key: embeddings[text] for key, text in texts.items()}
    cache = cache_threshold(config.cache)
    return TryOnModel(pipeline, prompts, lora, facts, size, cache, originals, config.lora_scale)


def say_what_is_left(facts: LoraFacts) -> None:
    """Logs which garments are dressed without the LoRA, where there are any."""
    if sentence := left_to_base(facts.base_categories):
        logger.info("%s", sentence)


def same_models(model: TryOnModel, facts: LoraFacts) -> bool:
    """Whether a LoRA with these facts can take the place of the model's: trained on the same, with the same prompts.

    One of another project, which says nothing, cannot: it may have other layers, and a quantised or offloaded layer
    takes a LoRA only before it becomes so. Nor can one that is switched off for some categories where it would be
    folded.
    """
    if facts.base_categories and model.originals is not None:
        return False
    needed = attrgetter("base", "transformer", "prompt", "max_sequence_length", "try_off_prompt")
    return facts.known and model.facts.known and needed(model.facts) == needed(facts)


def swap_lora(model: TryOnModel, config: TryOnConfig, lora: Path) -> TryOnModel:
    """The model with another LoRA in place of its own, or its own at another strength, without loading anything else.
    See same_models.

    Raises ValueError, and leaves the model as it was, where the LoRA does not fit.
    """
    facts, transformer = read_facts(lora), model.pipeline.transformer
    assert lora == model.lora or same_models(model, facts)
    if model.originals is None:
        _attach_in_place(transformer, (lora, config.lora_scale), (model.lora, model.scale))
        torch.compiler.reset()  # compiled blocks would be compiled again for each rank, which is done a few times only
    else:
        _attach_folded(transformer, lora, config.lora_scale, model.originals)
    logger.info("LoRA: %s", lora)
    say_what_is_left(facts)
    return replace(model, lora=lora, facts=facts, size=panel_size(config, facts), scale=config.lora_scale)


def _attach_in_place(transformer: FluxTransformer2DModel, lora: tuple[Path, float], before: tuple[Path, float]) -> None:
    """Attaches a file's LoRA at a strength in place of the one `before`, which stays where it does not fit."""

    def attach(file: Path, scale: float) -> None:
        transformer.delete_adapters("default")
        attach_lora(transformer, file, scale)
        for name, parameter in transformer.named_parameters():
            if "lora_" in name:  # made where its layer's frozen weights are, which may be offloaded
                parameter.data = parameter.to(transformer.device, transformer.dtype)

    try:
        attach(*lora)
    except ValueError:
        attach(*before)
        raise


def _attach_folded(
    transformer: FluxTransformer2DModel, lora: Path, scale: float, originals: dict[nn.Parameter, Tensor]
) -> None:
    """Folds the LoRA of a file into the weights, in place of the one before: see fold_lora. Raises ValueError, and
    leaves the weights as they were, where it does not fit."""
    try:
        attach_lora(transformer, lora, scale)
    except ValueError:
        transformer.unload_lora()
        raise
    fold_lora(transformer, originals)


@contextmanager
def without_its_lora(model: TryOnModel, category: Category) -> Iterator[None]:
    """In here the model has no LoRA where this one leaves garments of the category to it: see LoraFacts."""
    transformer = model.pipeline.transformer
    if category not in model.facts.base_categories:
        yield
        return
    assert model.originals is None, "a folded LoRA cannot be switched off"
    transformer.disable_adapters()
    try:
        yield
    finally:
        transformer.enable_adapters()


@contextmanager
def first_block_cache(transformer: FluxTransformer2DModel, threshold: float | None) -> Iterator[None]:
    """A pipeline's call in here skips the blocks after the first in steps in which what the first one adds has
    changed, as a share of itself, by less than `threshold` since they last ran, and adds what they added then. None:
    all blocks run.

    The share is the whole batch's: what a sample gets depends on the others. Nothing is kept for the next call.
    """
    if threshold is None:
        yield
        return
    transformer.enable_cache(FirstBlockCacheConfig(threshold))
    try:
        with transformer.cache_context("cond"):
            yield
    finally:
        transformer.disable_cache()


def try_on(
    model: TryOnModel, person: Image.Image, garment: Image.Image, mask: Image.Image, category: Category, *,
    steps: int, guidance: float, seeds: Sequence[int], each_step: Callable[[int], None] | None = None,
) -> list[Image.Image]:  # fmt: skip
    """The person wearing the garment, once per seed: RGB pictures of the person's size, upright.

    Pictures may have any size and orientation. mask: white = repaint, of the person's shape. Pixels outside it are
    exactly the person's. All seeds are drawn in one batch; the noise comes from a CPU generator, so that every device
    starts from the same. each_step: called after each denoising step with how many are done; what it raises ends the
    try-on. Raises ValueError where the mask is empty or has another shape.
    """
    person = upright_rgb(person)
    mask = usable_mask(mask, person.size)
    window = window_of(mask, *model.size)
    sample = sample_of_pictures(garment, person.crop(window), mask.crop(window), category, *model.size)
    with without_its_lora(model, category):
        panels = try_on_batch(
            model.pipeline, [sample] * len(seeds), [model.prompts[category]] * len(seeds),
            steps=steps, guidance=guidance, seeds=seeds, each_step=each_step, cache=model.cache,
        )  # fmt: skip
    return [put_back(person, mask, to_picture(panel), window) for panel in panels]


def take_off(
    model: TryOnModel, person: Image.Image, category: Category, *,
    steps: int, guidance: float, seeds: Sequence[int], each_step: Callable[[int], None] | None = None,
) -> list[Image.Image]:  # fmt: skip
    """The product picture of the garment of a category that the person wears, once per seed: RGB pictures of the
    panel's size. The LoRA has to be trained for it, see check_takes_off. The person's picture is shown to the model
    whole. The rest is as in `try_on`."""
    sample = try_off_sample(person, category, *model.size)
    prompt = model.prompts[prompt_key(category, try_off=True)]
    panels = try_on_batch(
        model.pipeline, [sample] * len(seeds), [prompt] * len(seeds),
        steps=steps, guidance=guidance, seeds=seeds, each_step=each_step, cache=model.cache,
    )  # fmt: skip
    return [to_picture(panel) for panel in panels]


@torch.no_grad()
def try_on_batch(
    pipeline: FluxFillPipeline, samples: Sequence[TryOnSample], prompts: Sequence[PromptEmbedding], *,
    steps: int, guidance: float, seeds: Sequence[int], each_step: Callable[[int], None] | None = None,
    cache: float | None = None,
) -> Tensor:  # fmt: skip
    """The samples' persons wearing their garments, [B, 3, H, W/2] in [-1, 1]: panels, as training, validation and
    evaluation see them. Of a try-off it is the garment's panel, whatever the sample shows there. cache: see
    `first_block_cache`; without it a sample gets what it gets alone, but for rounding. The rest is as in `try_on`."""

    def after_step(pipeline: FluxFillPipeline, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict:
        each_step(step + 1)
        return tensors

    image, _, mask = (torch.stack(parts) for parts in zip(*map(make_diptych, samples), strict=True))
    height, width = image.shape[-2:]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = (1, pipeline.vae.config.latent_channels, height // 8, width // 8)
    noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    device, dtype = pipeline.transformer.device, pipeline.transformer.dtype
    with first_block_cache(pipeline.transformer, cache):
        latents = pipeline(
            # In [0, 1], which the pipeline normalises as fit_picture did: rounded to 256 levels it comes out the same
            # to the last bit. A tensor in [-1, 1] would be normalised again if it happened to have no negative values.
            image=((image + 1) * 127.5).round() / 255,
            mask_image=mask, height=height, width=width, num_inference_steps=steps, guidance_scale=guidance,
            generator=generators, latents=pack_latents(noise),
            prompt_embeds=torch.stack([prompt.embeds for prompt in prompts]).to(device, dtype),
            pooled_prompt_embeds=torch.stack([prompt.pooled for prompt in prompts]).to(device, dtype),
            callback_on_step_end=after_step if each_step else None, output_type="latent",
        ).images  # fmt: skip
    decoded = decode_latents(pipeline.vae, unpack_latents(latents, height // 8, width // 8))
    garments, persons = split_diptych(torch.where(mask.bool(), decoded.clamp(-1, 1), image))
    try_off = torch.tensor([sample.try_off for sample in samples])[:, None, None, None]
    return torch.where(try_off, garments, persons)
