"""Features brought along."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmm4rec.errors import UserError
from mmm4rec.features.precomputed import import_features
from mmm4rec.features.store import read_features
from mmm4rec.io import write_parquet

ZERO = {"version": 1, "missing_features": "zero"}


@pytest.fixture
def domain(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    items = {"item_id": pa.array([1, 2, 3, 4], pa.int32()), "item": ["10", "11", "9", "x"]}
    pq.write_table(pa.table(items), folder / "items.parquet")
    return folder


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def test_rows_come_into_the_order_of_the_items(domain, tmp_path):
    file = write(
        tmp_path / "in.parquet",
        item_id=["x", "9", "unknown", "10"],
        text=pa.array([[4.0, 4], [3, 3], [8, 8], [1, 1]], pa.list_(pa.float16())),
        image=pa.array([[0.5], None, [0.1], None], pa.list_(pa.float64(), 1)),
    )
    import_features(ZERO, domain, file, tmp_path / "out.parquet")
    features = read_features(tmp_path / "out.parquet")
    assert features.items.tolist() == ["10", "11", "9", "x"]
    assert features.text.dtype == np.float16
    assert features.text.tolist() == [[1, 1], [0, 0], [3, 3], [4, 4]]
    assert features.has_text.tolist() == [True, False, True, True]
    assert features.image.dtype == np.float32
    assert features.image.tolist() == [[0], [0], [0], [0.5]]
    assert features.has_image.tolist() == [False, False, False, True]
    assert features.metadata["encoder"] == "precomputed"


def test_what_no_system_reads_is_named(domain, tmp_path, caplog):
    vectors = [[1.0], [2.0], [3.0], [4.0]]
    file = write(
        tmp_path / "in.parquet", item_id=["x", "9", "10", "11"], image=vectors, text_dropped=vectors, Texts=vectors
    )
    import_features(ZERO, domain, file, tmp_path / "out.parquet")
    assert caplog.messages == [
        f"{file}: columns that nothing reads: Texts (is it `text`?)",
        f"{file}: `text_dropped` is left out; it is read only beside `text` of the same file",
    ]


def test_one_file_named_for_both_modalities_is_read_whole(domain, tmp_path, caplog):
    vectors = [[1.0], [2.0], [3.0], [4.0]]
    file = write(
        tmp_path / "in.parquet", item_id=["x", "9", "10", "11"], text=vectors, image=vectors, text_dropped=vectors
    )
    import_features(ZERO, domain, {"text": file, "image": file}, tmp_path / "out.parquet")
    assert not caplog.records


def test_zeros_are_no_features(domain, tmp_path, caplog):
    """Those of items that the domain lacks are not counted."""
    zero = [0.0, 0.0]
    file = write(
        tmp_path / "in.parquet",
        item_id=["x", "unknown", "10", "11", "9"],
        text=[[4.0, 0], zero, [1, 1], [2, 2], [3, 3]],
        image=[zero, zero, zero, [1.0, 0], [0.0, 1]],
        text_dropped=[zero, zero, [5.0, 5], None, [6.0, 6]],
    )
    import_features(ZERO, domain, file, tmp_path / "out.parquet")
    features = read_features(tmp_path / "out.parquet", text_dropped=True)
    assert features.has_text.tolist() == [True, True, True, True]
    assert features.has_image.tolist() == [False, True, True, False]
    assert pq.read_table(tmp_path / "out.parquet")["image"].null_count == 2
    assert features.text_dropped.tolist() == [[5, 5], [2, 2], [6, 6], [4, 0]]
    way = "of 4 items; write null where an item has none"
    assert caplog.messages == [
        f"{file}: column `image`: zeros alone are taken as no features, for 2 {way}",
        f"{file}: column `text_dropped`: zeros alone are taken as no features, for 1 {way}",
    ]
    with pytest.raises(UserError, match="2 of 4 items have no image features, item 10 first"):
        import_features(ZERO | {"missing_features": "error"}, domain, file, tmp_path / "out.parquet")


def test_one_vector_for_all_items_is_a_mistake(domain, tmp_path):
    """But of a single item it is none, whatever else stands in the file."""
    text, same = [[1.0], [2.0], [3.0]], [[7.0, 8.0], [7.0, 8.0], None]
    file = write(tmp_path / "in.parquet", item_id=["9", "10", "11"], text=text, image=same)
    with pytest.raises(UserError, match="column `image`: the same vector for all of 2 items tells nothing of them"):
        import_features(ZERO, domain, file, tmp_path / "out.parquet")
    file = write(tmp_path / "in.parquet", item_id=["9", "unknown", "11"], text=text, image=same)
    import_features(ZERO, domain, file, tmp_path / "out.parquet")
    assert read_features(tmp_path / "out.parquet").has_image.sum() == 1


def test_items_without_a_row_are_told_of_each_file(domain, tmp_path, caplog):
    caplog.set_level("INFO")
    text = write(tmp_path / "text.parquet", item_id=["9", "10", "11", "x"], text=[[1.0], [2.0], [3.0], [4.0]])
    image = write(tmp_path / "image.parquet", item_id=["9", "010", "11"], image=[[1.0], [2.0], [3.0]])
    import_features(ZERO, domain, {"text": text, "image": image}, tmp_path / "out.parquet")
    assert [(r.levelname, r.message) for r in caplog.records if "have a row" in r.message] == [
        ("INFO", f"{text}: 4 of 4 items have a row"),
        ("WARNING", f"{image}: 2 of 4 items have a row, 10 is the first without"),
    ]


@pytest.mark.parametrize("apart", [False, True])
def test_features_of_texts_with_words_left_out_come_with_the_text(domain, tmp_path, caplog, apart):
    """Where an item has none, those of its whole text stand in."""
    caplog.set_level("INFO")
    file = write(
        tmp_path / "in.parquet",
        item_id=["x", "9", "unknown", "10"],
        text=pa.array([[4.0, 4], [3, 3], [8, 8], None], pa.list_(pa.float16())),
        text_dropped=pa.array([[5.0, 5], None, [7, 7], None], pa.list_(pa.float16())),
    )
    import_features(ZERO, domain, {"text": file} if apart else file, tmp_path / "out.parquet")
    features = read_features(tmp_path / "out.parquet", text_dropped=True)
    assert features.text.tolist() == [[0, 0], [0, 0], [3, 3], [4, 4]]
    assert features.text_dropped.tolist() == [[0, 0], [0, 0], [3, 3], [5, 5]]
    assert features.text_dropped.dtype == np.float16
    assert "in.parquet: column `text_dropped`: 1 of 4 items have features of fewer words" in caplog.text
    assert "nothing reads" not in caplog.text
    assert read_features(tmp_path / "out.parquet").text_dropped is None


def test_without_them_the_file_is_the_same_to_the_byte(domain, tmp_path):
    """As before there was such a column; one without any vector is none."""
    rows = {"item_id": ["x", "9", "10"], "text": [[4.0, 4], [3, 3], [1, 1]]}
    import_features(ZERO, domain, write(tmp_path / "in.parquet", **rows), tmp_path / "out.parquet")
    nothing = pa.nulls(3, pa.list_(pa.float32()))
    import_features(
        ZERO, domain, write(tmp_path / "in.parquet", **rows, text_dropped=nothing), tmp_path / "null.parquet"
    )
    text = np.array([[1, 1], [0, 0], [3, 3], [4, 4]], np.float32)
    has = np.array([True, False, True, True])
    columns = {
        "item_id": pa.array([1, 2, 3, 4], pa.int32()),
        "item": ["10", "11", "9", "x"],
        "has_text": has,
        "has_image": np.zeros(4, bool),
        "text": pa.FixedSizeListArray.from_arrays(pa.array(text.ravel()), 2, mask=pa.array(~has)),
    }
    metadata = {"encoder": "precomputed", "precision": "as given", "text_fields": "as given", "missing_image": "zero"}
    write_parquet(tmp_path / "want.parquet", pa.table(columns), metadata)
    want = (tmp_path / "want.parquet").read_bytes()
    assert (tmp_path / "out.parquet").read_bytes() == want
    assert (tmp_path / "null.parquet").read_bytes() == want


def test_a_file_a_modality_and_integer_ids(domain, tmp_path):
    text = write(tmp_path / "text.parquet", item_id=[9, 10, 11], text=[[9.0], [10.0], [11.0]])
    image = write(tmp_path / "image.parquet", item_id=pa.array([10], pa.int16()), image=[[1.0, 2.0, 3.0]], text=[[0.0]])
    import_features(ZERO, domain, {"text": text, "image": image}, tmp_path / "out.parquet")
    features = read_features(tmp_path / "out.parquet")
    assert features.text.tolist() == [[10], [11], [9], [0]]
    assert features.image.tolist() == [[1, 2, 3], [0, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_one_modality_alone(domain, tmp_path):
    file = write(tmp_path / "in.parquet", item_id=["9", "x"], image=[[1.0], [2.0]])
    import_features(ZERO, domain, file, tmp_path / "out.parquet")
    features = read_features(tmp_path / "out.parquet")
    assert features.text is None
    assert not features.has_text.any()
    assert features.has_image.tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"item_id": ["9", "10"], "vector": [[1.0], [2.0]]},
            "expected columns item_id and text or image, found item_id, vector",
        ),
        ({"id": ["9"], "text": [[1.0]]}, "found id, text"),
        ({"item_id": ["9", "10", "9"], "text": [[1.0]] * 3}, "item 9 has 2 rows"),
        ({"item_id": ["9", None, "9"], "text": [[1.0]] * 3}, "column `item_id`, row 2: null"),
        ({"item_id": [9.0, 10.0], "text": [[1.0]] * 2}, "must hold integers or strings, found double"),
        ({"item_id": ["9", "10"], "text": [[1.0], [1.0, 2.0]]}, r"column `text`, row 2 \(item 10\): 2 numbers"),
        ({"item_id": ["9", "10"], "text": [[1.0], [float("inf")]]}, r"row 2 \(item 10\): a number that is not finite"),
        ({"item_id": ["9", "b", "c"], "text": [[1.0]] * 3}, "only 1 of the 4 items of .*shop are found"),
        (
            {"item_id": ["9", "10"], "text": [[1.0], [2.0]], "text_dropped": [[1.0, 2.0], None]},
            "column `text_dropped`: 2 numbers a row, column `text` has 1; make both",
        ),
        (
            {"item_id": ["9", "10"], "text": [[1.0], None], "text_dropped": [[1.0], [2.0]]},
            "column `text_dropped`: item 10 has such features and none of its whole text",
        ),
        (
            {"item_id": ["a", "b", "c"], "text": [[1.0]] * 3},
            r"no id is an item of .*shop \(here 'a', 'b', 'c'; there '10'",
        ),
    ],
)
def test_a_file_that_is_not_as_described(domain, tmp_path, columns, message):
    file = write(tmp_path / "in.parquet", **columns)
    with pytest.raises(UserError, match=rf"in\.parquet.*{message}"):
        import_features(ZERO, domain, file, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_an_image_file_of_another_catalogue_is_refused_although_the_text_fits(domain, tmp_path):
    text = write(tmp_path / "text.parquet", item_id=[9, 10, 11], text=[[9.0], [10.0], [11.0]])
    image = write(tmp_path / "image.parquet", item_id=["y"], image=[[1.0]])
    with pytest.raises(UserError, match=r"image\.parquet: no id is an item"):
        import_features(ZERO, domain, {"text": text, "image": image}, tmp_path / "out.parquet")


def test_missing_features_as_an_error(domain, tmp_path):
    file = write(tmp_path / "in.parquet", item_id=["9", "10", "11"], text=[[1.0], [2.0], [3.0]])
    with pytest.raises(UserError, match="1 of 4 items have no text features, item x first"):
        import_features({"version": 1, "missing_features": "error"}, domain, file, tmp_path / "out.parquet")
    with pytest.raises(UserError, match=r"none\.parquet: no such file"):
        import_features(ZERO, domain, tmp_path / "none.parquet", tmp_path / "out.parquet")
