"""What training needs of the GPU's and the host's memory, known before anything large is downloaded or loaded."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from tryon.config import LoraBlocks, LoraTargets, Quantization, TrainConfig
from tryon.flux.compiler import can_compile
from tryon.flux.lora import add_lora
from tryon.flux.offload import blocks_of
from tryon.flux.packing import count_tokens
from tryon.flux.quantize import weight_bytes
from tryon.flux.training_blocks import branches_of, casts_lora, use_training_blocks
from tryon.units import GB, gigabytes

logger = logging.getLogger(__name__)

# The VAE stays on the device for the validation's pictures.
VAE_PARAMETERS, TOY_VAE_PARAMETERS = 83_800_000, 2_120_755
# Tensors of the diptych's height and width, in the channels of its second block, that the VAE holds at once when it
# decodes: the toy's took 3.0 to 3.2 of them on a CPU, from 512 x 768 to 1536 x 2048.
VAE_TENSORS = 3
CONTEXT = 600 * 10**6  # bytes that CUDA and its libraries take beside our tensors
SLACK = 0.05  # of all tensors: what the allocator cannot use between them
USABLE = 0.96  # of a card's memory, assumed: the driver and the screen take the rest
DATA_WORKER = 300 * 10**6  # bytes: psutil's uss of a forked one was 280 MB after 200 samples of 768 x 1152, on a CPU
# What compiled blocks keep for the backward pass, as a share of what eager ones do, which is counted: measured on an
# H200 with PyTorch 2.11 at 768 x 1152, ranks 64 and 128, batches of 1, 2 and 4, within 0.5 % (benchmarks/log.md).
COMPILED_DOUBLE, COMPILED_SINGLE = 0.942, 0.798
# What a block works with meanwhile, as a share of what it keeps: eager ones' by adding up what is alive from one
# operation to the next, compiled ones' as measured (benchmarks/log.md).
WORK_DOUBLE, WORK_SINGLE, COMPILED_WORK = 0.4, 1.0, 0.5
CPU_ADVICE = "give smaller panels with --height and --width, or fewer samples with --train_batch_size"
# Every N-th block recomputes its activations. "auto" tries these in order: from no recomputing to all of it.
RECOMPUTED: tuple[int | None, ...] = (None, 8, 6, 5, 4, 3, 2, 1)
# GPUs with at least this much memory (bytes) keep the frozen weights in this form ("auto").
QUANTIZED_BELOW: tuple[tuple[int, Quantization], ...] = ((60 * GB, "none"), (32 * GB, "fp8"), (0, "nf4"))


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on the GPU at the fullest moment of a step, by what they are for.

    weights: the frozen ones and the VAE's. lora: its float32 weights, their moving average, their casts to bfloat16,
    and their gradients as far as they exist at that moment. optimizer: its moments. activations: what the forward pass
    keeps for the backward pass. work: what a block computes with meanwhile.
    """

    weights: int
    lora: int
    optimizer: int
    activations: int
    work: int

    @property
    def tensors(self) -> int:
        """Sum of the parts: what torch.cuda.max_memory_allocated will say."""
        return sum(getattr(self, each.name) for each in fields(self))

    @property
    def reserve(self) -> int:
        """What the allocator cannot use between the tensors, and what CUDA takes beside them."""
        return round(SLACK * self.tensors) + CONTEXT

    @property
    def total(self) -> int:
        """Tensors and reserve: what the GPU must have free."""
        return self.tensors + self.reserve

    def on(self, device: torch.device) -> int:
        """What the device must have free: a CPU has no reserve for CUDA and its allocator."""
        return self.total if device.type == "cuda" else self.tensors


@dataclass(frozen=True)
class HostMemory:
    """Bytes of the host's memory that a training process needs, beside the libraries' own.

    loading: the transformer with its LoRA, whole and not quantised yet, before it goes to the GPU. training: offloaded
    blocks, locked in place, the processes that read data, and a checkpoint that is being written.
    """

    loading: int
    training: int

    @property
    def total(self) -> int:
        """The larger one, as the transformer has left the host when the processes that read data begin."""
        return max(self.loading, self.training)


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters. frozen: all that are not trained. in_blocks, in_double_block: those in the linear layers
    of all blocks, of one double block. largest: in the largest of these layers that reads tokens, as while the ones of
    the modulation are used there is little else. trained: the LoRA's."""

    frozen: int
    in_blocks: int
    in_double_block: int
    largest: int
    trained: int


@dataclass(frozen=True)
class BlockCosts:
    """Bytes that a block keeps for its backward pass. inputs: if it recomputes its activations. saved: if it does
    not. work: bytes that it computes with beside them, at most."""

    inputs: int
    saved: int
    work: int


@dataclass(frozen=True)
class TransformerCosts:
    """The transformer's sizes, and the costs of a micro-batch in each of its blocks, in their order."""

    sizes: Sizes
    blocks: list[BlockCosts]


def transformer_costs(config: TrainConfig, transformer_config: dict[str, Any]) -> TransformerCosts:
    """Sizes and costs, counted on the real model with its LoRA, which is made without memory."""
    where = config.lora_targets, config.lora_blocks
    transformer = empty_transformer(
        one_block_of_each(transformer_config), config.lora_rank, config.lora_dropout, *where
    )
    sizes = _sizes(transformer, transformer_config)
    tokens = count_tokens(config.height, config.width) + config.max_sequence_length
    inputs = config.train_batch_size * tokens * transformer.inner_dim * dtype_of(config).itemsize

    def costs(block: nn.Module, compiled: float, work: float, reached: bool) -> BlockCosts:
        saved = _saved(block, config, transformer.inner_dim, reached)
        if config.compile:
            saved, work = round(compiled * saved), COMPILED_WORK
        return BlockCosts(inputs, saved, round(work * saved))

    double = costs(transformer.transformer_blocks[0], COMPILED_DOUBLE, WORK_DOUBLE, config.lora_blocks != "single")
    single = costs(transformer.single_transformer_blocks[0], COMPILED_SINGLE, WORK_SINGLE, True)
    blocks = [double] * transformer_config["num_layers"] + [single] * transformer_config["num_single_layers"]
    return TransformerCosts(sizes, blocks)


def training_memory(config: TrainConfig, costs: TransformerCosts, every: int | None) -> TrainingMemory:
    """What a training step needs where every `every`-th block recomputes its activations, or none.

    config.quantization must be resolved (see choose_quantization).
    """
    sizes, itemsize, quantized = costs.sizes, dtype_of(config).itemsize, config.quantization != "none"
    each = weight_bytes(config.quantization) if quantized else itemsize
    held = 2 * sizes.in_double_block if config.offload else sizes.in_blocks  # offloaded: the running block and the next
    activations, work = fullest_moment(costs.blocks, every)
    # Gradients of the first micro-batch appear while its activations disappear. In later micro-batches they are there
    # from the start, and so are the buckets in which several processes exchange them.
    gradients = 4 * sizes.trained
    later = config.gradient_accumulation_steps > 1 or config.num_processes > 1
    there = gradients if later else max(0, gradients - activations)
    return TrainingMemory(
        weights=round(held * each) + (sizes.frozen - sizes.in_blocks + vae_parameters(config)) * itemsize,
        lora=_lora_bytes(config) * sizes.trained + (itemsize * sizes.trained if casts_lora(config) else 0) + there,
        optimizer=2 * _moment_bytes(config) * sizes.trained,
        activations=activations,
        work=work + (itemsize * sizes.largest if quantized else 0),
    )


def vae_parameters(config: TrainConfig) -> int:
    return TOY_VAE_PARAMETERS if config.toy else VAE_PARAMETERS


def weights_kept(config: TrainConfig) -> str:
    """How the frozen weights are kept, in a word. config.quantization must be resolved."""
    whole = "bf16" if config.mixed_precision == "bf16" else "float32"
    return whole if config.quantization == "none" else config.quantization


def fullest_moment(blocks: list[BlockCosts], every: int | None) -> tuple[int, int]:
    """Bytes of activations, and of what the block at work computes with, at the moment of the backward pass when
    together they are most. The backward pass begins at the last block and frees each block's activations behind it.
    """
    moments, kept = [], 0
    for index, block in enumerate(blocks):
        recomputes = bool(every) and index % every == 0
        kept += block.inputs if recomputes else block.saved
        moments.append((kept + (block.saved if recomputes else 0), block.work))
    return max(moments, key=sum)


def checkpoint_bytes(config: TrainConfig, trained: int) -> int:
    """Bytes of a checkpoint's LoRA and optimiser state. trained: the LoRA's parameters."""
    return (_lora_bytes(config) + 2 * _moment_bytes(config)) * trained


def host_memory(config: TrainConfig, sizes: Sizes) -> HostMemory:
    """What a process that trains on a GPU needs of the host's memory. config.quantization must be resolved."""
    itemsize = dtype_of(config).itemsize
    each = itemsize if config.quantization == "none" else weight_bytes(config.quantization)
    locked = round(sizes.in_blocks * each) if config.offload else 0
    return HostMemory(
        loading=sizes.frozen * itemsize + 4 * sizes.trained,
        training=locked + config.dataloader_num_workers * DATA_WORKER + checkpoint_bytes(config, sizes.trained),
    )


def card_memory(sold_as: float) -> int:
    """Usable bytes of a card that is sold as having this many GB; makers count 2^30 bytes as one."""
    return round(USABLE * sold_as * 2**30)


def choose_quantization(asked: Quantization, device: torch.device) -> Quantization:
    """What "auto" means on the device: as little as its memory allows. Anything else is returned as it is."""
    if asked == "auto" and device.type == "cuda":
        return quantization_for(asked, total_memory(device))
    return "none" if asked == "auto" else asked


def resolved(config: TrainConfig, device: torch.device) -> TrainConfig:
    """The configuration with "auto" replaced by what it means on the device for the frozen weights, which a resumed run
    must share, and without compiling if the blocks are offloaded or the machine has no compiler (with a warning)."""
    quantization = choose_quantization(config.quantization, device)
    compiles = config.compile and not config.offload and can_compile(device)
    return replace(config, quantization=quantization, compile=compiles)


def quantization_for(asked: Quantization, memory: float) -> Quantization:
    """What "auto" means on a GPU with this much memory, in bytes. Anything else is returned as it is."""
    return next(kind for least, kind in QUANTIZED_BELOW if memory >= least) if asked == "auto" else asked


def recomputed_every(config: TrainConfig, costs: TransformerCosts, free: int) -> int | None:
    """N, if every N-th block recomputes its activations as --gradient_checkpointing says; None for none. "auto" is the
    least recomputing with which a step fits into `free` bytes, and 1, every block, if none fits."""
    asked = config.gradient_checkpointing
    if config.offload or asked == "full":
        return 1
    if asked == "auto":
        return next((every for every in RECOMPUTED if training_memory(config, costs, every).total <= free), 1)
    return None if asked == "none" else int(asked)


def which_recompute(every: int | None) -> str:
    """The blocks that recompute their activations, in words."""
    return {None: "no block", 1: "every block", 2: "every 2nd block", 3: "every 3rd block"}.get(
        every, f"every {every}th block"
    )


def free_before_training(config: TrainConfig, costs: TransformerCosts, device: torch.device) -> int:
    """Bytes that the device had free before the transformer, now prepared for training, was moved there."""
    there = training_memory(config, costs, None)
    return free_memory(device) + there.weights + 4 * costs.sizes.trained  # without gradients yet


def check_training_fits(config: TrainConfig, transformer_config: dict[str, Any], device: torch.device) -> None:
    """Raises ValueError if weights, LoRA and optimiser alone need more than the GPU has free; warns if they do with
    activations. On a CPU it raises it if activations alone do: the system would end the process without a word."""
    config = resolved(config, device)
    costs, free = transformer_costs(config, transformer_config), free_memory(device)
    every = recomputed_every(config, costs, free)
    need = training_memory(config, costs, every)
    if device.type != "cuda":
        if (kept := need.activations + need.work) > free:
            raise ValueError(
                f"a step keeps {gigabytes(kept)} of activations and {gigabytes(free)} of memory are free: {CPU_ADVICE}"
            )
        return
    helps = ", or ".join(memory_advice(config, every)) or "use a GPU with more"
    what = f"training at rank {config.lora_rank} with {config.optimizer}, activations aside,"
    check_gpu_memory(what, need.weights + need.lora + need.optimizer, helps, device)
    if need.total > free:
        words = "a step is planned to need %s of GPU memory and %s are free; should it not fit: %s"
        logger.warning(words, gigabytes(need.total), gigabytes(free), helps)


def memory_advice(config: TrainConfig, every: int | None) -> list[str]:
    """Flags with which the configuration needs less memory, the most effective first."""
    samples = config.train_batch_size * config.gradient_accumulation_steps
    advice = {
        "--gradient_checkpointing full": every != 1,
        "--quantization nf4": config.quantization != "nf4",
        f"--train_batch_size 1 --gradient_accumulation_steps {samples}": config.train_batch_size > 1,
        "--optimizer adamw8bit": config.optimizer != "adamw8bit",
        "--ema_decay 0": config.ema_decay > 0,
        "a smaller --lora_rank": config.lora_rank > 16,
        "--offload" + (" instead of --compile" if config.compile else ""): not config.offload,
    }
    return [f"give {flag}" for flag, there in advice.items() if there]


def check_inference_fits(
    transformer_config: dict[str, Any], quantization: Quantization, dtype: torch.dtype, device: torch.device
) -> None:
    """Raises ValueError where the transformer's weights alone need more than the GPU has free."""
    sizes = count_parameters(transformer_config, rank=1)
    each = dtype.itemsize if quantization == "none" else weight_bytes(quantization)
    need = round(sizes.in_blocks * each) + (sizes.frozen - sizes.in_blocks) * dtype.itemsize
    check_gpu_memory("try-on", need, "give --offload" if quantization == "nf4" else "give --quantization nf4", device)


def check_panel_fits(size: tuple[int, int], base: Path, dtype: torch.dtype, device: torch.device) -> None:
    """Raises ValueError where a diptych whose panels have this height and width takes more memory in the VAE alone than
    the device has free. base: a folder laid out as FLUX.1-dev, of which the VAE's config.json is read."""
    (height, width), config = size, json.loads((base / "vae" / "config.json").read_text())
    need = VAE_TENSORS * config["block_out_channels"][1] * dtype.itemsize * 2 * height * width
    if need > (free := free_memory(device)):
        where = "GPU memory" if device.type == "cuda" else "memory"
        raise ValueError(
            f"a panel of {height} x {width} (height x width) needs at least {gigabytes(need)} of {where} and "
            f"{gigabytes(free)} are free: give a smaller --height and --width"
        )


def count_parameters(
    transformer_config: dict[str, Any], rank: int, targets: LoraTargets = "all", blocks: LoraBlocks = "both"
) -> Sizes:
    """Sizes of the transformer with a LoRA of this rank, counted without allocating memory, on one block of each kind:
    all of a kind are alike. targets, blocks: which layers have one."""
    transformer = empty_transformer(one_block_of_each(transformer_config), rank, 0.0, targets, blocks)
    return _sizes(transformer, transformer_config)


def _sizes(transformer: FluxTransformer2DModel, transformer_config: dict[str, Any]) -> Sizes:
    """Sizes of the transformer of this configuration: the one that is given has one block of each kind."""
    kinds = [
        (transformer.transformer_blocks[0], transformer_config["num_layers"]),
        (transformer.single_transformer_blocks[0], transformer_config["num_single_layers"]),
    ]

    def count(trained: bool) -> int:
        def of(module: nn.Module) -> int:
            return sum(each.numel() for each in module.parameters() if each.requires_grad == trained)

        return of(transformer) + sum((number - 1) * of(block) for block, number in kinds)

    linear = [{name: each.weight.numel() for name, each in block.named_modules()
               if isinstance(each, nn.Linear) and "lora_" not in name} for block, _ in kinds]  # fmt: skip
    in_block = [sum(layers.values()) for layers in linear]
    largest = max(count for layers in linear for name, count in layers.items() if "norm" not in name)
    in_blocks = sum(number * each for (_, number), each in zip(kinds, in_block, strict=True))
    return Sizes(count(trained=False), in_blocks, in_block[0], largest, count(trained=True))


def one_block_of_each(transformer_config: dict[str, Any]) -> dict[str, Any]:
    return {**transformer_config, "num_layers": 1, "num_single_layers": 1}


def empty_transformer(
    transformer_config: dict[str, Any], rank: int, dropout: float, targets: LoraTargets, blocks: LoraBlocks
) -> FluxTransformer2DModel:
    """The transformer with a LoRA, as training runs it, on the meta device: shapes without memory."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(transformer_config).requires_grad_(False)
        add_lora(transformer, rank, rank, 0, dropout, targets, blocks)
        use_training_blocks(transformer)
    for block in blocks_of(transformer):
        block.attn.processor._attention_backend = "native"  # not what the process's other models use, on other devices
    return transformer


def _saved(block: nn.Module, config: TrainConfig, width: int, reached: bool) -> int:
    """Runs the block forward on tensors that have shapes and no memory, and adds up what autograd would keep, bytes.
    reached: whether its inputs need a gradient, as there are LoRAs before it."""
    dtype, batch = dtype_of(config), config.train_batch_size
    image, text, head = count_tokens(config.height, config.width), config.max_sequence_length, block.attn.head_dim
    saved: dict[int, int] = {}

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=config.mixed_precision == "bf16")
    with FakeTensorMode(allow_non_fake_inputs=True), autocast, _LikeCuda():
        weights = {
            name: torch.empty(
                each.shape, dtype=torch.float32 if each.requires_grad else dtype, requires_grad=each.requires_grad
            )
            for name, each in (*block.named_parameters(), *block.named_buffers())
        }
        inputs = {
            "hidden_states": torch.empty(batch, image, width, dtype=dtype, requires_grad=reached),
            "encoder_hidden_states": torch.empty(batch, text, width, dtype=dtype, requires_grad=reached),
            "temb": torch.empty(batch, width, dtype=dtype),
            "image_rotary_emb": (torch.empty(image + text, head), torch.empty(image + text, head)),
        }
        own = {each.untyped_storage()._cdata for each in weights.values()}
        for branch in branches_of(block) if casts_lora(config) else ():  # the casts belong to no block
            downs, ups = branch.lora()
            rows, columns = sum(map(len, downs)), downs[0].shape[1]
            branch.down, *branch.ups = (
                torch.empty(shape, dtype=dtype, requires_grad=True)
                for shape in ((rows, columns), *(each.shape for each in ups))
            )
            own |= {each.untyped_storage()._cdata for each in (branch.down, *branch.ups)}
        alive: list[Tensor] = []  # a storage that is freed would lend its name to the next

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                saved[storage._cdata] = storage.nbytes()
                alive.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            torch.func.functional_call(block, weights, (), inputs)
    return sum(saved.values())


class _LikeCuda(TorchFunctionMode):
    """Autocast on a CPU leaves normalisation in bfloat16, on a CUDA device it is done in float32."""

    def __torch_function__(self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if function is nn.functional.layer_norm and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        return function(*args, **(kwargs or {}))


def total_memory(device: torch.device) -> int:
    """Bytes that this process may use on a CUDA device, in use or not."""
    index = torch.cuda.current_device() if device.index is None else device.index  # it takes no device without one
    share = torch.cuda.get_per_process_memory_fraction(index)
    return round(share * torch.cuda.get_device_properties(device).total_memory)


def free_memory(device: torch.device) -> int:
    """Bytes on a CUDA device that this process could still allocate; of the host where the device is a CPU."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(free + unused, total_memory(device) - torch.cuda.memory_allocated(device))


def check_gpu_memory(what: str, need: int, advice: str, device: torch.device) -> None:
    """Raises ValueError where a CUDA device has less than `need` bytes free."""
    if device.type != "cuda":
        return
    free = free_memory(device)
    if need > free:
        have = f"needs at least {gigabytes(need)} of GPU memory and this GPU has {gigabytes(free)} free"
        raise ValueError(f"{what} {have}: {advice}")


def _lora_bytes(config: TrainConfig) -> int:
    """Bytes per trained parameter of the weights, and of their moving average where there is one."""
    return 8 if config.ema_decay else 4


def _moment_bytes(config: TrainConfig) -> int:
    """Bytes per trained parameter of each of the optimiser's two moments."""
    return 1 if config.optimizer == "adamw8bit" else 4


def dtype_of(config: TrainConfig) -> torch.dtype:
    """The dtype of the frozen weights, the text encoders and the VAE."""
    return torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
