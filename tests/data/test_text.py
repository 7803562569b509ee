import pytest

from mmm4rec.data import text
from mmm4rec.data.text import clean, clean_brand, clean_categories, clean_name, image_2018, image_2023, item_text

EMPTY = {"title": None, "brand": None, "categories": None, "description": None, "image": None}
URL = "https://example.org/images/I/"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Disney &amp; Me", "Disney & Me"),
        (" two \n\n lines\t", "two lines"),
        (["first.", "", "second"], "first. second"),
        ("a <i>fine</i> thing<br/>here", "a fine thing here"),
        ("3 < 5 and 6 > 4", "3 < 5 and 6 > 4"),
        ("&lt;b&gt;bold&lt;/b&gt;", "bold"),
        (None, ""),
        (7, ""),
        ({"a": 1}, ""),
        ([["nested"], None, 3], "nested"),
    ],
)
def test_clean(raw, expected):
    assert clean(raw) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ('<span class="a-size-medium a-color-secondary"', ""),
        (' Magazines" />', ""),
        ('Pipe 5" long', 'Pipe 5" long'),
        ("var aPageStart = (new Date()).getTime();", ""),
        ("x" * 2000, ""),
        ("x" * 1999, "x" * 1999),
    ],
)
def test_titles_that_are_no_titles(raw, expected):
    assert clean_name(raw) == expected


def test_brand():
    assert clean_brand("by\n    \n    EMI") == "EMI"
    assert clean_brand("\n  Wacom\n") == "Wacom"
    assert clean_brand("by the sea") == "by the sea"


def test_categories_once_each():
    assert clean_categories(["Arts &amp; Crafts", "Paper", "", "Arts & Crafts", None]) == ["Arts & Crafts", "Paper"]
    assert clean_categories("Toys") == ["Toys"]


def test_image_2018():
    small = f"{URL}51._a+b%2BL._SX38_SY50_CR,0,0,38,50_.jpg"
    both = {"imageURLHighRes": [f"{URL}h.jpg"], "imageURL": [f"{URL}l._US40_.jpg"], "image": [small]}
    assert image_2018(both) == f"{URL}h.jpg"
    assert image_2018(both | {"imageURLHighRes": []}) == f"{URL}l._US40_.jpg"
    assert image_2018({"imageURLHighRes": [""], "image": [small]}) == f"{URL}51._a+b%2BL.jpg"
    assert image_2018({"image": f"{URL}x._SS40_.png"}) == f"{URL}x.png"
    assert image_2018({"image": []}) == image_2018({}) == image_2018({"image": 5}) == ""


def test_image_2023():
    side = {"variant": "PT01", "hi_res": "side", "large": "side-l"}
    main = {"variant": "MAIN", "hi_res": None, "large": "main-l", "thumb": "t"}
    assert image_2023({"images": [side, main]}) == "main-l"
    assert image_2023({"images": [side]}) == "side"
    assert image_2023({"images": []}) == image_2023({"images": "x"}) == image_2023({}) == ""


def test_fields_of_both_editions():
    old = {"title": "T", "brand": "B", "category": ["C"], "description": ["D", "E"], "imageURL": ["u"]}
    new = {"title": "T", "store": "B", "categories": ["C"], "description": ["D", "E"], "images": [{"large": "u"}]}
    expected = {"title": "T", "brand": "B", "categories": ["C"], "description": "D E", "image": "u"}
    assert text.fields_2018(old) == text.fields_2023(new) == expected
    assert text.fields_2018({"title": 3, "category": ""}) == EMPTY


def test_text_of_the_paper():
    fields = EMPTY | {"title": 'Red "big" pen..', "categories": ["Office", "Pens"], "brand": "Bic"}
    assert item_text(fields, "title_category_brand") == "Red big pen. Office Pens. Bic."
    assert item_text(EMPTY | {"brand": "Bic"}, "title_category_brand") == "Bic."
    assert item_text(EMPTY | {"categories": ["x" * 2000]}, "title_category_brand") is None
    assert item_text(EMPTY, "title_category_brand", asin="B1") is None


def test_text_of_the_released_runs():
    fields = EMPTY | {"title": "Pen", "brand": "Bic", "description": "Writes."}
    assert item_text(fields, "title_brand_description") == "Title: Pen ; Brand: Bic ; Description: Writes. ;"
    assert item_text(fields | {"brand": None}, "title_brand_description") == "Title: Pen ; Description: Writes. ;"
    assert item_text(EMPTY, "title_brand_description", asin="B1") == "Asin: B1 ;"
    assert item_text(EMPTY, "title_brand_description") is None
