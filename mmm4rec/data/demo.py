"""Small invented domains in the raw formats of Amazon Reviews 2018: the embedded default.

What a user takes next is planted, so that every input is worth something and every domain teaches about the others:

- *text*: an item has a topic, told by its title, brand, category and description. The words mean the same everywhere.
- *image*: an item has a style, told by the colour and shape in its picture alone.
- *order*: the next topic and style depend on those of the last item.
- *time*: gaps between events are short or long, one as likely as the other. After a short gap topic and style move on
  by ``SHORT_STEP``, after a long one by ``LONG_STEP``. Only past gaps matter: the time of the next event tells nothing.

Items of one topic and style differ in popularity, and some steps are random (``NOISE``).
"""

import gzip
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from mmm4rec.io import atomic, write_text

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# topic: (nouns of the titles, brands)
TOPICS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Lighting": (("lantern", "lamp", "torch"), ("Lumora", "Glowick")),
    "Seating": (("stool", "bench", "chair"), ("Sitwell", "Restora")),
    "Storage": (("crate", "basket", "shelf"), ("Stackton", "Binford")),
    "Cutting": (("knife", "scissors", "saw"), ("Edgeline", "Slicero")),
    "Brewing": (("kettle", "teapot", "grinder"), ("Brewmont", "Steepwell")),
    "Planting": (("trowel", "planter", "hose"), ("Fern & Co", "Sproutly")),
    "Painting": (("brush", "easel", "canvas"), ("Huefield", "Bristola")),
    "Measuring": (("ruler", "scale", "gauge"), ("Exacta", "Calibro")),
    "Cleaning": (("broom", "mop", "sponge"), ("Tidyman", "Rinse & Shine")),
    "Fixing": (("hammer", "wrench", "screwdriver"), ("Boltmann", "Gripson")),
    "Sewing": (("needle", "thread", "thimble"), ("Stitchery", "Hemline")),
    "Music": (("whistle", "drum", "chime"), ("Tonando", "Cadenza")),
}
ADJECTIVES = ("classic", "compact", "deluxe", "everyday", "folding", "handmade", "light", "sturdy", "travel", "vintage")
STYLES = (("ellipse", (205, 45, 40)), ("square", (40, 90, 205)), ("triangle", (40, 160, 70)), ("cross", (230, 180, 30)),
          ("ring", (140, 50, 160)))  # fmt: skip
PICTURES_PER_STYLE = 8
SHORT_DAYS, LONG_DAYS = (1, 3), (40, 80)
SHORT_STEP, LONG_STEP = (1, 0), (5, 2)  # in topic and style
NOISE = 0.1
SKEW = 0.5
DAY = 86_400
FIRST_DAY = 16_000  # October 2013


@dataclass(frozen=True)
class Size:
    """How large a domain is: users, and items of each topic and style."""

    users: int
    per_cell: int


DOMAINS = {
    "Demo_Kitchen": Size(1000, 5),
    "Demo_Garden": Size(1000, 5),
    "Demo_Garage": Size(300, 3),
    "Demo_Studio": Size(300, 3),
}


@dataclass(frozen=True)
class World:
    """What is planted in a domain of N items and E events, before it is dressed up as raw files.

    Attributes:
        topic: [N] number of the item's topic.
        style: [N] number of the item's style.
        share: [N] chance of the item among those of its topic and style.
        user: [E] number of the user; events are sorted by user and time.
        item: [E] number of the item.
        day: [E] days since 1970.
    """

    topic: Ints
    style: Ints
    share: Floats
    user: Ints
    item: Ints
    day: Ints


def invent(size: Size, rng: np.random.Generator) -> World:
    """Draw a domain's items and everybody's 5 to 9 events."""
    n_topics, n_styles = len(TOPICS), len(STYLES)
    cell = rng.permutation(np.repeat(np.arange(n_topics * n_styles), size.per_cell))
    members = np.argsort(cell, kind="stable").reshape(-1, size.per_cell)  # [cells, per_cell] item numbers
    shares = np.arange(1, size.per_cell + 1) ** -SKEW
    shares /= shares.sum()
    share = np.empty(cell.size)
    share[members] = shares

    longest = 9
    # a gap a column; the first one stands before the first event and is read by nobody
    long = rng.random((size.users, longest)) < 0.5
    gap = np.where(
        long,
        rng.integers(*LONG_DAYS, size=long.shape, endpoint=True),
        rng.integers(*SHORT_DAYS, size=long.shape, endpoint=True),
    )
    gap[:, 0] = rng.integers(0, 1000, size=size.users)
    topic = rng.integers(n_topics, size=long.shape)
    style = rng.integers(n_styles, size=long.shape)
    follow = rng.random((2, *long.shape)) >= NOISE
    for k in range(1, longest):
        # before the second event there is no gap yet to go by: it counts as short
        step = np.where((long[:, k - 1] & (k > 1))[:, None], LONG_STEP, SHORT_STEP)
        topic[:, k] = np.where(follow[0, :, k], (topic[:, k - 1] + step[:, 0]) % n_topics, topic[:, k])
        style[:, k] = np.where(follow[1, :, k], (style[:, k - 1] + step[:, 1]) % n_styles, style[:, k])
    item = members[topic * n_styles + style, rng.choice(size.per_cell, p=shares, size=long.shape)]
    kept = np.arange(longest) < rng.integers(5, longest, size=(size.users, 1), endpoint=True)
    user, _ = np.nonzero(kept)
    day = FIRST_DAY + np.cumsum(gap, axis=1)
    return World(cell // n_styles, cell % n_styles, share, user, item[kept], day[kept])


def picture(style: int, rng: np.random.Generator) -> bytes:
    """A JPEG picture: the style's shape in its colour, on striped grey."""
    shape, colour = STYLES[style]
    side = 96
    image = Image.new("RGB", (side, side), (135, 135, 135))
    draw = ImageDraw.Draw(image)
    width, slope = (int(v) for v in rng.integers((6, -30), (13, 31)))
    for x in range(-side, 2 * side, 2 * width):
        draw.line((x, 0, x + slope, side), fill=(115, 115, 115), width=width // 2)
    r = int(rng.integers(34, 44))
    cx, cy = (int(v) for v in rng.integers(side // 2 - 8, side // 2 + 9, size=2))
    fill = tuple(int(v) for v in np.clip(np.array(colour) + rng.integers(-20, 21, size=3), 0, 255))
    if shape == "ellipse":
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=fill)
    elif shape == "square":
        draw.rectangle((cx - r, cy - r, cx + r, cy + r), fill=fill)
    elif shape == "triangle":
        draw.polygon([(cx, cy - r), (cx - r, cy + r), (cx + r, cy + r)], fill=fill)
    elif shape == "cross":
        draw.line((cx - r, cy, cx + r, cy), fill=fill, width=r // 2)
        draw.line((cx, cy - r, cx, cy + r), fill=fill, width=r // 2)
    else:
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), outline=fill, width=r // 2)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_demo(out: Path, *, seed: int = 0) -> None:
    """Write ``<Category>.csv``, ``meta_<Category>.json.gz`` and ``pictures/`` of the domains in ``DOMAINS``.

    The formats are those of Amazon Reviews 2018, with its usual flaws. Items name their picture by its path below
    ``out`` as given (relative to the current directory, if ``out`` is). The same seed gives the same bytes.
    """
    out = Path(out)
    rng = np.random.default_rng(seed)
    pictures = [
        [out / "pictures" / f"{style * PICTURES_PER_STYLE + k:02d}.jpg" for k in range(PICTURES_PER_STYLE)]
        for style in range(len(STYLES))
    ]
    for style, paths in enumerate(pictures):
        for path in paths:
            with atomic(path) as part:
                part.write_bytes(picture(style, rng))
    for category, size in DOMAINS.items():
        world = invent(size, rng)
        asins = [f"B0{category[5:8].upper()}{n:05d}" for n in rng.choice(100_000, size=world.topic.size, replace=False)]
        write_text(out / f"{category}.csv", _ratings(category, world, asins, rng))
        lines = "\n".join(json.dumps(item) for item in _metadata(category, world, asins, pictures, rng)) + "\n"
        with atomic(out / f"meta_{category}.json.gz") as part:
            part.write_bytes(gzip.compress(lines.encode(), mtime=0))


def _ratings(category: str, world: World, asins: list[str], rng: np.random.Generator) -> str:
    """The ratings file: item, user, rating, unix seconds at the granularity of days; no header, in order of time."""
    prefix = f"A{category[5:8].upper()}"
    rating = rng.choice([1, 2, 3, 4, 5], p=[0.05, 0.05, 0.1, 0.25, 0.55], size=world.item.size)
    rows = [
        (int(day), f"{asins[item]},{prefix}{user:09d},{stars}.0,{day * DAY}")
        for item, user, stars, day in zip(world.item, world.user, rating, world.day, strict=True)
    ]
    # an item nobody else knows, an item without metadata, users with too few events, exact duplicates
    last = int(world.user[-1])
    day = FIRST_DAY + 500
    rows += [(day, f"B0{prefix[1:]}_RARE,{prefix}{last + 1 + k:09d},5.0,{day * DAY}") for k in range(2)]
    rows += [(day + k, f"B0{prefix[1:]}_NONE,{prefix}{k:09d},4.0,{(day + k) * DAY}") for k in range(8)]
    rows += [(day, f"{asins[k]},{prefix}{last + 10 + k // 3:09d},3.0,{day * DAY}") for k in range(12)]
    rows += rows[:3]
    rows.sort(key=lambda row: row[0])
    return "\n".join(line for _, line in rows) + "\n"


def _metadata(
    category: str, world: World, asins: list[str], pictures: list[list[Path]], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """The metadata, an item a line: topics in the words, styles in the pictures, and the flaws of the real files."""
    topics = list(TOPICS)
    items: list[dict[str, Any]] = []
    for k, asin in enumerate(asins):
        topic, style = topics[world.topic[k]], int(world.style[k])
        nouns, brands = TOPICS[topic]
        noun, brand = nouns[rng.integers(len(nouns))], brands[rng.integers(len(brands))]
        adjective = ADJECTIVES[rng.integers(len(ADJECTIVES))]
        path = pictures[style][rng.integers(PICTURES_PER_STYLE)]
        items.append(
            {
                "category": [category.replace("_", " "), topic, noun.title()],
                "description": [f"A {adjective} {noun} by {brand.replace('&', '&amp;')} for {topic.lower()}."],
                "title": f"{brand.replace('&', '&amp;')} {adjective.title()} {noun.title()}",
                "brand": brand.replace("&", "&amp;"),
                "imageURLHighRes": [path.as_posix()],
                "asin": asin,
            }
        )
    flawed = iter(rng.permutation(len(items)).tolist())
    for _ in range(len(items) // 25):
        items[next(flawed)]["imageURLHighRes"] = []
    items[next(flawed)].pop("imageURLHighRes")
    items[next(flawed)]["imageURLHighRes"] = [(pictures[0][0].parent / "gone.jpg").as_posix()]
    items[next(flawed)]["title"] = '<span class="a-size-medium a-color-secondary"'
    items[next(flawed)] |= {"description": [], "brand": ""}
    items[next(flawed)]["category"] = []
    item = items[next(flawed)]
    item["brand"] = f"by\n    \n    {item['brand']}"
    items += [items[next(flawed)] for _ in range(3)]  # the same asin twice
    rare = items[0] | {"asin": f"B0{category[5:8].upper()}_RARE", "imageURLHighRes": []}
    return [*items, rare]
