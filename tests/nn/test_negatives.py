import torch

from mmm4rec.nn.negatives import unseen


def test_unseen_items_are_uniform_over_what_the_row_lacks():
    torch.manual_seed(0)
    rows = [[2, 3, 2, 6], [1, 0, 0, 0], [6, 5, 4, 3], [4, 4, 4, 0]]
    drawn = unseen(torch.tensor(rows).repeat_interleave(2000, 0), 6).view(4, -1)
    for row, items in zip(rows, drawn, strict=True):
        counts = items.bincount(minlength=7)
        lacking = [i for i in range(1, 7) if i not in row]
        assert [i for i, n in enumerate(counts.tolist()) if n] == lacking
        share = counts[lacking] / len(items)
        assert (share - 1 / len(lacking)).abs().max() < 0.02


def test_a_row_that_holds_everything_gets_some_item():
    assert unseen(torch.tensor([[1, 2, 3]]), 3).tolist() == [[3, 3, 3]]
