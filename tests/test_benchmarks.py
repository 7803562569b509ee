"""What the benchmarks hold themselves against computes the same; that they run. No time is looked at."""

import dataclasses
import re

import pytest
import torch

from benchmarks import conv, epoch, figure, loss, ranking, scale, ssd, table
from benchmarks.padded import padded_loss, padded_users, plain
from benchmarks.roofline import Work, count_operations, measure_rates, profile
from benchmarks.steps import Step
from mmm4rec.evaluation.ranking import rank_targets
from mmm4rec.nn.dropout import Dropout
from mmm4rec.planning.measure import Subject, invent


@pytest.fixture
def subject() -> Subject:
    whole = invent("mmm4rec", "finetune", "scientific", torch.device("cpu"))
    whole.system.double().eval()
    return dataclasses.replace(whole, rows=whole.rows[::9][:40])


def test_the_padded_reference_computes_what_the_fast_model_does(subject):
    system, events = subject.system, subject.events
    rows = events.batch(subject.rows, system.max_length, time=True)
    torch.testing.assert_close(padded_users(system, rows), system.users(system.item_tables(), rows))

    system.zero_grad()
    padded_loss(system, rows).backward()
    theirs = {name: p.grad for name, p in system.named_parameters()}
    system.zero_grad()
    (system.finetune_loss(system.item_tables(), rows) / len(rows.lengths)).backward()
    for name, p in system.named_parameters():
        # the reference has no skipped positions, where some gradients are zero instead of none
        ours = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(ours, torch.zeros_like(p) if theirs[name] is None else theirs[name], msg=name)


def test_the_padded_reference_has_the_dropout_of_pytorch(subject):
    system, copied = subject.system, plain(subject.system)
    assert copied.state_dict().keys() == system.state_dict().keys()
    ours, theirs = (
        [m.p for m in model.modules() if isinstance(m, kind)]
        for model, kind in ((system, Dropout), (copied, torch.nn.Dropout))
    )
    assert ours == theirs
    assert max(ours) > 0
    assert not any(isinstance(m, Dropout) for m in copied.modules())


def test_sorting_all_scores_gives_the_same_ranks():
    whole = invent("sasrec", "finetune", "scientific", torch.device("cpu"), users=60)
    whole.system.double()
    targets = whole.events.test_rows()[:60]
    ranks = rank_targets(whole.system, whole.events, targets, time=whole.time_aware)
    assert ranking.by_sorting(whole, targets).tolist() == ranks.tolist()


def test_operations_are_counted_without_padding_and_within_the_loss():
    whole = invent("sasrec", "finetune", "scientific", torch.device("cpu"))
    step = Step(dataclasses.replace(whole, rows=whole.rows[:64]))
    work = step.work()
    width, items = whole.system.settings.hidden_size, whole.events.n_items
    assert work.operations > 6 * 64 * items * width  # the scores alone, forward and back
    assert work.operations <= count_operations(step) + 6 * 64 * items * width


def test_a_limit_is_the_larger_of_operations_and_bytes():
    rates = measure_rates(torch.device("cpu"))
    assert Work(rates.operations, 0).seconds(rates) == 1
    assert Work(rates.operations, 3 * rates.bytes).seconds(rates) == pytest.approx(3)


def test_forms_of_ssd_are_measured_at_every_length(monkeypatch):
    monkeypatch.setitem(ssd.SIZES, "quick", (9, 65))
    monkeypatch.setitem(ssd.POSITIONS, "cpu", 65)
    monkeypatch.setattr(ssd, "apart", lambda measure, *args: measure(*args))
    rows = list(ssd.rows("quick", "cpu"))
    assert [(row.what, row.size) for row in rows] == [
        ("quadratic", 9),
        ("reference loop", 9),
        ("quadratic", 65),
        ("reference loop", 65),
        ("chunked", 65),
    ]
    assert all(row.seconds > 0 and row.limit > 0 for row in rows)


def test_convolutions_are_measured_at_every_length(monkeypatch):
    monkeypatch.setitem(conv.POSITIONS, "cpu", 20)
    rows = list(conv.rows("quick", "cpu"))
    assert [(row.what, row.size, row.against) for row in rows] == [
        ("shifted sums", length, against)
        for length in (4, 20)
        for against in ("roofline", "torch.nn.functional.conv1d")
    ]
    assert all(row.seconds > 0 and row.limit > 0 for row in rows)


@pytest.mark.parametrize("rival", loss.RIVALS.values(), ids=loss.RIVALS)
def test_rivals_of_the_loss_give_the_same(rival):
    users, table = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    targets = torch.randint(9, (5,))
    values = [of(users, table, targets) for of in (rival, loss.full_cross_entropy)]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, (users, table)) for value in values))


def test_the_convolution_of_pytorch_gives_the_same():
    inputs = [v.double() for v in conv.invent(3, 7, torch.device("cpu"))]
    for ours, theirs in zip(conv.in_form(conv.ShiftedSums)(*inputs), conv.torch_conv(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_processes_are_doubled_as_long_as_there_are_devices():
    assert [scale.counts(devices) for devices in (1, 2, 6)] == [[1], [1, 2], [1, 2, 4]]


@pytest.mark.slow
def test_two_processes_are_measured_against_one():
    one, two = scale.rows("quick", "cpu")
    assert (one.size, one.against, two.size) == (1, "roofline", 2)
    assert two.limit == one.seconds / 2
    assert two.seconds > 0
    assert two.remark.startswith("1024 rows of scientific")


@pytest.mark.slow
def test_rows_are_written_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(loss.SIZES, "quick", (50, 90, 130))
    monkeypatch.setattr(loss, "COMPARED", 90)
    rows = list(loss.rows("quick", "cpu"))
    limits = ("roofline", *loss.RIVALS)
    expected = [(50, against) for against in limits] + [(90, against) for against in limits] + [(130, "roofline")]
    assert [(row.size, row.against) for row in rows] == expected
    table.write_rows(tmp_path / "loss.csv", rows, "cpu")
    again = table.read_rows(tmp_path / "loss.csv")
    assert [row.what for row in again] == [row.what for row in rows]
    table.write_page(tmp_path, ["training", "loss"])
    page = (tmp_path / "README.md").read_text()
    assert "## Loss" in page
    assert "| loss and gradients | 90 items |" in page
    for some in (rows, rows[:1]):  # lines, and a bar
        figure.draw(tmp_path / "loss.png", some)
        assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_an_epoch_is_measured_over_the_rows_asked_for(monkeypatch):
    monkeypatch.setitem(epoch.STEPS, "cpu", 0.05)
    taken, whole, seconds, memory, limit = epoch.measure("finetune", "scientific", "cpu")
    assert taken == int(0.05 * 8 * 1024)
    assert whole == 59_427 - 3 * 8_442  # the paper's Table I, less the first event and two held-out ones a user
    assert seconds > 0
    assert limit > 0
    assert memory > 100  # MiB: libraries alone are more


def test_a_profile_names_what_takes_the_time():
    x = torch.randn(300, 300)
    spent = profile(lambda: [x @ x for _ in range(20)] + [x.exp()], torch.device("cpu"), most=1)
    assert re.fullmatch(r"products \d+ %", spent)
