"""What tables say of their runs, read where it stands: most of it in the text of Table II."""

import pytest
from finished_runs import COST, write_run

from mmm4rec.config import read_system
from mmm4rec.reporting.ablation import write_ablation_table
from mmm4rec.reporting.accuracy import write_accuracy_table
from mmm4rec.reporting.convergence import write_convergence_table


def test_features_are_said_or_that_they_are_not_recorded(tmp_path):
    features = {"encoder": "siglip", "text": 1.0, "image": 0.5}
    runs = [
        write_run(tmp_path, "sasrec", 1, 0.2),
        write_run(tmp_path, "unisrec", 1, 0.2, reads=["text"], features=features),
        write_run(tmp_path, "fdsa", 1, 0.2, reads=["ids", "text"]),
    ]
    write_accuracy_table(2, runs, tmp_path / "t.csv", systems=["sasrec", "fdsa", "unisrec"])
    text = (tmp_path / "t.md").read_text()
    assert "Features: siglip; text of 100 %, images of 50 % of the items." in text
    assert "Features read by FDSA: not recorded." in text


@pytest.mark.parametrize("known", [0, 73])
def test_attributes_that_are_texts_for_want_of_others_are_said(tmp_path, known):
    run = write_run(tmp_path, "s3rec", 1, 0.2, attributes=known)
    write_accuracy_table(2, [run], tmp_path / "t.csv", systems=["s3rec"])
    note = "Neither brands nor categories are known: attributes of S³-Rec are texts."
    assert (note in (tmp_path / "t.md").read_text()) == (known == 0)


def test_pre_training_is_said_or_that_it_is_not_recorded(tmp_path):
    stage = read_system("missrec").pretrain.model_dump() | {"epochs": 1}
    runs = [
        write_run(tmp_path, "unisrec", 1, 0.2, pretrained=True),
        write_run(tmp_path, "missrec", 1, 0.2, pretrained=True, pretraining={"sources": ["food"], "stage": stage}),
    ]
    write_accuracy_table(2, runs, tmp_path / "t.csv", systems=["unisrec", "missrec"])
    text = (tmp_path / "t.md").read_text()
    assert "- MISSRec: pretrain.epochs 1 (100)" in text
    assert "Settings of the pre-training of UniSRec: not recorded in all runs." in text


def test_a_leak_is_said_in_the_caption(tmp_path):
    run = write_run(tmp_path, "mmm4rec", 1, 0.2, settings={"target_time_in_row": True})
    write_accuracy_table(2, [run], tmp_path / "t.csv", systems=["mmm4rec"])
    assert "The time of the target is in the rows of MMM4Rec" in (tmp_path / "t.md").read_text()


def test_settings_other_than_the_files_are_listed_below(tmp_path):
    file = read_system("sasrec")
    stage = file.finetune.model_dump() | {"epochs": 3}
    run = write_run(tmp_path, "sasrec", 1, 0.2, settings=file.settings | {"hidden_size": 32}, stage=stage)
    write_accuracy_table(2, [run], tmp_path / "t.csv", systems=["sasrec"])
    assert "\n- SASRec: hidden_size 32 (64), epochs 3 (300)\n" in (tmp_path / "t.md").read_text()

    file = read_system("s3rec")
    stages = {"stage": file.finetune.model_dump(), "indomain": file.indomain.model_dump() | {"epochs": 16}}
    run = write_run(tmp_path, "s3rec", 1, 0.2, settings=file.settings, **stages)
    write_accuracy_table(2, [run], tmp_path / "t.csv", systems=["s3rec"])
    assert "\n- S³-Rec: indomain.epochs 16 (300)\n" in (tmp_path / "t.md").read_text()


def test_what_the_features_hold_is_said(tmp_path):
    known = {"encoder": "siglip", "text": 0.997, "image": 0.36}
    runs = [
        write_run(tmp_path, "mmm4rec", 1, 0.2, features=known),
        write_run(tmp_path, "pop", 1, 0.1, features=None),
    ]
    write_accuracy_table(2, runs, tmp_path / "t.csv", systems=["pop", "mmm4rec"])
    assert "Features: siglip; text of 100 %, images of 36 % of the items." in (tmp_path / "t.md").read_text()


def test_where_and_how_a_system_was_pre_trained_is_said(tmp_path):
    file = read_system("unisrec_t")  # starts from UniSRec's weights
    before = {"sources": ["food", "home"], "stage": read_system("unisrec").pretrain.model_dump() | {"batch_size": 1024}}
    settings = {"settings": file.settings, "stage": file.finetune.model_dump()}
    runs = [
        write_run(tmp_path, "unisrec_t", 1, 0.2, **settings, pretrained=True, pretraining=before),
        write_run(tmp_path, "pop", 1, 0.2, pretraining=None),
    ]
    write_accuracy_table(3, runs, tmp_path / "t.csv", systems=["unisrec_t", "pop"])
    text = (tmp_path / "t.md").read_text()
    assert "From scratch: Popularity; pre-trained on food, home: UniSRec_T." in text
    assert "\n- UniSRec_T: pretrain.batch_size 1024 (8192)\n" in text


@pytest.mark.parametrize("write", [write_ablation_table, write_convergence_table])
def test_the_other_tables_say_the_same(tmp_path, write):
    file = read_system("mmm4rec")
    settings = {"settings": file.settings | {"target_time_in_row": True}, "stage": file.finetune.model_dump()}
    run = write_run(tmp_path, "mmm4rec", 1, 0.2, pretrained=True, pretraining={"sources": ["food"]}, **settings)
    write([run], tmp_path / "t.csv", systems=["mmm4rec"])
    text = (tmp_path / "t.md").read_text()
    assert "\n- Seeds: 1.\n" in text
    assert "\n- From scratch: none; pre-trained on food: MMM4Rec.\n" in text
    assert "**The time of the target is in the rows of MMM4Rec**" in text
    assert "\n- MMM4Rec: target_time_in_row True (False)\n" in text


@pytest.mark.parametrize(("users", "events", "said"), [(8442, 59000, True), (8442, 59427, False), (8441, 59000, False)])
def test_events_other_than_print_s_are_said_where_the_users_are_the_same(tmp_path, monkeypatch, users, events, said):
    """Print counts 59,427 events of 8,442 users; other users have no print beside them at all."""
    monkeypatch.setitem(COST, "users", users)
    monkeypatch.setitem(COST, "interactions", events)
    write_accuracy_table(2, [write_run(tmp_path, "sasrec", 1, 0.2)], tmp_path / "t.csv", systems=["sasrec"])
    note = "Not quite print's data: 59,000 events of the same users, in print 59,427."
    assert (note in (tmp_path / "t.md").read_text()) == said


def test_runs_that_did_not_count_their_events_say_nothing_of_them(tmp_path):
    write_accuracy_table(2, [write_run(tmp_path, "sasrec", 1, 0.2)], tmp_path / "t.csv", systems=["sasrec"])
    assert "print's data" not in (tmp_path / "t.md").read_text()
