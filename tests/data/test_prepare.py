import gzip
import json
import random

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmm4rec.data.events import FOR_EVENTS, encode, first_occurrences, without_duplicates
from mmm4rec.data.prepare import INTERACTIONS, ITEMS, USERS, prepare
from mmm4rec.errors import UserError

SETTINGS = {
    "version": 1,
    "domain": "toys",
    "amazon": None,
    "edition": 2018,
    "k_core": 0,
    "text_fields": "title_category_brand",
}
AMAZON = SETTINGS | {"amazon": "Toys"}


def amazon(folder, events, records):
    """Write raw files: events (item, user, rating, time), records of metadata."""
    (folder / "Toys.csv").write_text("".join(f"{i},{u},{r},{t}\n" for i, u, r, t in events))
    packed = gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode())
    (folder / "meta_Toys.json.gz").write_bytes(packed)
    return {"ratings": folder / "Toys.csv", "metadata": folder / "meta_Toys.json.gz"}


def own(folder, name="events", **columns):
    pl.DataFrame(columns).write_parquet(folder / f"{name}.parquet")
    return folder / f"{name}.parquet"


def read(out, name):
    return pl.read_parquet(out / f"{name}.parquet")


def statistics(out):
    return [row[:4] for row in pl.read_csv(out / "statistics.csv").rows()]


def test_an_amazon_domain(tmp_path):
    events = [
        ("B2", "zoe", 5.0, 300),
        ("B1", "zoe", 4.0, 200),
        ("B1", "zoe", 4.0, 200),  # exact duplicate
        ("B1", "zoe", 3.0, 200),  # another rating: an event of its own
        ("B9", "amy", 5.0, 100),  # no metadata
        ("B2", "amy", 5.0, 100),
        ("B1", "amy", 5.0, 100),  # a tie in time: the file's order counts
        ("B3", "bob", 1.0, 100),  # alone, falls to the 2-core
    ]
    records = [
        {"asin": "B1", "title": "One", "brand": "Maker", "category": ["Toys"], "imageURL": ["http://x/1.jpg"]},
        {"asin": "B2", "title": "Two"},
        {"asin": "B3", "title": "Three"},
        {"asin": "B7", "title": "Seven"},
    ]
    out = tmp_path / "out"
    prepare(AMAZON | {"k_core": 2}, out, **amazon(tmp_path, events, records))
    assert statistics(out) == [
        ("raw", 3, 4, 8),
        ("deduplicated", 3, 4, 7),
        ("with_metadata", 3, 3, 6),
        ("k_core", 2, 2, 5),
    ]
    assert (out / "statistics.csv").read_text().splitlines()[-1] == "k_core,2,2,5,2.50"
    assert read(out, "users").rows() == [(1, "zoe"), (2, "amy")]
    assert read(out, "items").select("item_id", "item", "text", "image").rows() == [
        (1, "B1", "One. Toys. Maker.", "http://x/1.jpg"),
        (2, "B2", "Two.", None),
    ]
    assert read(out, "interactions").rows() == [
        (1, 1, 0, 200),
        (1, 1, 1, 200),
        (1, 2, 2, 300),
        (2, 2, 0, 100),
        (2, 1, 1, 100),
    ]


def test_files_have_the_documented_types(tmp_path):
    events = own(tmp_path, user_id=[1], item_id=[1], position=[0])
    prepare(SETTINGS, tmp_path / "out", interactions=events)
    for name, schema in {"interactions": INTERACTIONS, "items": ITEMS, "users": USERS}.items():
        table = pl.read_parquet(tmp_path / "out" / f"{name}.parquet", use_pyarrow=True).to_arrow()
        assert table.schema.names == schema.names
    assert read(tmp_path / "out", "interactions").schema == {
        "user_id": pl.Int32,
        "item_id": pl.Int32,
        "position": pl.Int32,
        "timestamp": pl.Int64,
    }


def test_own_events_with_positions(tmp_path):
    events = own(
        tmp_path,
        user_id=[7, 7, 7, 3],
        item_id=[10, 9, 10, 10],
        position=[5, 1, 5, 0],
        timestamp=[None, 100, 50, 60],
    )
    prepare(SETTINGS, tmp_path / "out", interactions=events)
    # The repeated position is no duplicate to drop; items in order of value; users in order of appearance.
    assert read(tmp_path / "out", "users").rows() == [(1, "7"), (2, "3")]
    assert read(tmp_path / "out", "items")["item"].to_list() == ["9", "10"]
    assert read(tmp_path / "out", "interactions").rows() == [
        (1, 1, 0, 100),
        (1, 2, 1, None),
        (1, 2, 2, 50),
        (2, 2, 0, 60),
    ]
    assert statistics(tmp_path / "out") == [("raw", 2, 2, 4), ("k_core", 2, 2, 4)]


def test_own_events_with_timestamps_lose_duplicates(tmp_path):
    events = own(tmp_path, user_id=["a", "a", "a"], item_id=["x", "x", "x"], timestamp=[1, 1, 2])
    prepare(SETTINGS, tmp_path / "out", interactions=events)
    assert statistics(tmp_path / "out") == [("raw", 1, 1, 3), ("deduplicated", 1, 1, 2), ("k_core", 1, 1, 2)]


def test_own_items_are_no_filter(tmp_path):
    events = own(tmp_path, user_id=[1, 1, 1], item_id=[1, 2, 3], position=[0, 1, 2])
    items = own(tmp_path, "items", item_id=[3, 1, 8], title=["Three", "One", "Eight"], text=[None, "given", None])
    prepare(SETTINGS, tmp_path / "out", interactions=events, items=items)
    assert read(tmp_path / "out", "items").select("item", "text", "title").rows() == [
        ("1", "given", "One"),
        ("2", None, None),
        ("3", "Three.", "Three"),
    ]


def test_own_items_that_the_events_do_not_know(tmp_path, caplog):
    """Ids are written otherwise in all of them, or in most: an error, and a warning."""
    events = own(tmp_path, user_id=[1, 1, 1], item_id=["1", "2", "3"], position=[0, 1, 2])
    items = own(tmp_path, "items", item_id=["01", "02"], title=["One", "Two"])
    with pytest.raises(UserError, match=r"none of the domain's 3 items has a row here.* have '1', this file '01'"):
        prepare(SETTINGS, tmp_path / "out", interactions=events, items=items)
    items = own(tmp_path, "items", item_id=["1", "02"], title=["One", "Two"])
    prepare(SETTINGS, tmp_path / "out", interactions=events, items=items)
    assert [r.levelname for r in caplog.records if "1 of 3 items have a row" in r.message] == ["WARNING"]


def test_own_items_that_lack_some_of_the_domains(tmp_path, caplog):
    """Some ids may be written otherwise; above 95 % that is no warning."""
    caplog.set_level("INFO")
    ids = list(range(1, 21))
    events = own(tmp_path, user_id=[1] * 20, item_id=ids, position=ids)
    for known, level, lacking in ((20, "INFO", ""), (19, "INFO", ", 20 is"), (18, "WARNING", ", 19 is")):
        caplog.clear()
        items = own(tmp_path, "items", item_id=ids[:known], title=["a"] * known)
        prepare(SETTINGS, tmp_path / "out", interactions=events, items=items)
        said = [(r.levelname, r.message) for r in caplog.records if "have a row" in r.message]
        assert said == [(level, f"{items}: {known} of 20 items have a row{lacking and lacking + ' the first without'}")]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0, 0, 0], "every `timestamp` is 0, which orders nothing; give unix seconds"),
        ([20200101, 20210101, 20200102], "the latest `timestamp` is 20210101, in unix seconds a day of 1970; if these"),
        ([18262, 18263, 18264], "the latest `timestamp` is 18264, in unix seconds a day of 1970"),
        ([5, None, 5], "every `timestamp` is 5"),
        ([None, None, None], None),
        ([1, 2, 631_152_000], None),
    ],
)
def test_times_that_are_hardly_unix_seconds_are_a_warning(tmp_path, caplog, times, message):
    times = pl.Series(times, dtype=pl.Int64)
    order = {"position": [0, 1, 2]} if times.has_nulls() else {}
    prepare(
        SETTINGS,
        tmp_path / "out",
        interactions=own(tmp_path, user_id=[1, 1, 2], item_id=[1, 2, 1], timestamp=times, **order),
    )
    warnings = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert [message and message in w for w in warnings] == [True] * (message is not None)


def test_the_released_reading_falls_back_to_the_asin(tmp_path):
    settings = AMAZON | {"text_fields": "title_brand_description"}
    prepare(settings, tmp_path / "out", **amazon(tmp_path, [("B1", "u", 1.0, 1)], [{"asin": "B1", "title": ""}]))
    assert read(tmp_path / "out", "items")["text"].to_list() == ["Asin: B1 ;"]


def test_nothing_left(tmp_path):
    events = own(tmp_path, user_id=[1], item_id=[1], timestamp=[0])
    with pytest.raises(
        UserError, match=r"'toys': no event is left after `k_core: 5` \(stage deduplicated before it: 1"
    ):
        prepare(SETTINGS | {"k_core": 5}, tmp_path / "out", interactions=events)
    assert not (tmp_path / "out").exists()


def test_an_empty_file(tmp_path):
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\n")
    with pytest.raises(UserError, match=r"events\.csv: there is no event in it"):
        prepare(SETTINGS, tmp_path / "out", interactions=tmp_path / "events.csv")


def test_the_same_bytes_every_time(tmp_path):
    draw = random.Random(0)
    events = [(f"B{draw.randrange(300)}", f"u{draw.randrange(2000)}", 5.0, draw.randrange(9)) for _ in range(20_000)]
    raw = amazon(tmp_path, events, [{"asin": f"B{n}", "title": f"Toy {n}"} for n in range(290)])
    for name in ("a", "b"):
        prepare(AMAZON | {"k_core": 5}, tmp_path / name, **raw)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["interactions.parquet", "items.parquet", "statistics.csv", "users.parquet"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


# ------------------------------------------------------------------------------------------------ in parts


@pytest.fixture
def in_parts(monkeypatch, caplog):
    """Lets a call go through parts on disk: memory holds this many events."""
    caplog.set_level("INFO")

    def hold(n):
        monkeypatch.setattr("mmm4rec.data.events.BYTES_AN_EVENT", FOR_EVENTS * 10**6 / (n + 0.5))
        return {"memory_mb": 1}

    return hold


def dirty(seed, n):
    """Events with duplicates, ties, and items and users of all degrees: user, item, rating, time."""
    draw = random.Random(seed)
    some = [
        (
            int(draw.paretovariate(0.6)) % 500,
            int(draw.paretovariate(0.5)) % 400,
            draw.randrange(1, 6),
            draw.randrange(50),
        )
        for _ in range(n)
    ]
    return [draw.choice(some) if draw.random() < 0.1 else event for event in some]


def same(a, b):
    names = sorted(path.name for path in a.iterdir())
    assert len(names) == 4
    assert {name: (a / name).read_bytes() for name in names} == {name: (b / name).read_bytes() for name in names}


@pytest.mark.parametrize("fit", [1, 250, 2500])
@pytest.mark.parametrize("k", [0, 2, 5])
def test_parts_give_the_same_bytes(tmp_path, in_parts, caplog, fit, k):
    events = [(f"B{item}", f"u{user}", float(rating), time) for user, item, rating, time in dirty(k, 3000)]
    raw = amazon(tmp_path, events, [{"asin": f"B{n}", "title": f"Toy {n}"} for n in range(0, 400, 3)] * 2)
    prepare(AMAZON | {"k_core": k}, tmp_path / "whole", **raw)
    assert "in parts" not in caplog.text
    prepare(AMAZON | {"k_core": k}, tmp_path / "parts", **raw, **in_parts(fit))
    assert f"3000 events, of which {fit} fit in memory" in caplog.text
    same(tmp_path / "whole", tmp_path / "parts")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("order", [["timestamp"], ["position"], ["position", "timestamp"]])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_own_files_in_parts(tmp_path, in_parts, caplog, suffix, order):
    users, items, ratings, times = zip(*dirty(7, 2000), strict=True)
    columns = {"item_id": items, "rating": ratings, "user_id": users, **dict.fromkeys(order, times), "row": times}
    frame = pl.DataFrame(columns)
    frame = frame.with_columns(pl.format("u{}", "user_id").alias("user_id"))
    if len(order) == 2:
        frame = frame.with_columns(pl.when(pl.col("rating") > 2).then("timestamp"))  # the others have none
    path = tmp_path / f"events.{suffix}"
    frame.write_parquet(path) if suffix == "parquet" else frame.write_csv(
        path, separator="\t" if suffix == "tsv" else ","
    )
    for name, memory in (("whole", {}), ("parts", in_parts(100))):
        prepare(SETTINGS | {"k_core": 3}, tmp_path / name, interactions=path, **memory)
    assert "2000 events, of which 100 fit in memory" in caplog.text
    same(tmp_path / "whole", tmp_path / "parts")
    assert read(tmp_path / "parts", "items")["item"].cast(pl.Int64).is_sorted()  # integers, though in parts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user_id,item_id,timestamp\n1,1,1\n2,1,1\n3,1,x\n", "row 3 below the header: `timestamp` is not a number"),
        ("user_id,item_id,timestamp\n1,1,1\n2,1,1\n,1,1\n", "row 3 below the header: `user_id` is empty"),
        ("user_id,item_id,timestamp\n1,1,1\n2,1,1\n3,1,-1\n", "row 3 below the header: `timestamp` is negative"),
        ("user_id,item_id,timestamp\n1,1,1\n1,1,1,1\n", "line 3: 4 cells, the header has 3"),
    ],
)
def test_mistakes_in_parts(tmp_path, in_parts, content, message):
    (tmp_path / "events.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        prepare(SETTINGS, tmp_path / "out", interactions=tmp_path / "events.csv", **in_parts(1))
    assert [path.name for path in tmp_path.iterdir()] == ["events.csv"]


def test_parts_of_a_killed_run_go(tmp_path, in_parts):
    events = own(tmp_path, user_id=[1, 2], item_id=[1, 1], timestamp=[0, 0])
    for memory in ({}, in_parts(1)):
        (tmp_path / ".out.parts/part=0").mkdir(parents=True)
        (tmp_path / ".out.parts/part=0/00000000.parquet").write_bytes(b"half")
        prepare(SETTINGS, tmp_path / "out", interactions=events, **memory)
        assert read(tmp_path / "out", "users")["user"].to_list() == ["1", "2"]
        assert not (tmp_path / ".out.parts").exists()


def test_parts_in_a_folder_that_looks_like_a_pattern(tmp_path, in_parts):
    folder = tmp_path / "[ab]*"
    folder.mkdir()
    events = own(folder, user_id=[1, 2], item_id=[1, 1], timestamp=[0, 0])
    for memory in ({}, in_parts(1)):
        prepare(SETTINGS, folder / "out", interactions=events, **memory)
        assert pl.read_parquet(folder / "out/users.parquet", glob=False)["user"].to_list() == ["1", "2"]


def test_a_full_disk_is_no_broken_file(tmp_path, in_parts, monkeypatch):
    def full(*_, **__):
        raise pl.exceptions.ComputeError("underlying IO error: No space left on device (os error 28)")

    raw = amazon(tmp_path, [("B1", "u", 1.0, 1), ("B1", "v", 1.0, 1)], [{"asin": "B1"}])
    monkeypatch.setattr(pl.LazyFrame, "sink_parquet", full)
    with pytest.raises(pl.exceptions.ComputeError, match="No space left"):
        prepare(AMAZON, tmp_path / "out", **raw, **in_parts(1))


def test_broken_ratings_in_parts(tmp_path, in_parts):
    raw = amazon(tmp_path, [("B1", "u", 1.0, 1), ("B2", "v", "many", 1), ("B3", "w", 1.0, 1)], [{"asin": "B1"}])
    with pytest.raises(UserError, match=r"Toys\.csv, line 2: expected item,user,rating,timestamp"):
        prepare(AMAZON, tmp_path / "out", **raw, **in_parts(1))


def test_nothing_left_in_parts(tmp_path, in_parts):
    events = own(tmp_path, user_id=[1, 2, 3], item_id=[1, 2, 3], timestamp=[0, 0, 0])
    with pytest.raises(UserError, match="no event is left after `k_core: 5`"):
        prepare(SETTINGS | {"k_core": 5}, tmp_path / "out", interactions=events, **in_parts(1))


# ------------------------------------------------------------------------------------------------ codes


IDS = st.one_of(
    st.lists(st.text("aBz0", max_size=3)).map(lambda ids: pl.Series(ids, dtype=pl.String)),
    st.lists(st.integers(-(2**63), 2**63 - 1)).map(lambda ids: pl.Series(ids, dtype=pl.Int64)),
)


@given(IDS)
def test_codes_are_by_first_appearance(ids):
    codes, names = encode(ids)
    assert names.to_list() == list(dict.fromkeys(ids))
    assert names.gather(codes).to_list() == ids.to_list()


@given(st.lists(st.sampled_from([0, 1, 2, 3, 2**63, 2**63 + 1, 2**64 - 1]) | st.integers(0, 2**64 - 1), max_size=60))
def test_rows_of_equal_keys_are_named_by_their_first(keys):
    assert first_occurrences(np.array(keys, np.uint64)).tolist() == [keys.index(key) for key in keys]


def test_values_that_share_a_hash_get_codes_of_their_own(monkeypatch):
    real = pl.Series.hash
    seeds = []

    def colliding(values, seed):
        seeds.append(seed)
        return real(values, seed) // 2**62 if seed < 2 else real(values, seed)  # at most four hashes for six values

    monkeypatch.setattr(pl.Series, "hash", colliding)
    codes, names = encode(pl.Series(["f", "a", "e", "b", "a", "d", "c"]))
    assert (codes.tolist(), names.to_list()) == ([0, 1, 2, 3, 1, 4, 5], list("faebdc"))
    assert seeds == [0, 1, 1, 2, 2, 3]


@given(st.lists(st.tuples(*(st.integers(0, 2) for _ in range(4)))))
def test_exact_duplicates_go(events):
    columns = {"user": pl.Int32, "item": pl.Int32, "rating": pl.Float32, "timestamp": pl.Int64}
    frame = pl.DataFrame(events, schema=columns, orient="row")
    assert without_duplicates(frame).rows() == list(dict.fromkeys(frame.rows()))
