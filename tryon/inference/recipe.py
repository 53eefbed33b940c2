"""How a picture was made, written into the picture itself: the flags that make it again. Imports neither torch nor
diffusers."""

import json
import os
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from shutil import which
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

from tryon.config import PROJECT
from tryon.files import files_fingerprint, full_path, replacing
from tryon.inference.pairs_file import Request, results_of
from tryon.runs import lora_name

KEY = "tryon"  # of a PNG's text
ASCII = b"ASCII\0\0\0"  # how a comment in EXIF begins: JPEG and WebP have no texts with keys
BASE = "base"  # in place of a LoRA: the model without one
OUTPUTS = ("output_tryon", "output_grid", "output")
# Flags that shape no picture, and those that `with_files` adds with their fingerprints.
LEFT_OUT = {*OUTPUTS, "again", "cache_dir", "data_cache_dir", "image", "garment", "mask", "worn", "pairs", "take_off"}
OF_ONE = ("image", "garment", "mask", "worn", "parser")  # flags of a single try-on
# Which flags, where one is given, take the place of which.
REPLACED = (
    (OUTPUTS, OUTPUTS),
    (("mask", "worn"), ("mask", "worn", "parser")),
    (("lora", "base", "transformer"), ("toy",)),  # which follows from them
    (("pairs",), (*OF_ONE, "take_off", *OUTPUTS)),
    (("take_off",), (*OF_ONE, "give_back", "pairs", "output_tryon", "output_grid")),
    (("image", "garment"), ("take_off", "output")),
)
FINGERPRINT = 12  # hexadecimal digits


@dataclass(frozen=True)
class Recipe:
    """How a picture was made.

    flags: of tryon_inference_lora.py, by name, with every default filled in. fingerprints: of the files that flags
    name, by flag. loras: what the LoRAs are called, with their steps. versions: of this project and of libraries.
    """

    flags: dict[str, Any]
    fingerprints: dict[str, str]
    loras: tuple[str, ...]
    versions: dict[str, str]


def recipe_of(loras: dict[str, Path], flags: dict[str, Any]) -> Recipe:
    """The part of a recipe that all pictures of a command share.

    flags: by name; None is not given, and those that shape no picture are left out. loras: the file of each name in
    flags["lora"], a tuple, but for BASE.
    """
    here = {name: full_path(file) for name, file in loras.items() if Path(name).expanduser().exists()}
    names = flags["lora"]
    flags = flags | {"lora": tuple(str(here.get(name, name)) for name in names)}
    return Recipe(
        {name: value for name, value in flags.items() if value is not None and name not in LEFT_OUT},
        {"lora": files_fingerprint(*loras.values())[:FINGERPRINT]},
        tuple(lora_name(here[name]) if name in here else name for name in names),
        versions(),
    )


@cache
def versions() -> dict[str, str]:
    """Versions of libraries and of this project: its commit, with "-dirty" where files were changed since; "unknown"
    where it is no checkout."""
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty"]
    is_checkout = (PROJECT / ".git").exists() and which("git")
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() if is_checkout else ""
    return {"tryon": commit or "unknown", "torch": version("torch"), "diffusers": version("diffusers")}


def with_files(recipe: Recipe, files: dict[str, Path | None]) -> Recipe:
    """The recipe with flags that name files. A file that cannot be read has no fingerprint."""
    named = {name: str(full_path(path)) for name, path in files.items() if path}
    readable = {name: path for name, path in files.items() if path and path.is_file() and os.access(path, os.R_OK)}
    prints = {name: files_fingerprint(path)[:FINGERPRINT] for name, path in readable.items()}
    return replace(recipe, flags=recipe.flags | named, fingerprints=recipe.fingerprints | prints)


def with_request(recipe: Recipe, request: Request) -> Recipe:
    """The recipe with the pictures of a try-on."""
    pictures = {"image": request.person, "garment": request.garment, "mask": request.mask, "worn": request.worn}
    category = {"category": request.category} if request.category else {}
    return with_files(replace(recipe, flags=recipe.flags | category), pictures)


def with_output(recipe: Recipe, output: str, file: Path, **flags: Any) -> Recipe:
    """The recipe with the flag that names the picture itself, one of OUTPUTS, and other flags."""
    return replace(recipe, flags=recipe.flags | flags | {output: str(full_path(file))})


def of_result(recipe: Recipe, seed: int, file: Path, output: str = "output_tryon") -> Recipe:
    """The recipe of one of several results. output: the flag, one of OUTPUTS, that names its file."""
    return with_output(recipe, output, file, seed=seed, num_results=1)


def is_made(recipe: Recipe, output: Path, seeds: range) -> bool:
    """Whether the files of all results of a try-on are there, made by this recipe. recipe: as with_request gives it."""

    def essence(recipe: Recipe | None) -> Any:
        if recipe is None:
            return None
        named = {*recipe.fingerprints, *OUTPUTS}  # files may be called otherwise
        return recipe.fingerprints, {name: value for name, value in recipe.flags.items() if name not in named}

    files = zip(seeds, results_of(output, seeds), strict=True)
    return all(essence(read_recipe(file)) == essence(of_result(recipe, seed, file)) for seed, file in files)


def save_picture(picture: Image.Image, file: Path, recipe: Recipe) -> None:
    """Writes a picture, whole or not at all, with its recipe: as text in PNG, as EXIF's comment in JPEG and WebP.
    Raises ValueError where it cannot be written."""
    kind = Image.registered_extensions()[file.suffix.lower()]
    if kind == "PNG":
        settings = {"pnginfo": png_text(recipe)}
    else:
        settings = {"quality": 95, "exif": Image.Exif()}
        comment = ASCII + json.dumps(asdict(recipe)).encode()
        settings["exif"].get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    try:
        with replacing(file) as staging:
            picture.save(staging, kind, **settings)
    except OSError as error:
        raise ValueError(f"{file} cannot be written ({error}): make room, or name another place") from error


def png_text(recipe: Recipe) -> PngImagePlugin.PngInfo:
    """A recipe as a PNG carries it."""
    text = PngImagePlugin.PngInfo()
    text.add_text(KEY, json.dumps(asdict(recipe)))
    return text


def read_recipe(file: Path) -> Recipe | None:
    """The recipe that a picture carries; None for a file that has none that is known here, or is no picture."""
    try:
        with Image.open(file) as picture:
            comment = picture.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
            read = json.loads(picture.info.get(KEY) or comment.removeprefix(ASCII))
        flags = {name: tuple(value) if isinstance(value, list) else value for name, value in read["flags"].items()}
        return Recipe(**read | {"flags": flags, "loras": tuple(read["loras"])})
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, AttributeError):
        return None


def without(recipe: Recipe, given: Iterable[str]) -> Recipe:
    """The recipe without the flags of these names, and without those whose place they take."""
    dropped = {*given}
    for names, replaced in REPLACED:
        if dropped & {*names}:
            dropped |= {*replaced}
    kept = [
        {name: value for name, value in part.items() if name not in dropped}
        for part in (recipe.flags, recipe.fingerprints)
    ]
    return Recipe(*kept, recipe.loras, recipe.versions)


def as_arguments(flags: dict[str, Any]) -> list[str]:
    """A recipe's flags as arguments of a command line."""
    arguments = []
    for name, value in flags.items():
        if isinstance(value, bool):
            arguments += [f"--{name}"] * value
        else:
            arguments += [f"--{name}={each}" for each in (value if isinstance(value, tuple) else [value])]
    return arguments


def check_unchanged(recipe: Recipe, fingerprints: dict[str, str], again: str | None) -> None:
    """Raises ValueError where a file that the recipe's flags name is another than when the picture `again` was made."""
    for name, fingerprint in fingerprints.items():
        if recipe.fingerprints.get(name) != fingerprint:
            raise ValueError(
                f"{again} was made with another --{name} than {recipe.flags[name]} is now: put the old one back, or "
                f"give --{name} to use another"
            )
