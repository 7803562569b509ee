from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmm4rec.training.scalars import scalars


def losses(folder):
    events = EventAccumulator(str(folder)).Reload()
    return {e.step: round(e.value, 3) for e in events.Scalars("loss")}


def test_a_training_that_starts_anew_hides_the_one_before(tmp_path):
    with scalars(tmp_path) as write:
        for epoch in (1, 2, 3):
            write(epoch, {"epoch": epoch, "loss": 5.0})
    with scalars(tmp_path) as write:
        for epoch in (1, 2):
            write(epoch, {"epoch": epoch, "loss": 4.0})
    assert losses(tmp_path) == {1: 4.0, 2: 4.0}


def test_a_resumed_training_goes_on_where_it_was(tmp_path):
    for epochs in ((1, 2), (3,)):
        with scalars(tmp_path) as write:
            for epoch in epochs:
                write(epoch, {"epoch": epoch, "loss": 5.0})
    assert losses(tmp_path) == {1: 5.0, 2: 5.0, 3: 5.0}


def test_without_a_folder_nothing_is_written():
    with scalars(None) as write:
        assert write is None
