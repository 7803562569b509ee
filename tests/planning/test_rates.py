"""Lines through two measurements."""

import math

import pytest
from invented_rates import rate

from mmm4rec.errors import UserError
from mmm4rec.planning.rates import SHIPPED, at_size, epoch_seconds, ranking_seconds, read_rates, write_rates


def test_a_line_through_two_sizes_goes_on_beyond_them():
    two = [rate(1000, step=2.0), rate(3000, step=4.0)]
    assert at_size(two, "step", 2000) == 3.0
    assert at_size(two, "step", 5000) == 6.0
    assert at_size(two, "step", 0) == 1.0


def test_no_time_is_nothing_or_less():
    """The line is at -0.98 there; in proportion to the smaller one it is 0.01."""
    assert at_size([rate(1000, step=1.0), rate(2000, step=3.0)], "step", 10) == pytest.approx(0.01)


def test_one_size_alone_is_taken_as_it_is():
    assert at_size([rate(1000, step=2.0)], "step", 9000) == 2.0


def test_clusters_grow_with_a_power_of_the_catalogue():
    assert at_size([rate(10, start=1.0), rate(20, start=4.0)], "start", 40) == pytest.approx(16.0)


def test_a_step_of_pre_training_grows_with_the_logarithm():
    two = [rate(10, stage="pretrain", step=1.0), rate(100, stage="pretrain", step=2.0)]
    assert at_size(two, "step", 1000) == pytest.approx(3.0)
    assert at_size(two, "step", 2) == 1.0


def test_an_epoch_and_a_ranking():
    one = [rate(1000, step=2.0, start=5.0, tables=3.0, rank=4.0)]
    assert epoch_seconds(one, 1000, rows=250) == 5.0 + 2.5 * 2.0
    assert ranking_seconds(one, 1000, users=25) == 3.0 + 2.5 * 4.0
    assert epoch_seconds([rate(1000, rows=0)], 1000, rows=250) == 0.0


def test_written_and_read_again(tmp_path):
    path = tmp_path / "rates.csv"
    ours = [
        rate(2, system="b", device="x"),
        rate(1, system="b", device="x", step=0.125),
        rate(1, system="a", device="x"),
    ]
    write_rates(path, ours)
    assert read_rates(path) == [ours[2], ours[1], ours[0]]


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "device,system\ncpu,pop\n"])
def test_another_csv_is_no_table_of_rates(tmp_path, text):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=r"x\.csv: not a table of rates"):
        read_rates(path)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"no such file; `mmm4rec rates --out"):
        read_rates(tmp_path / "x.csv")


def test_shipped_rates_are_measurements():
    """Every one says where it comes from, and has no second one of its kind."""
    rates = read_rates(SHIPPED)
    assert len({(r.device, *r.key, r.items) for r in rates}) == len(rates) > 0
    for one in rates:
        assert one.commit, one
        assert one.processor, one
        assert one.memory > 0, one
        assert all(math.isfinite(v) and v >= 0 for v in (one.step, one.start, one.tables, one.rank)), one
        assert (one.step > 0) == (one.rows > 0), one
