"""The demo's raw files, and what is planted in them: no network is trained here."""

import csv
import gzip
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmm4rec.data.demo import DAY, DOMAINS, LONG_STEP, NOISE, SHORT_STEP, STYLES, TOPICS, World, invent, write_demo


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    write_demo(out)
    return out


def ratings(raw: Path, category: str) -> list[list[str]]:
    with (raw / f"{category}.csv").open() as file:
        return list(csv.reader(file))


def metadata(raw: Path, category: str) -> list[dict]:
    with gzip.open(raw / f"meta_{category}.json.gz", "rt") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("category", DOMAINS)
def test_ratings_have_the_raw_format_and_its_flaws(raw: Path, category: str) -> None:
    rows = ratings(raw, category)
    assert all(len(row) == 4 and 1 <= float(row[2]) <= 5 and int(row[3]) % DAY == 0 for row in rows)
    assert sum(count - 1 for count in Counter(map(tuple, rows)).values()) == 3  # exact duplicates
    assert min(Counter(row[1] for row in rows).values()) < 5
    known = {item["asin"] for item in metadata(raw, category)}
    assert {row[0] for row in rows} - known == {f"B0{category[5:8].upper()}_NONE"}


@pytest.mark.parametrize("category", DOMAINS)
def test_metadata_has_the_raw_format_and_its_flaws(raw: Path, category: str) -> None:
    items = metadata(raw, category)
    assert len(items) - len({item["asin"] for item in items}) == 3  # asins that stand twice
    pictures = [item.get("imageURLHighRes") or [None] for item in items]
    missing = [url for (url,) in pictures if url is not None and not Path(url).exists()]
    assert len(missing) == 1
    assert sum(url is None for (url,) in pictures) > len(items) // 25
    assert any("<span" in item["title"] for item in items)
    assert any("&amp;" in item["title"] for item in items)
    assert all(any(not item[key] for item in items) for key in ("category", "description", "brand"))


def test_pictures_are_small_jpegs_and_tell_no_topic(raw: Path) -> None:
    paths = sorted((raw / "pictures").glob("*.jpg"))
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "JPEG"
            assert image.size == (96, 96)
    urls = Counter(
        item["imageURLHighRes"][0] for c in DOMAINS for item in metadata(raw, c) if item.get("imageURLHighRes")
    )
    assert {url for url in urls if Path(url).exists()} == set(map(str, paths))
    assert len(paths) < len(urls.keys()) + 2 <= 50


def test_text_tells_the_topic_and_not_the_style(raw: Path) -> None:
    styles = {"red", "blue", "green", "yellow", "purple", "stripes", *(shape for shape, _ in STYLES)}
    for item in metadata(raw, "Demo_Garage"):
        text = " ".join([item["title"], *item["description"], *item["category"]]).lower()
        words = set(re.findall("[a-z]+", text))
        assert not words & styles
        assert len([topic for topic, (nouns, _) in TOPICS.items() if words & {topic.lower(), *nouns}]) == 1


def test_same_seed_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        write_demo(Path("data/demo"), seed=seed)
        contents.append({p: p.read_bytes() for p in sorted(Path("data").rglob("*")) if p.is_file()})
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def oracle(world: World) -> dict[str, float]:
    """ndcg@10 on everybody's last event of predictors that know the planted rules, with inputs taken away."""
    n_topics, n_styles = len(TOPICS), len(STYLES)
    is_last = np.append(world.user[1:] != world.user[:-1], True)
    target, now = world.item[is_last], np.flatnonzero(is_last) - 1
    popularity = np.bincount(world.item[~is_last], minlength=len(world.topic)) + 1.0

    def chance(hit: np.ndarray, n: int) -> np.ndarray:
        return (1 - NOISE) * hit + NOISE / n

    def next_topic(event: np.ndarray, step: int) -> np.ndarray:
        return chance(world.topic == (world.topic[world.item[event]] + step)[:, None] % n_topics, n_topics)

    def next_style(event: np.ndarray, step: int) -> np.ndarray:
        return chance(world.style == (world.style[world.item[event]] + step)[:, None] % n_styles, n_styles)

    def by_gap(rule: Callable[[np.ndarray, int], np.ndarray], part: int) -> np.ndarray:
        return np.where(long_gap, rule(now, LONG_STEP[part]), rule(now, SHORT_STEP[part]))

    def ndcg(scores: np.ndarray) -> float:
        rank = (scores >= scores[np.arange(len(target)), target][:, None]).sum(axis=1)
        return float(np.where(rank <= 10, 1 / np.log2(1 + rank), 0).mean())

    long_gap = (world.day[now] - world.day[now - 1] > 20)[:, None]
    topic, style = by_gap(next_topic, 0), by_gap(next_style, 1)

    def either(event: np.ndarray) -> np.ndarray:
        return sum(next_topic(event, s[0]) * next_style(event, s[1]) for s in (SHORT_STEP, LONG_STEP))

    # everybody has five events or more: the history as a set is judged by four of its events, whichever is the last
    as_set = sum(map(either, (now, now - 1, now - 2, now - 3)))
    return {
        "all": ndcg(topic * style * world.share),
        "time": ndcg(either(now) * world.share),
        "image": ndcg(topic * popularity),
        "text": ndcg(style * popularity),
        "order": ndcg(as_set * world.share),
        "pop": ndcg(np.broadcast_to(popularity, topic.shape)),
    }


@pytest.mark.parametrize("category", DOMAINS)
def test_every_input_is_worth_something(category: str) -> None:
    got = oracle(invent(DOMAINS[category], np.random.default_rng(7)))
    print(category, got)
    assert 0.5 < got["all"] < 0.75
    for without in ("time", "image", "text", "order"):
        assert got[without] < 0.75 * got["all"], without
    assert got["pop"] < 0.1 * got["all"]


def test_events_follow_the_planted_rules() -> None:
    world = invent(DOMAINS["Demo_Kitchen"], np.random.default_rng(3))
    n_topics, n_styles = len(TOPICS), len(STYLES)
    third = np.flatnonzero((world.user[2:] == world.user[1:-1]) & (world.user[2:] == world.user[:-2])) + 2
    gap = world.day[third - 1] - world.day[third - 2]
    assert set(np.unique(gap)) <= {1, 2, 3, *range(40, 81)}
    for part, (kind, n) in enumerate(((world.topic, n_topics), (world.style, n_styles))):
        step = (kind[world.item[third]] - kind[world.item[third - 1]]) % n
        expected = 1 - NOISE + NOISE / n
        assert (step[gap < 20] == SHORT_STEP[part]).mean() == pytest.approx(expected, abs=0.03)
        assert (step[gap > 20] == LONG_STEP[part]).mean() == pytest.approx(expected, abs=0.03)
    lengths = np.bincount(world.user)
    assert (lengths.min(), lengths.max()) == (5, 9)
    assert np.bincount(world.item, minlength=len(world.topic)).min() >= 1
