"""What an item says about itself: cleaned fields, its text in two readings, and the URL of its picture.

Metadata of Amazon Reviews is scraped: any field may be missing, empty, of another type, full of entities or a piece
of HTML. Every function here takes whatever value it finds and returns clean text, empty if there is none.
"""

import html
import re
from typing import Any, TypedDict

from mmm4rec.config import TextFields

MAX_CHARS = 2000  # a field this long is no name but script or page text (the limit of UniSRec's preprocessing)
_TAG = re.compile(r"<[A-Za-z/!][^<>]*>|<[A-Za-z]+\s+[\w-]+=[^<>]*$")  # the last may be cut off: `<span class="a-size"`
_TAG_END = re.compile(r'^[^<>]*"\s*/>')  # the rest of a tag cut off at its front: ` Magazines" />`
_IMAGE_SIZE = re.compile(r"\._[^/.]*_(?=\.\w+$)")  # `._SX38_SY50_CR,0,0,38,50_` before the extension


class Fields(TypedDict):
    """Cleaned fields of an item; None where there is nothing."""

    title: str | None
    brand: str | None
    categories: list[str] | None
    description: str | None
    image: str | None


def _strings(value: Any) -> list[str]:
    """All strings of a value that should be a string or a list of strings but may be anything."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for part in value for text in ((part,) if isinstance(part, str) else _strings(part))]
    return []


def clean(value: Any) -> str:
    """Plain text of a field: entities resolved, HTML tags dropped, white space collapsed, lists joined by spaces."""
    text = value if isinstance(value, str) else " ".join(_strings(value))
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        text = _TAG.sub(" ", text)
    return " ".join(text.split())


def clean_name(value: Any) -> str:
    """A title or brand as ``clean`` gives it; empty if it is script or page text, or nothing but HTML."""
    text = clean(value)
    if "/>" in text:
        text = _TAG_END.sub("", text).strip()
    return "" if "getTime" in text or len(text) >= MAX_CHARS else text


def clean_brand(value: Any) -> str:
    """A brand; the 2018 edition writes some as ``by``, a line break, and the name."""
    return clean_name(re.sub(r"^\s*by\s*\n", "", value) if isinstance(value, str) else value)


def clean_categories(value: Any) -> list[str]:
    """Levels of a category path, each once, in their order."""
    return [level for level in dict.fromkeys(map(clean, _strings(value))) if level]


def image_2018(record: dict[str, Any]) -> str:
    """URL of an item's picture in the 2018 edition: imageURLHighRes, else imageURL, else image at full size."""
    for key in ("imageURLHighRes", "imageURL"):
        if url := _first(record.get(key)):
            return url
    return _IMAGE_SIZE.sub("", _first(record.get("image")))


def image_2023(record: dict[str, Any]) -> str:
    """URL of an item's picture in the 2023 edition: hi_res, else large, of the main picture (else of the first)."""
    images = record.get("images")
    pictures = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    for picture in sorted(pictures, key=lambda image: image.get("variant") != "MAIN")[:1]:
        return _first(picture.get("hi_res")) or _first(picture.get("large"))
    return ""


def _first(value: Any) -> str:
    return next((text.strip() for text in _strings(value) if text.strip()), "")


def fields_2018(record: dict[str, Any]) -> Fields:
    """Cleaned fields of a metadata record of the 2018 edition."""
    return _fields(record, "title", "brand", "category", "description", image_2018(record))


def fields_2023(record: dict[str, Any]) -> Fields:
    """Cleaned fields of a metadata record of the 2023 edition, where ``store`` is the brand."""
    return _fields(record, "title", "store", "categories", "description", image_2023(record))


def fields_own(record: dict[str, Any]) -> Fields:
    """Cleaned fields of a row of a user's own items file; ``image`` is a path or URL."""
    return _fields(record, "title", "brand", "categories", "description", _first(record.get("image")))


def _fields(record: dict[str, Any], title: str, brand: str, categories: str, description: str, image: str) -> Fields:
    return Fields(
        title=clean_name(record.get(title)) or None,
        brand=clean_brand(record.get(brand)) or None,
        categories=clean_categories(record.get(categories)) or None,
        description=clean(record.get(description)) or None,
        image=image or None,
    )


def item_text(fields: Fields, reading: TextFields, asin: str | None = None) -> str | None:
    """Text of an item, the encoder's input; None if the item says nothing about itself.

    ``title_category_brand`` is the reading of the paper: three sentences, cleaned as UniSRec does (quotes deleted, dots
    at the end made one, fields of 2000 characters and more dropped). ``title_brand_description`` is that of the
    released runs: ``Title: … ; Brand: … ; Description: … ;``, and ``Asin: … ;`` for an item with none of the three.
    """
    if reading == "title_category_brand":
        parts = (fields["title"], " ".join(fields["categories"] or []), fields["brand"])
        return " ".join(filter(None, map(_sentence, parts))) or None
    named = {"Title": fields["title"], "Brand": fields["brand"], "Description": fields["description"]}
    if not any(named.values()):
        named = {"Asin": asin}
    return " ".join(f"{name}: {value} ;" for name, value in named.items() if value) or None


def _sentence(text: str | None) -> str:
    text = (text or "").replace('"', "").strip().rstrip(".")
    return f"{text}." if text and len(text) < MAX_CHARS else ""
