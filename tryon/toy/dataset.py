"""Writes a drawn data set in the layout of the hub's deepFashion-with-masks."""

import colorsys
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tryon.console import progress_bar
from tryon.data.category import CATEGORIES, Category
from tryon.files import replacing
from tryon.toy.drawing import AS_WORN, draw_garment, draw_person, random_layout
from tryon.toy.world import TEXTURES, VIEWS, WORLD_VERSION, Garment, World, random_outfit, random_wearer

_CLOTHES = {  # noun and cloth_type
    "tee": ("t-shirt", "Tees_Tanks"), "long_sleeve": ("sweater", "Sweaters"), "tank": ("tank top", "Tees_Tanks"),
    "shirt": ("shirt", "Blouses_Shirts"), "shorts": ("shorts", "Shorts"), "trousers": ("trousers", "Pants"),
    "skirt": ("skirt", "Skirts"), "dress": ("dress", "Dresses"), "jumpsuit": ("jumpsuit", "Rompers_Jumpsuits"),
}  # fmt: skip
_ADJECTIVES = dict(zip(TEXTURES, ("", "striped ", "checked ", "dotted ", "two-tone ", "printed "), strict=True))
_HUES = ("red", "orange", "yellow", "green", "green", "green", "teal", "blue", "blue", "purple", "pink", "pink", "red")


def _phrase(garment: Garment) -> str:
    hue, _, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in garment.colours[0]))
    colour = _HUES[round(12 * hue)]
    colour = "brown" if colour == "orange" and value < 0.65 else colour
    noun = _CLOTHES[garment.kind][0]
    article = "" if noun.endswith("s") and noun != "dress" else "an " if colour == "orange" else "a "
    return f"{article}{colour} {_ADJECTIVES[garment.texture]}{noun}"


def _png(image: Image.Image) -> dict:
    """What an image column of a data set stores."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # most of the time goes into compressing
    return {"bytes": buffer.getvalue(), "path": None}


def _item_rows(
    index: int, seed: int, height: int, width: int, views: Sequence[str], flat: bool, category: Category,
    world: World,
) -> list[dict]:  # fmt: skip
    rng = np.random.default_rng([seed, index])
    outfit = random_outfit(rng, category)
    garment, person = outfit[0], random_wearer(rng, outfit, world)
    cloth = _CLOTHES[garment.kind][1]
    if garment.kind == "tee" and garment.texture == "logo":
        cloth = "Graphic_Tees"
    elif garment.kind == "shirt" and person.gender == "MEN":
        cloth = "Shirts_Polos"
    shown = (views[0], *rng.permutation(views[1:])[:2].tolist())
    drawings = {view: draw_person(person, outfit, view, height, width) for view in shown}
    if flat:
        layout = random_layout(rng, garment) if world == 5 else AS_WORN
        drawings["flat"] = draw_garment(garment, height, width, layout)
    worn = f"a {'man' if person.gender == 'MEN' else 'woman'} in {' and '.join(map(_phrase, outfit))}"
    rows = []
    for view, drawing in drawings.items():
        image, mask = drawing.image, drawing.masks[category]
        overlay = Image.composite(Image.blend(image, Image.new("RGB", image.size, "red"), 0.5), image, mask)
        texts = {"gender": person.gender, "pose": view, "cloth_type": cloth, "pid": f"id_{index:08d}"}
        texts["caption"] = _phrase(garment) if view == "flat" else worn
        rows.append({"images": _png(image), **texts, "mask": _png(mask), "mask_overlay": _png(overlay)})
    return rows


def write_dataset(
    folder: Path, items: int, seed: int, height: int = 192, width: int = 144, views: Sequence[str] = VIEWS,
    every_flat: bool = False, categories: Sequence[Category] = CATEGORIES, world: World = WORLD_VERSION,
) -> Path:  # fmt: skip
    """Writes `items` items as folder/data/train-00000-of-00001.parquet and returns that path.

    The columns are those of the hub's deepFashion-with-masks. Item i is about a garment of categories[i modulo their
    number]. Its rows show one person in views[0] and in up to two others of the views, and the garment alone ("flat"),
    for three items in four or, where every_flat, for all. The folder appears complete or not at all; the same arguments
    give the same bytes.

    Raises ValueError for an unknown view, and FileExistsError where the folder exists.
    """
    import pyarrow
    import pyarrow.parquet
    from datasets import Features, Value
    from datasets import Image as Picture

    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it or name another folder")
    texts = {name: Value("string") for name in ("gender", "pose", "cloth_type", "pid", "caption")}
    features = Features({"images": Picture(), **texts, "mask": Picture(), "mask_overlay": Picture()})
    rows = []
    with progress_bar(items, "drawing", visible=True) as bar:
        for index in range(items):
            category = categories[index % len(categories)]
            rows += _item_rows(index, seed, height, width, views, every_flat or index % 4 != 3, category, world)
            bar.update()
    table = pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)
    name = "train-00000-of-00001.parquet"
    with replacing(folder) as staging:
        (staging / "data").mkdir(parents=True)
        pyarrow.parquet.write_table(table, staging / "data" / name, row_group_size=100)
    return folder / "data" / name
