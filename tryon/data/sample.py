"""One try-on example at panel size, and the diptych that the model sees.

Letters: B batch; H, W height and width of the diptych in pixels (W is two panels); h, w = H/8, W/8; L = (H/16)(W/16)
image tokens; T text tokens.
"""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, ClassVar, Protocol

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from tryon.data.category import Category, MaskRule

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TryOnSample:
    """One training pair at panel size.

    key: hash of the row's content and of every setting that shaped the tensors below.
    garment, person: [3, H, W/2] float32 in [-1, 1].
    mask: [1, H, W/2] float32 of exactly 0 and 1; 1 = repaint.
    mask_was_resized: whether the mask had another size than its picture.
    try_off: whether the garment's panel is repainted instead, all of it, and the person shown as it is, without `mask`.
    """

    key: str
    garment: Tensor
    person: Tensor
    mask: Tensor
    category: Category
    mask_was_resized: bool = False
    try_off: bool = False
    TENSORS: ClassVar = ("garment", "person", "mask")

    def pin_memory(self) -> "TryOnSample":
        """The sample in pinned memory: what a DataLoader calls, so that copies to the GPU need not be waited for."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in self.TENSORS})

    def to(self, device: torch.device) -> "TryOnSample":
        """The sample on another device."""
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in self.TENSORS})


@dataclass(frozen=True)
class LatentSample:
    """A TryOnSample after the VAE: what the cache keeps.

    target: [16, h, w] latents of the diptych, shifted and scaled as the transformer wants them.
    masked: [16, h, w] latents of the masked diptych, shifted and scaled too.
    mask: [1, H, W] bool over the whole diptych; the garment's panel is False, or all that is True in a try-off.
    """

    key: str
    target: Tensor
    masked: Tensor
    mask: Tensor
    category: Category
    try_off: bool = False


@dataclass(frozen=True)
class PromptEmbedding:
    """A prompt after the text encoders. embeds: [T, 4096] of T5. pooled: [768] of CLIP. (The toy's are narrower.)"""

    embeds: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class FillBatch:
    """What one forward pass of the FLUX-Fill transformer needs, noise and sigma aside.

    x0: [B, L, 64] packed clean latents. cond: [B, L, 320] packed masked latents (64) and packed mask (256).
    prompt: [B, T, 4096]. pooled: [B, 768]. img_ids: [L, 3]. txt_ids: [T, 3]. categories: of the B garments. try_off:
    which of the B samples are try-offs.
    """

    x0: Tensor
    cond: Tensor
    prompt: Tensor
    pooled: Tensor
    img_ids: Tensor
    txt_ids: Tensor
    categories: tuple[Category, ...]
    try_off: tuple[bool, ...]
    OF_SAMPLES: ClassVar = ("x0", "cond", "prompt", "pooled")
    TENSORS: ClassVar = (*OF_SAMPLES, "img_ids", "txt_ids")

    def pin_memory(self) -> "FillBatch":
        """The batch in pinned memory: what a DataLoader calls, so that copies to the GPU need not be waited for."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in self.TENSORS})

    def to(self, device: torch.device) -> "FillBatch":
        """The batch on another device; copies from pinned memory do not block."""
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in self.TENSORS})

    def rows(self, rows: Sequence[int]) -> "FillBatch":
        """A batch of some of the samples."""
        some = {name: pick(getattr(self, name), rows) for name in self.OF_SAMPLES}
        facts = {name: tuple(getattr(self, name)[row] for row in rows) for name in ("categories", "try_off")}
        return replace(self, **some, **facts)


def pick(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """The rows of a tensor. As indices they would have to be copied to its device, which waits for it."""
    return torch.stack([tensor[row] for row in rows])


class UnreadablePicture(ValueError):
    """A row whose pictures cannot be used: skipped and counted while a data set is encoded."""


LARGE = 64 * 10**6  # pixels; masks, labels and results of larger pictures would take gigabytes each
MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # of a picture: Pillow opens none with more, and warns of half as many
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# What Pillow and our own checks raise for a picture that cannot be used.
UNREADABLE = (OSError, SyntaxError, ValueError)
# One bad row in a hundred is the data's fault; more is a mistake in how it was given.
UNREADABLE_SHARE = 0.01


def check_unreadable(unreadable: int, total: int, what: str) -> None:
    """Says how many of `total` samples were skipped. Raises ValueError where it is more than one and more than 1 %, or
    where none is left."""
    if unreadable > max(1, UNREADABLE_SHARE * total):
        raise ValueError(
            f"{unreadable} of {total} {what} cannot be read, more than 1 %: the log lists them; "
            "repair the data set or take these rows out of it"
        )
    if unreadable == total:
        raise ValueError(f"there are no {what}: give a data set with at least one readable row")
    if unreadable:
        logger.warning("%d of %d %s cannot be read and was left out", unreadable, total, what)


class SampleSource(Protocol):
    """A data set: what `train()` takes. Samples are built when asked for; keys and categories must be cheap.

    Where something about a sample is random, each row comes in several fixed variants, and each epoch of training takes
    another one: sample v * rows + i is variant v of row i. Variants of a row without anything random share one key.
    """

    variants: int
    mask_rule: MaskRule | None  # what hides the persons' garments; None: the data brings its own masks
    worn_reference_share: float  # of samples, where the data allow it, whose garment is shown worn by somebody

    def __len__(self) -> int:
        """Rows times variants."""

    def key(self, index: int) -> str:
        """The key of sample `index`, without decoding its pictures."""

    def category(self, index: int) -> Category:
        """The category of sample `index`."""

    def name(self, index: int) -> str:
        """What a message calls sample `index`: its row or file."""

    def shows_garment_alone(self, index: int) -> bool:
        """Whether its garment's picture is a product picture, and not cut out of a picture of somebody wearing it."""

    def __getitem__(self, index: int) -> TryOnSample:
        """Builds sample `index`. Raises UnreadablePicture, which names the row, where its pictures cannot be used."""


def read_picture(source: Path | BinaryIO) -> Image.Image:
    """The picture, read to its last byte, upright and RGB. Raises one of UNREADABLE where it is broken."""
    return upright_rgb(_read(source))


def read_photograph(source: Path | BinaryIO) -> Image.Image:
    """As `read_picture`, for a try-on: a picture of more than LARGE pixels is read at half its width and height. What
    is trained on is not, as decoding at half the size, which JPEG allows, gives other numbers than resizing."""
    picture = open_picture(source)
    size = picture.width // 2, picture.height // 2
    if picture.width * picture.height > LARGE:
        picture.draft(None, size)
        logger.info("%s has more than %.0f megapixels: half its width and height are used", source, LARGE / 10**6)
    picture = upright_rgb(picture)
    return picture.reduce(2) if picture.width * picture.height > LARGE else picture


def read_mask(source: Path | BinaryIO, size: tuple[int, int]) -> Image.Image:
    """The mask, read to its last byte, binary and at `size` (width, height) of its picture."""
    return binary_mask(_read(source), size)


def read_usable_mask(source: Path | BinaryIO, size: tuple[int, int]) -> Image.Image:
    """As `read_mask`. Raises ValueError also where nothing of the mask is white."""
    return usable_mask(_read(source), size)


def upright_size(source: Path | BinaryIO) -> tuple[int, int]:
    """Width and height of a picture, turned as its EXIF orientation says, without decoding it."""
    picture = open_picture(source)
    lies_on_its_side = picture.getexif().get(ExifTags.Base.Orientation, 1) > 4
    return picture.size[::-1] if lies_on_its_side else picture.size


def open_picture(source: Path | BinaryIO) -> Image.Image:
    """The picture as it is in its file, not decoded yet. Raises one of UNREADABLE where it is none, or has more than
    MOST_PIXELS."""
    try:
        return Image.open(source)
    except UnidentifiedImageError as error:  # Pillow's words hold an address in memory
        raise UnidentifiedImageError("it is no picture of a known format") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"it has more than {MOST_PIXELS / 10**6:.0f} megapixels: make it smaller") from error


def _read(source: Path | BinaryIO) -> Image.Image:
    picture = open_picture(source)
    picture.load()
    return picture


def _refuse_deep(picture: Image.Image) -> None:
    if picture.mode.startswith(("I", "F")):
        raise ValueError(
            f"its pixels are of kind {picture.mode}, which would turn white: save it with 8 bits per channel"
        )


def upright_rgb(picture: Image.Image) -> Image.Image:
    """The picture as RGB, turned as its EXIF orientation says, transparency shown on white. Raises ValueError for one
    of more than 8 bits per channel."""
    return _upright(picture, "white").convert("RGB")


def _upright(picture: Image.Image, behind: str) -> Image.Image:
    """behind: the colour that is seen where the picture is transparent."""
    _refuse_deep(picture)
    picture = ImageOps.exif_transpose(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, behind), picture)
    return picture


def binary_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The mask as "L" of exactly 0 and 255 at `size` (width, height) of its picture.

    Masks come as RGB and with JPEG noise: a pixel above 127 belongs to the mask; a transparent one does not. A mask of
    another size is resized. Raises ValueError where its shape is not that of its picture, or it has more than 8 bits.
    """
    mask = _upright(mask, "black").convert("L").point(lambda value: 255 if value > 127 else 0)
    if mask.size == size:
        return mask
    check_shape(mask.size, size)
    return mask.resize(size, Image.Resampling.NEAREST)


def check_shape(mask: tuple[int, int], picture: tuple[int, int]) -> None:
    """Raises ValueError where a mask of this size (width, height) has not the proportions of its picture."""
    if abs(mask[0] * picture[1] / (mask[1] * picture[0]) - 1) > 0.02:
        raise ValueError(
            f"the mask is {mask[0]} x {mask[1]} and its picture {picture[0]} x {picture[1]}: another shape"
        )


def usable_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """As `binary_mask`, of a mask that somebody made for a try-on. Raises ValueError also where nothing is white."""
    binary = binary_mask(mask, size)
    if binary.getbbox() is None:
        _, largest = _upright(mask, "black").convert("L").getextrema()
        raise ValueError(
            f"the mask has no white in it, its largest value is {largest} of 255: paint what is to be dressed in white "
            "on black"
        )
    return binary


def fit_picture(picture: Image.Image, height: int, width: int) -> Tensor:
    """[3, height, width] float32 in [-1, 1]: the whole picture, undistorted, centred on white."""
    fitted = ImageOps.pad(upright_rgb(picture), (width, height), Image.Resampling.LANCZOS, color="white")
    # In the pipeline's order of operations and memory layout: not even the last bit differs from what it makes of it.
    return 2 * (torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous().float() / 255) - 1


def fit_mask(mask: Image.Image, height: int, width: int) -> Tensor:
    """[1, height, width] float32 of 0 and 1, placed exactly as `fit_picture` places a picture of the same size.

    A resized mask is grey at its edges and would change the conditioning: it is made binary again at one half.
    """
    fitted = ImageOps.pad(binary_mask(mask, mask.size), (width, height), Image.Resampling.BILINEAR, color=0)
    return torch.from_numpy(np.array(fitted) >= 128)[None].float()


def to_picture(image: Tensor) -> Image.Image:
    """[3, H, W] in [-1, 1] -> RGB picture."""
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def fitted_sample(
    key: str, pictures: Sequence[Image.Image], category: Category, size: tuple[int, int],
    stored_mask: Path | BinaryIO | None = None,
) -> TryOnSample:  # fmt: skip
    """A data set's sample. pictures: garment, person and mask, the last two of one size. size: the panel's height and
    width. stored_mask: what the mask is made from, which may have had another size than the person."""
    garment, person, mask = pictures
    was_resized = stored_mask is not None and upright_size(stored_mask) != person.size
    fitted = fit_picture(garment, *size), fit_picture(person, *size), fit_mask(mask, *size)
    return TryOnSample(key, *fitted, category, was_resized)


def sample_of_pictures(
    garment: Image.Image, person: Image.Image, mask: Image.Image, category: Category, height: int, width: int
) -> TryOnSample:
    """A sample for inference, made from pictures exactly as the data sets make theirs. mask: white = repaint.

    Raises ValueError where nothing of the mask is white, in the picture or at the panel's size.
    """
    person = upright_rgb(person)
    pictures = garment, person, usable_mask(mask, person.size)
    sample = fitted_sample("", pictures, category, (height, width))  # inference caches nothing
    if not sample.mask.any():
        raise ValueError(f"the mask's white is too small to be seen at {height} x {width} (height x width): paint more")
    return sample


def try_off_sample(person: Image.Image, category: Category, height: int, width: int) -> TryOnSample:
    """A sample for inference, from which the garment is painted that the person wears."""
    fitted = fit_picture(person, height, width)
    unknown, unused = torch.zeros_like(fitted), torch.zeros_like(fitted[:1])
    return TryOnSample("", unknown, fitted, unused, category, try_off=True)


def make_diptych(sample: TryOnSample) -> tuple[Tensor, Tensor, Tensor]:
    """Garment left, person right.

    Returns image [3, H, W] in [-1, 1]; masked [3, H, W], the image with repainted pixels at mid grey (0);
    mask [1, H, W], 0 over the garment's panel; in a try-off 1 there, and 0 over the person.
    """
    image = torch.cat([sample.garment, sample.person], dim=-1)
    nothing, everything = torch.zeros_like(sample.mask), torch.ones_like(sample.mask)
    mask = torch.cat([everything, nothing] if sample.try_off else [nothing, sample.mask], dim=-1)
    return image, image * (1 - mask), mask


def split_diptych(image: Tensor) -> tuple[Tensor, Tensor]:
    """[..., H, W] -> garment and person, [..., H, W/2] each."""
    garment, person = image.chunk(2, dim=-1)
    return garment, person
