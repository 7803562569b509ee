import torch

from mmm4rec.nn.augment import drop_items, exchange_items, happens

LENGTHS = torch.tensor([6, 1, 4])
ITEMS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 0, 0, 0, 0, 0], [6, 5, 3, 5, 0, 0]])


def test_nothing_dropped_is_the_same():
    items, lengths = drop_items(ITEMS, LENGTHS, 0.0)
    assert torch.equal(items, ITEMS)
    assert torch.equal(lengths, LENGTHS)


def test_what_stays_keeps_its_order_without_gaps_and_the_first_always_stays():
    torch.manual_seed(0)
    for _ in range(50):
        items, lengths = drop_items(ITEMS, LENGTHS, 0.5)
        assert items.shape == ITEMS.shape
        for row, length, before, long in zip(items.tolist(), lengths.tolist(), ITEMS.tolist(), LENGTHS, strict=True):
            assert not any(row[length:])
            assert row[0] == before[0]
            rest = iter(before[:long])
            assert all(item in rest for item in row[:length])  # a subsequence


def test_nearly_everything_dropped_leaves_the_first():
    items, lengths = drop_items(ITEMS, LENGTHS, 1.0)
    assert lengths.tolist() == [1, 1, 1]
    assert items[:, 0].tolist() == [3, 2, 6]
    assert not items[:, 1:].any()


def test_the_share_is_that_of_all_but_the_first():
    torch.manual_seed(0)
    _, lengths = drop_items(torch.ones(4000, 11, dtype=torch.long), torch.full((4000,), 11), 0.2)
    assert abs(float(lengths.float().mean()) - 9) < 0.1


def test_a_share_of_the_items_is_exchanged_and_no_padding():
    torch.manual_seed(0)
    assert torch.equal(exchange_items(ITEMS, 0.0, 10), ITEMS)
    assert torch.equal(exchange_items(ITEMS, 1.0, 10), ITEMS + 10 * (ITEMS > 0))
    many = exchange_items(torch.ones(4000, 10, dtype=torch.long), 0.2, 10)
    assert set(many.unique().tolist()) == {1, 11}
    exchanged = (many == 11).float().mean(0)
    assert ((exchanged - 0.2).abs() < 0.03).all()  # the first as well as the others


def test_what_holds_for_a_batch_is_drawn_from_the_generator_of_all():
    torch.manual_seed(3)
    drawn = [happens(0.1) for _ in range(4000)]
    assert abs(sum(drawn) / 4000 - 0.1) < 0.015
    torch.manual_seed(3)
    assert drawn == (torch.rand(4000) < 0.1).tolist()
    assert not happens(0.0)
    assert happens(1.0)
