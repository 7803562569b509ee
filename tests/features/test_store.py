"""The feature store."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mmm4rec.errors import UserError
from mmm4rec.features.store import check_missing, read_features, to_matrix, write_features

METADATA = {"encoder": "tiny", "precision": "fp32", "text_fields": "title_category_brand", "missing_image": "zero"}


def write(path, text, has_text, image, has_image, metadata=METADATA):
    n = len(has_text)
    items = [f"i{k}" for k in range(n)]
    write_features(path, np.arange(1, n + 1), items, text, np.array(has_text), image, np.array(has_image), metadata)
    return path


def test_round_trip_with_nulls_and_metadata(tmp_path):
    text = np.array([[1, 2], [0, 0], [3, 4]], np.float16)
    image = np.array([[0, 0, 0], [0.5, 0, 1], [0, 0, 0]], np.float32)
    path = write(tmp_path / "f.parquet", text, [True, False, True], image, [False, True, False])

    table = pq.read_table(path)
    assert table.schema.field("text").type == pa.list_(pa.float16(), 2)
    assert table.schema.field("image").type == pa.list_(pa.float32(), 3)
    assert table["text"].to_pylist() == [[1, 2], None, [3, 4]]
    assert table["image"].to_pylist() == [None, [0.5, 0, 1], None]
    assert table["item_id"].type == pa.int32()

    features = read_features(path)
    assert features.text.dtype == np.float16
    assert np.array_equal(features.text, text)
    assert np.array_equal(features.image, image)
    assert features.has_text.tolist() == [True, False, True]
    assert features.has_image.tolist() == [False, True, False]
    assert features.item_ids.tolist() == [1, 2, 3]
    assert features.items.tolist() == ["i0", "i1", "i2"]
    assert features.metadata == METADATA


def test_a_filled_row_is_kept_although_the_item_has_no_image(tmp_path):
    image = np.array([[0.5, 0.5], [1, 0]], np.float16)
    path = write(tmp_path / "f.parquet", None, [False, False], image, [False, True])
    features = read_features(path)
    assert np.array_equal(features.image, image)
    assert features.has_image.tolist() == [False, True]
    assert features.text is None


def test_a_modality_that_no_item_has_has_no_column(tmp_path):
    path = write(
        tmp_path / "f.parquet", np.ones((2, 2), np.float16), [True, True], np.zeros((2, 3), np.float16), [False] * 2
    )
    assert pq.read_schema(path).names == ["item_id", "item", "has_text", "has_image", "text"]
    assert read_features(path).image is None


def test_features_of_texts_with_words_left_out_are_a_column_that_is_read_where_it_is_asked_for(tmp_path, monkeypatch):
    text = np.array([[1, 2], [0, 0], [3, 4]], np.float16)
    has, nothing = np.array([True, False, True]), np.zeros(3, bool)
    dropped = np.array([[1, 2], [0, 0], [5, 6]], np.float16)
    write_features(
        tmp_path / "f.parquet", np.arange(1, 4), ["a", "b", "c"], text, has, None, nothing, METADATA, dropped
    )
    column = pq.read_table(tmp_path / "f.parquet")["text_dropped"]
    assert column.type == pa.list_(pa.float16(), 2)
    assert column.to_pylist() == [[1, 2], None, [5, 6]]
    features = read_features(tmp_path / "f.parquet", text_dropped=True)
    assert np.array_equal(features.text_dropped, dropped)
    assert np.array_equal(features.text, text)

    asked, read = [], pq.read_table
    monkeypatch.setattr(pq, "read_table", lambda path, columns: asked.append(columns) or read(path, columns=columns))
    plain = read_features(tmp_path / "f.parquet")
    assert plain.text_dropped is None
    assert plain.metadata == METADATA
    assert asked == [["item_id", "item", "has_text", "has_image", "text"]]
    path = write(tmp_path / "old.parquet", text, has, None, nothing)
    assert read_features(path, text_dropped=True).text_dropped is None


def test_a_column_without_nulls_is_not_copied():
    column = pa.chunked_array([pa.FixedSizeListArray.from_arrays(pa.array(np.arange(6, dtype=np.float32)), 2)])
    matrix, _ = to_matrix(column, ["a", "b", "c"], "x")
    assert matrix.base is not None
    assert not matrix.flags.writeable  # still Arrow's memory


@given(
    arrays(np.float16, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.integers(-9, 9)),
    st.randoms(use_true_random=False),
    st.sampled_from(["list", "large_list", "fixed"]),
)
def test_matrix_of_any_slice_and_kind_of_list(values, random, kind):
    missing = np.array([random.random() < 0.4 for _ in values])
    start = random.randrange(len(values))
    width = values.shape[1]
    types = {
        "list": pa.list_(pa.float16()),
        "large_list": pa.large_list(pa.float16()),
        "fixed": pa.list_(pa.float16(), width),
    }
    rows = pa.array([None if m else row for m, row in zip(missing, values, strict=True)], types[kind])
    column = pa.chunked_array([rows[: start + 1], rows[start + 1 :]])[start:]
    matrix, present = to_matrix(column, range(99), "x")
    assert present.tolist() == (~missing[start:]).tolist()
    if present.any() or kind == "fixed":
        assert np.array_equal(matrix, np.where(missing[start:, None], 0, values[start:]))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([[1.0, 2.0], None, [3.0]]), r"row 3 \(item c\): 1 numbers, the rows before have 2"),
        (pa.array([None, [1.0, float("nan")], [1.0, 1.0]]), r"row 2 \(item b\): a number that is not finite"),
        (pa.array([None, [1.0, 1.0], [1e300, 1.0]]), r"row 3 \(item c\): a number that is not finite"),
        (pa.array([[1.0, 2.0], None, [None, 2.0]]), r"row 3 \(item c\): a null among the numbers"),
        (pa.array([[], [], []], pa.list_(pa.float32())), r"row 1 \(item a\): an empty list"),
        (pa.array([[], [1.0], [2.0]]), r"row 1 \(item a\): an empty list; write null"),
        (pa.array([[1.0], None, []]), r"row 3 \(item c\): an empty list; write null"),
        (pa.array([1.0, 2.0, 3.0]), "expected a list of floats a row, found double"),
        (pa.array([[1], [2], [3]]), "expected a list of floats a row, found list<"),
    ],
)
def test_what_is_no_matrix_names_its_row(column, message):
    with pytest.raises(UserError, match=f"^here.*{message}"):
        to_matrix(pa.chunked_array([column]), ["a", "b", "c"], "here")


def test_reading_what_is_no_feature_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.parquet: no such file"):
        read_features(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(UserError, match=r"text\.parquet: not a readable Parquet file"):
        read_features(tmp_path / "text.parquet")
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([[1.0]]), pa.array([[2.0]])], ["item_id", "text", "text"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(UserError, match=r"twice\.parquet: column `text` stands there 2 times; keep one of them"):
        read_features(tmp_path / "twice.parquet")
    pq.write_table(pa.table({"item_id": [1]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="no column has_image, has_text, item;"):
        read_features(tmp_path / "other.parquet")
    gap = {"item_id": [1, 3], "item": ["a", "b"], "has_text": [True] * 2, "has_image": [True] * 2}
    pq.write_table(pa.table(gap), tmp_path / "gap.parquet")
    with pytest.raises(UserError, match="item_id does not run 1, 2"):
        read_features(tmp_path / "gap.parquet")


def test_numbers_that_are_not_finite_are_not_read(tmp_path):
    path = write(tmp_path / "f.parquet", np.array([[1], [np.inf]], np.float32), [True] * 2, None, [False] * 2)
    with pytest.raises(UserError, match=r"f\.parquet: column `text`, row 2 \(item i1\)"):
        read_features(path)


def test_missing_features_are_counted_or_refused(caplog):
    caplog.set_level("INFO")
    has = {"text": np.array([True, True, True]), "image": np.array([True, False, False])}
    check_missing("zero", has, ["a", "b", "c"], "shop")
    assert [r.getMessage() for r in caplog.records] == [
        "shop: 3 of 3 items have text features, 0 have none",
        "shop: 1 of 3 items have image features, 2 have none",
    ]
    with pytest.raises(UserError, match="shop: 2 of 3 items have no image features, item b first"):
        check_missing("error", has, ["a", "b", "c"], "shop")


def test_needs_numpy_and_pyarrow_alone():
    code = "import sys, mmm4rec.features.store; print({'torch', 'polars', 'open_clip', 'PIL'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
