import datetime
import gzip
import json

import polars as pl
import pytest

from mmm4rec.data import parse
from mmm4rec.data.parse import read_interactions, read_items, read_metadata, read_ratings
from mmm4rec.errors import UserError


def write(path, content, packed=False):
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    return path


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


# ------------------------------------------------------------------------------------------------ ratings


def test_ratings_2018(tmp_path):
    path = write(tmp_path / "r.csv", "0000031852,A2,5.0,1393372800\nB1,A1,1.0,1078531200\r\n")
    frame = read_ratings(path, 2018).whole()
    assert frame.columns == ["user", "item", "rating", "timestamp"]
    assert frame.rows() == [("A2", "0000031852", 5.0, 1393372800), ("A1", "B1", 1.0, 1078531200)]


def test_ratings_2023(tmp_path):
    content = "user_id,parent_asin,rating,timestamp\nA1,B1,5.0,1393372800999\n"
    frame = read_ratings(write(tmp_path / "r.csv.gz", content, packed=True), 2023).whole()
    assert frame.rows() == [("A1", "B1", 5.0, 1393372800)]


def test_ratings_2023_without_their_header(tmp_path):
    with pytest.raises(UserError, match=r"line 1: expected user_id,parent_asin,rating,timestamp, found b'B1"):
        read_ratings(write(tmp_path / "r.csv.gz", "B1,A1,5.0,1393372800\n", packed=True), 2023).whole()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "broken",
    ["B2,A2,3.0", "B2,A2,3.0,4,5", "B2,A2,3.0,soon", "B2,A2,three,4", "B2,,3.0,4", "B2,A2,3.0,", "", "B\xff,A2,3.0,4"],
)
def test_a_broken_rating_is_named(tmp_path, broken, packed):
    content = f"B1,A1,5.0,100\n{broken}\nB3,A3,5.0,100\n".encode("latin-1")
    with pytest.raises(UserError, match=r"r\.csv, line 2: expected item,user,rating,timestamp .* found b'"):
        read_ratings(write(tmp_path / "r.csv", content, packed), 2018).whole()


def test_the_header_counts_as_a_line(tmp_path):
    content = "user_id,parent_asin,rating,timestamp\nA1,B1,5.0,never\n"
    with pytest.raises(UserError, match="line 2: expected user,item,rating,timestamp"):
        read_ratings(write(tmp_path / "r.csv.gz", content, packed=True), 2023).whole()


def test_truncated_and_missing_files(tmp_path):
    content = "".join(f"B{n},A{n * 7919 % 1000},5.0,{n}\n" for n in range(20_000))
    packed = gzip.compress(content.encode())
    for reader in (read_ratings, lambda path, edition: read_metadata(path, edition, set())):
        with pytest.raises(UserError, match="no such file"):
            reader(tmp_path / "none.gz", 2018)
    with pytest.raises(UserError, match=r"r\.csv\.gz: truncated or damaged"):
        read_ratings(write(tmp_path / "r.csv.gz", packed[: len(packed) // 2]), 2018).whole()
    packed = gzip.compress(lines(*({"asin": f"B{n}", "rank": n * 7919 % 1000} for n in range(20_000))).encode())
    with pytest.raises(UserError, match=r"m\.json\.gz: truncated or damaged"):
        read_metadata(write(tmp_path / "m.json.gz", packed[: len(packed) // 2]), 2018, set())


def test_milliseconds_are_noticed(tmp_path):
    content = "B1,A1,5.0,1393372800\nB1,A2,5.0,1393372800000\n"
    with pytest.raises(UserError, match=r"line 2: expected item,user,rating,timestamp .* unix seconds as timestamp"):
        read_ratings(write(tmp_path / "r.csv", content), 2018).whole()


# ------------------------------------------------------------------------------------------------ metadata

FRAGMENT = '<span class="a-size-medium a-color-secondary"'


def test_metadata_with_all_its_traps(tmp_path):
    content = lines(
        {"asin": "B1", "title": FRAGMENT, "brand": "first"},
        {"asin": "B2", "title": "Two", "brand": "by\n   \n Me &amp; Co", "category": ["A", "B", "A"], "rank": ["x"]},
        {"asin": "B1", "title": "One", "brand": "second"},
        {"asin": "B1", "title": "Uno", "brand": "third"},
        {"asin": "B3", "title": "not wanted"},
        {"asin": "B4", "title": None, "brand": ["list"], "category": "", "description": ["", ""], "image": []},
        {"asin": "B4", "title": FRAGMENT, "brand": "later"},
    )
    path = write(tmp_path / "m.json.gz", content + "\n", packed=True)
    present, items = read_metadata(path, 2018, {"B1", "B2", "B4", "B5"})
    assert present == {"B1", "B2", "B3", "B4"}
    assert items.sort("item").rows() == [
        ("B1", "One", "second", None, None, None),
        ("B2", "Two", "Me & Co", ["A", "B"], None, None),
        ("B4", None, "list", None, None, None),
    ]


def test_metadata_2023(tmp_path):
    record = {"parent_asin": "B1", "title": "One", "store": "S", "categories": ["C"], "images": [{"large": "u"}]}
    present, items = read_metadata(write(tmp_path / "m.jsonl", lines(record)), 2023, {"B1"})
    assert present == {"B1"}
    assert items.rows() == [("B1", "One", "S", ["C"], None, "u")]


@pytest.mark.parametrize("broken", ["{'asin': 'B2'}", '{"asin": "B2"', '{"title": "x"}', "[1]", '"asin"', b"\xff\xfe"])
def test_a_broken_metadata_line_is_named(tmp_path, broken):
    content = lines({"asin": "B1"}).encode() + (broken if isinstance(broken, bytes) else broken.encode()) + b"\n"
    with pytest.raises(UserError, match=r"m\.json\.gz, line 2: expected a JSON object with 'asin'"):
        read_metadata(write(tmp_path / "m.json.gz", content, packed=True), 2018, set())


def test_metadata_of_many_blocks_is_read_in_processes(tmp_path, monkeypatch):
    records = [{"asin": f"B{k % 40}", "title": f"title {k}" if k % 3 else "", "brand": "x" * k} for k in range(90)]
    path = write(tmp_path / "m.json.gz", lines(*records), packed=True)
    wanted = {f"B{k}" for k in range(0, 40, 2)}
    at_once = read_metadata(path, 2018, wanted)
    monkeypatch.setattr(parse, "BLOCK", 1000)
    in_blocks = read_metadata(path, 2018, wanted)
    assert in_blocks[0] == at_once[0] == {f"B{k}" for k in range(40)}
    assert in_blocks[1].sort("item").equals(at_once[1].sort("item"))
    assert in_blocks[1].filter(item="B6")["title"].item() == "title 46"  # its first line has none

    broken = write(tmp_path / "broken.json", lines(*records) + "{no JSON\n")
    with pytest.raises(UserError, match=r"broken\.json, line 91"):
        read_metadata(broken, 2018, wanted)


# ------------------------------------------------------------------------------------------------ own files


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
def test_own_text_files(tmp_path, suffix, separator):
    rows = [("item_id", "user_id", "timestamp", "note"), ("10", "u1", "1393372800", "x"), ("9", "u2", "100.0", "")]
    path = write(tmp_path / f"e{suffix}", "".join(separator.join(row) + "\n" for row in rows))
    frame = read_interactions(path).whole()
    assert frame.select("user", "item", "timestamp").rows() == [("u1", 10, 1393372800), ("u2", 9, 100)]
    assert "note" not in frame.columns


def test_leading_zeros_stay(tmp_path):
    frame = read_interactions(write(tmp_path / "e.csv", "user_id,item_id,position\n1,0010,0\n1,7,1\n")).whole()
    assert frame["item"].to_list() == ["0010", "7"]
    assert frame["user"].to_list() == [1, 1]


def test_own_parquet_with_dates(tmp_path):
    noon = datetime.datetime(2020, 1, 1, 12, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
    pl.DataFrame({"user_id": ["1"], "item_id": [2], "timestamp": [noon]}).write_parquet(tmp_path / "e.parquet")
    frame = read_interactions(tmp_path / "e.parquet").whole()
    assert frame.select("user", "item", "timestamp").rows() == [("1", 2, 1577872800)]
    pl.DataFrame({"user_id": ["1"], "item_id": [2], "timestamp": [noon.date()]}).write_parquet(tmp_path / "e.parquet")
    assert read_interactions(tmp_path / "e.parquet").whole()["timestamp"].to_list() == [1577836800]


def test_own_timestamps_may_be_missing_beside_positions(tmp_path):
    frame = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "timestamp": [5.0, float("nan")], "position": [0, 1]})
    frame.write_parquet(tmp_path / "e.parquet")
    assert read_interactions(tmp_path / "e.parquet").whole()["timestamp"].to_list() == [5, None]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user_id,timestamp\n1,1\n", "no column `item_id`; found user_id, timestamp"),
        ("user_id;item_id;timestamp\n1;1;1\n", r"found user_id;item_id;timestamp \(.csv has commas between columns"),
        ("user_id,item_id,timestamp\n1,1,2026-01-01\n", "`timestamp` is not a number of unix seconds"),
        ("user_id,item_id\n1,1\n", "neither a column `timestamp` nor a column `position`"),
        ("user_id,item_id,timestamp\n1,1,1\n,1,1\n", "row 2 below the header: `user_id` is empty"),
        ("user_id,item_id,timestamp\n1,1,1\n1,1,\n", "row 2 below the header: `timestamp` is empty"),
        ("user_id,item_id,timestamp\n1,1,1\n1,1,x\n", "row 2 below the header: `timestamp` is not a number"),
        ("user_id,item_id,position\n1,1,1\n1,1,x\n", "row 2 below the header: `position` is not a number"),
        ("user_id,item_id,position\n1,1,1\n1,1,nan\n", "row 2 below the header: `position` is not a number"),
        ("user_id,item_id,timestamp\n1,1,inf\n", "row 1 below the header: `timestamp` is not a number"),
        ("user_id,item_id,timestamp,rating\n1,1,1,good\n", "row 1 below the header: `rating` is not a number"),
        ("user_id,item_id,timestamp\n1,1,1\n1,1,1600000000000\n", "row 2 below the header: .* looks like milliseconds"),
        ("user_id,item_id,timestamp\n1,1,1\n1,1,-1\n1,1,-2\n", "row 2 below the header: `timestamp` is negative"),
        ("user_id,item_id,timestamp\n1,1,-1600000000000\n", "row 1 below the header: `timestamp` is negative"),
        (
            "user_id,item_id,timestamp\n1,1,1\n1,1,1e30\n",
            "row 2 below the header: `timestamp` is a number beyond 64 bits",
        ),
        ("user_id,item_id,timestamp\n1,1,1,1\n", "line 2: 4 cells, the header has 3; put a cell that holds a comma in"),
        ("", "cannot be read as csv"),
    ],
)
def test_mistakes_in_own_events(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as caught:
        read_interactions(write(tmp_path / "e.csv", content)).whole()
    assert str(caught.value).startswith(str(tmp_path / "e.csv"))


def test_mistakes_in_own_parquet(tmp_path):
    with pytest.raises(UserError, match=r"ends in \.parquet, \.csv or \.tsv"):
        read_interactions(tmp_path / "e.json").whole()
    with pytest.raises(UserError, match="no such file"):
        read_interactions(tmp_path / "e.parquet").whole()
    with pytest.raises(UserError, match="cannot be read as parquet"):
        read_interactions(write(tmp_path / "e.parquet", "user_id,item_id\n")).whole()
    pl.DataFrame({"user_id": [1.0], "item_id": [1], "position": [0]}).write_parquet(tmp_path / "e.parquet")
    with pytest.raises(UserError, match="`user_id` holds Float64; ids are integers or strings"):
        read_interactions(tmp_path / "e.parquet").whole()


@pytest.mark.parametrize(
    ("time", "message"),
    [
        (pl.Series([True]), "`timestamp` holds Boolean; expected unix seconds, or dates and times"),
        (pl.Series([datetime.timedelta(1)]), "`timestamp` holds Duration"),
        (pl.Series([2**63], dtype=pl.UInt64), "row 1 below the header: `timestamp` is a number beyond 64 bits"),
        (pl.Series([datetime.date(1969, 12, 31)]), "row 1 below the header: `timestamp` is negative"),
    ],
)
def test_what_is_no_time_in_own_parquet(tmp_path, time, message):
    pl.DataFrame({"user_id": [1], "item_id": [1], "timestamp": time}).write_parquet(tmp_path / "e.parquet")
    with pytest.raises(UserError, match=message):
        read_interactions(tmp_path / "e.parquet").whole()


# ------------------------------------------------------------------------------------------------ broken text files

QUOTES = "a quote within a cell, or one that is not closed; put such a cell in double quotes and double those inside"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('item_id,title\n1,a\n2,7" Knife\n3,b\n', f"line 3: {QUOTES}"),
        ('item_id,title\n1,2" x 4"\n2,7" Knife\n3,8" Knife\n', f"line 3: {QUOTES}"),
        ('item_id,title\n1,"Best" Knife\n', f"line 2: {QUOTES}"),
        ('item_id,title\n1,"a\nb ""c"""\n2,"Best Knife\n3,b\n', f"line 4: {QUOTES}"),
        ("item_id,title\n1,a\n2,Knife, sharp\n", "line 3: 3 cells, the header has 2; put a cell that holds a comma in"),
        ('\ufeff"item_id",title\n1,"a,\nb"\n2,Knife, sharp\n', "line 4: 3 cells, the header has 2"),
        ("item_id,title\n1,a\n2,Müsli\n".encode("latin-1"), "line 3: not UTF-8; save the file as UTF-8"),
        ("item_id,title,Größe\n1,a,b\n".encode("latin-1"), "line 1: not UTF-8; save the file as UTF-8"),
        ("item_id,title\n1,a\n".encode("utf-16"), "line 1: not UTF-8; save the file as UTF-8"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_the_broken_line_of_an_own_text_file_is_named(tmp_path, content, message, packed):
    with pytest.raises(UserError, match=rf"i\.csv, {message}"):
        read_items(write(tmp_path / "i.csv", content, packed))


def test_a_tab_in_a_cell_is_told_as_such(tmp_path):
    with pytest.raises(
        UserError, match="line 2: 3 cells, the header has 2; put a cell that holds a tab in double quotes"
    ):
        read_items(write(tmp_path / "i.tsv", "item_id\ttitle\n1\ta\tb\n"))


def test_quotes_that_may_hide_rows_of_a_tsv_are_a_warning(tmp_path, caplog):
    """In a column that is read or not; a cell with a line break alone cannot hide a row."""
    for header in ("item_id\ttitle\tbrand", "item_id\tnote\ttitle"):
        content = f'{header}\n0\t"a\nb"\tx\n1\t"Best Knife\tx\n2\tb\ty\n3\tFork"\tz\n'
        assert read_items(write(tmp_path / "i.tsv", content))["item"].to_list() == ["0", "1"]
        message = "i.tsv, row 2 below the header: a cell holds tab and line break (such rows: 1)"
        assert [message in r.message for r in caplog.records if "tab and line break" in r.message] == [True]
        caplog.clear()
    read_items(write(tmp_path / "i.tsv", 'item_id\ttitle\n1\t"a\nb"\n'))
    assert not caplog.records


# ------------------------------------------------------------------------------------------------ misnamed columns


def test_columns_that_nothing_reads_are_named_with_the_likely_one(tmp_path, caplog):
    read_items(write(tmp_path / "i.csv", "item_id,Brand,category,image_url,title,titles,price\n1,a,b,c,d,e,f\n"))
    assert caplog.messages == [
        f"{tmp_path / 'i.csv'}: columns that nothing reads: Brand (is it `brand`?), category (is it `categories`?), "
        "image_url (is it `image`?), titles, price"
    ]
    caplog.clear()
    pl.DataFrame({"user_id": [1], "item_id": [1], "position": [0], "Timestamp": [1]}).write_parquet(
        tmp_path / "e.parquet"
    )
    read_interactions(tmp_path / "e.parquet").whole()
    assert [m.partition(": ")[2] for m in caplog.messages] == [
        "columns that nothing reads: Timestamp (is it `timestamp`?)"
    ]


def test_what_is_optional_is_no_warning(tmp_path, caplog):
    read_interactions(write(tmp_path / "e.csv", "user_id,item_id,timestamp,rating,position\n1,1,1,1,1\n")).whole()
    read_items(write(tmp_path / "i.csv", "item_id,description\n1,a\n"))
    assert not caplog.records


def test_items_of_which_nothing_is_said_are_a_mistake(tmp_path):
    with pytest.raises(UserError, match="no column says anything of the items; name one of them title, brand,"):
        read_items(write(tmp_path / "i.csv", "item_id,titel\n1,a\n"))


@pytest.mark.parametrize("order", ["timestamp", "position"])
def test_an_empty_cell_of_own_parquet_is_no_event(tmp_path, order):
    """NaN once became the first event of all, and an empty string an item."""
    path = tmp_path / "e.parquet"
    whole = {"user_id": ["a", "a", "b"], "item_id": ["x", "y", "z"], order: [0.0, 1.0, 2.0]}
    for column, cell in ((order, float("nan")), ("item_id", ""), ("user_id", "")):
        pl.DataFrame(whole | {column: [*whole[column][:2], cell]}).write_parquet(path)
        with pytest.raises(UserError, match=f"row 3 below the header: `{column}` is empty"):
            read_interactions(path).whole()
    pl.DataFrame(whole | {order: [0.0, float("inf"), 1.0]}).write_parquet(path)
    with pytest.raises(UserError, match=f"row 2 below the header: `{order}` is not a number"):
        read_interactions(path).whole()


def test_mistakes_in_own_items(tmp_path):
    for column, cell, message in (
        ("text", ["a"], r"`text` holds List\(String\); expected strings"),
        ("title", 7, "`title` holds Int64; expected strings or lists of them"),
        ("image", b"JPEG", "`image` holds Binary; expected strings"),
        ("item_id", "", "row 1 below the header: `item_id` is empty"),
    ):
        pl.DataFrame({"item_id": ["1"], "title": ["a"]} | {column: [cell]}).write_parquet(tmp_path / "i.parquet")
        with pytest.raises(UserError, match=message):
            read_items(tmp_path / "i.parquet")


def test_own_items(tmp_path):
    rows = {
        "item_id": [1, 2],
        "title": ["A &amp; B", ""],
        "categories": [["X", "X", "Y"], None],
        "text": ["given & kept", " "],
        "image": ["pics/1.jpg", None],
        "price": [1.0, 2.0],
    }
    pl.DataFrame(rows).write_parquet(tmp_path / "i.parquet")
    assert read_items(tmp_path / "i.parquet").rows() == [
        ("1", "A & B", None, ["X", "Y"], None, "pics/1.jpg", "given & kept"),
        ("2", None, None, None, None, None, None),
    ]


def test_own_items_once_each(tmp_path):
    with pytest.raises(UserError, match="row 3 below the header: `item_id` is an item that stands above already"):
        read_items(write(tmp_path / "i.csv", "item_id,title\n1,a\n2,b\n1,c\n"))
