"""Pictures and masks at panel size, and the diptych."""

import io
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import PROJECT, make_sample
from tryon.data.sample import (
    binary_mask,
    fit_mask,
    fit_picture,
    make_diptych,
    read_photograph,
    read_picture,
    sample_of_pictures,
    split_diptych,
    to_picture,
    upright_size,
    usable_mask,
)
from tryon.flux.prompts import FIXED_PROMPT, TRY_OFF_PROMPT, prompt_for, prompts_of


def test_a_picture_of_panel_size_survives_unchanged() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 16, 3), dtype=np.uint8)
    fitted = fit_picture(Image.fromarray(pixels), 32, 16)
    assert fitted.shape == (3, 32, 16)
    assert -1 <= fitted.min() < fitted.max() <= 1
    assert np.array_equal(np.asarray(to_picture(fitted)), pixels)


@pytest.mark.parametrize("size", [(100, 20), (20, 100), (33, 47)])
def test_other_shapes_are_not_distorted_and_masks_fall_on_their_pictures(size: tuple[int, int]) -> None:
    """A picture that is black where its mask is: after fitting, black is still where the mask is."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2))
    picture = Image.composite(Image.new("RGB", size, "black"), Image.new("RGB", size, "white"), mask)
    fitted, fitted_mask = fit_picture(picture, 96, 64), fit_mask(mask, 96, 64)
    assert set(fitted_mask.unique().tolist()) == {0.0, 1.0}
    disagree = (fitted[:1] < 0) != fitted_mask.bool()
    assert disagree.float().mean() < 0.005
    rows, columns = fitted_mask[0].any(1).sum(), fitted_mask[0].any(0).sum()
    ratio = (size[0] // 2 - size[0] // 4) / (size[1] // 2 - size[1] // 4)
    assert abs(columns / rows - ratio) < 0.25 * ratio


def test_masks_with_jpeg_noise_become_binary() -> None:
    noisy = np.random.default_rng(0).choice([0, 3, 120, 127, 128, 200, 255], (40, 30)).astype(np.uint8)
    mask = binary_mask(Image.fromarray(noisy).convert("RGB"), (30, 40))
    assert np.array_equal(np.asarray(mask), np.where(noisy > 127, 255, 0))


def test_a_mask_of_another_size_is_brought_to_its_picture() -> None:
    assert binary_mask(Image.new("L", (15, 20), 255), (30, 40)).size == (30, 40)


def test_masks_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(ValueError, match="another shape"):
        binary_mask(Image.new("L", (20, 10), 255), (30, 40))
    with pytest.raises(ValueError, match="8 bits"):
        buffer = io.BytesIO()
        Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(buffer, "PNG")
        read_picture(io.BytesIO(buffer.getvalue()))
    clear = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    assert not np.asarray(binary_mask(clear, (4, 4))).any(), "transparent white is no mask"


def test_a_mask_without_white_is_told_its_largest_value() -> None:
    """Masks of 0 and 1, as programs keep them, are the usual case."""
    ones = Image.fromarray(np.ones((40, 30), np.uint8))
    with pytest.raises(ValueError, match="the mask has no white in it, its largest value is 1 of 255: paint"):
        usable_mask(ones, (30, 40))
    with pytest.raises(ValueError, match="its largest value is 0 of 255"):
        usable_mask(Image.new("RGBA", (30, 40), (255, 255, 255, 0)), (30, 40))
    assert usable_mask(ones.point(lambda value: 255 * value), (30, 40)).getextrema() == (255, 255)
    dot, picture = Image.new("L", (900, 900)), Image.new("RGB", (900, 900))
    dot.putpixel((450, 450), 255)
    with pytest.raises(ValueError, match="the mask's white is too small to be seen at 96 x 64"):
        sample_of_pictures(picture, picture, dot, "upper", 96, 64)


def test_a_large_photograph_is_read_at_half_its_size_and_others_as_they_are() -> None:
    """In a process of its own, as pytest shows every warning. 65 megapixels, and 180, which are refused undecoded."""
    script = """
import io, sys, time
from PIL import Image
from tryon.data import sample
def file(picture, kind, **settings):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer
exif = Image.Exif()
exif[0x0112] = 6
for kind in ("JPEG", "PNG"):
    read = sample.read_photograph(file(Image.new("L", (10_001, 6_501), 200), kind, exif=exif))
    print(kind, read.size, read.mode, read.getpixel((9, 9))[0])
print(sample.read_photograph(file(Image.new("L", (10_000, 6_400)), "PNG")).size)
print(sample.read_picture(file(Image.new("1", (12_000, 9_000)), "PNG")).size)
try:
    sample.read_photograph(file(Image.new("1", (18_000, 10_000)), "PNG"))
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "JPEG (3251, 5001) RGB 200", "PNG (3251, 5001) RGB 200", "(10000, 6400)", "(12000, 9000)",
        "it has more than 179 megapixels: make it smaller",
    ]  # fmt: skip
    assert not done.stderr


def test_a_photograph_of_ordinary_size_is_what_training_reads() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (700, 500, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    assert read_photograph(buffer).tobytes() == read_picture(buffer).tobytes()


def test_transparency_is_white_and_exif_is_followed() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    buffer = io.BytesIO()
    clear.save(buffer, "PNG")
    assert read_picture(io.BytesIO(buffer.getvalue())).getpixel((0, 0)) == (255, 255, 255)

    lying, buffer = Image.new("RGB", (8, 4)), io.BytesIO()
    exif = lying.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    lying.save(buffer, "JPEG", exif=exif)
    assert read_picture(io.BytesIO(buffer.getvalue())).size == (4, 8)
    assert upright_size(io.BytesIO(buffer.getvalue())) == (4, 8)


def test_diptych_has_the_garment_left_and_hides_only_the_mask() -> None:
    sample = make_sample(0)
    image, masked, mask = make_diptych(sample)
    height, width = sample.person.shape[-2:]
    assert image.shape == (3, height, 2 * width)
    garment, person = split_diptych(image)
    assert torch.equal(garment, sample.garment)
    assert torch.equal(person, sample.person)
    assert mask[..., :width].sum() == 0
    assert torch.equal(mask[..., width:], sample.mask)
    hidden = mask.bool().expand_as(masked)
    assert (masked[hidden] == 0).all()
    assert torch.equal(masked[~hidden], image[~hidden])

    same_image, masked, mask = make_diptych(replace(sample, try_off=True))
    assert torch.equal(same_image, image) and mask[..., :width].all() and not mask[..., width:].any()
    assert not masked[..., :width].any() and torch.equal(masked[..., width:], sample.person)


def test_prompts() -> None:
    assert "clothing[IMAGE2] The same" in FIXED_PROMPT
    assert prompt_for("fixed", "upper") == prompt_for("fixed", "full") == FIXED_PROMPT
    assert len({prompt_for("category", category) for category in ("upper", "lower", "full")}) == 3
    assert set(prompts_of("fixed", None)) == {"upper", "lower", "full"}
    both = prompts_of("fixed", TRY_OFF_PROMPT)
    assert len(both) == 6 and set(both.values()) == {
        FIXED_PROMPT,
        *(
            f"[IMAGE1] Detailed product shot of the {part}-body garment worn by the model in [IMAGE2]"
            for part in ("upper", "lower", "full")
        ),
    }
