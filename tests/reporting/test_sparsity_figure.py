import doctest

import pytest
from PIL import Image

from mmm4rec.io import write_text
from mmm4rec.reporting import sparsity_figure
from mmm4rec.reporting.runs import to_csv
from mmm4rec.reporting.sparsity import COLUMNS
from mmm4rec.reporting.sparsity_figure import BEST_BY_ID, BEST_BY_TEXT, OURS, REST, colours_of, write_sparsity_figure

BINS = [("all", "all"), ("popularity", "unseen"), ("popularity", "1-5"), ("history", "4-5"), ("history", "11+")]


def test_docstrings():
    assert doctest.testmod(sparsity_figure).failed == 0


def test_ours_and_the_best_others_are_coloured():
    values = {"pop": 0.1, "sasrec": 0.3, "tim4rec": 0.2, "sasrec_t": 0.4, "fdsa": 0.5, "m3rec": 0.3}
    assert colours_of(values | {"mmm4rec": 0.1, "mmm4rec_noid": 0.0}) == {
        "pop": REST,
        "sasrec": BEST_BY_ID,
        "tim4rec": REST,
        "sasrec_t": REST,
        "fdsa": BEST_BY_TEXT,
        "m3rec": REST,
        "mmm4rec": OURS["mmm4rec"],
        "mmm4rec_noid": OURS["mmm4rec_noid"],
    }
    assert colours_of({"pop": 0.0}) == {"pop": BEST_BY_ID}


@pytest.mark.parametrize(("bins", "panels"), [(BINS, 2), (BINS[:3], 1), (BINS[:1], 1)])
def test_a_panel_a_group_and_a_row_a_dataset(tmp_path, bins, panels):
    """Several systems of equal values, all zero in one bin, and a second dataset that has one bin alone."""
    rows = [
        [dataset, group, name, 7, system, metric, "0.000000" if name == "unseen" else "0.250000"]
        for dataset, some in (("garage", bins), ("studio", bins[:1]))
        for group, name in some
        for system in ("pop", "sasrec", "mmm4rec")
        for metric in ("recall@10", "ndcg@10")
    ]
    write_text(tmp_path / "sparsity.csv", to_csv(COLUMNS, rows))
    out = tmp_path / "figures" / "sparsity.png"
    write_sparsity_figure(tmp_path / "sparsity.csv", out)
    with Image.open(out) as image:
        assert image.format == "PNG"
        assert image.size == (round(150 * (3.2 * panels + 1.6)), 150 * 3.4 * 2)
    assert [path.name for path in out.parent.iterdir()] == ["sparsity.png"]
