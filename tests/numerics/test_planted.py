"""What the demo plants is there to be learned: without time, text or images MMM4Rec loses by a wide margin."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmm4rec.config import StageSettings, embed_settings, load_config, prepare_settings
from mmm4rec.data.demo import write_demo
from mmm4rec.data.images import fetch_images
from mmm4rec.data.prepare import prepare
from mmm4rec.data.registry import raw_path
from mmm4rec.evaluation.metrics import summarise
from mmm4rec.evaluation.ranking import rank_targets
from mmm4rec.features.embed import embed
from mmm4rec.features.encoder import fetch_encoder
from mmm4rec.models.base import Catalogue, build
from mmm4rec.training.data import Events, load_catalogue, load_events
from mmm4rec.training.loop import finetune_loss, train

ROOT = Path(__file__).parents[2]
CONFIG = load_config(ROOT / "config.yaml", ROOT / "config" / "demo.yaml")
DOMAIN, EPOCHS = "kitchen", 12
MARGIN = 0.8  # of the full model's ndcg@10; measured: 0.63 without time, 0.07 without text, 0.40 without images


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Events, Catalogue]:
    """A demo domain, from raw files through the tiny encoder."""
    root = tmp_path_factory.mktemp("demo")
    write_demo(root / "raw")
    category = CONFIG.domains[DOMAIN].amazon
    ratings, metadata = (raw_path(root / "raw", category, 2018, kind) for kind in ("ratings", "metadata"))
    prepare(prepare_settings(CONFIG, DOMAIN), root / DOMAIN, ratings=ratings, metadata=metadata)
    items, images, encoder, out = root / DOMAIN / "items.parquet", root / "images", root / "tiny", root / "f.parquet"
    fetch_images(items, images, concurrency=4, timeout=1, tries=1, max_side=512, offline=True)
    fetch_encoder("tiny", encoder, offline=True)
    settings = embed_settings(CONFIG, DOMAIN)
    embed(settings, root / DOMAIN, images, encoder, out, state=None, device="cpu", batch_size=64)
    events = load_events([root / DOMAIN])
    return events, load_catalogue(events, [root / DOMAIN], [out], ["text", "image", "time"], "zero")


def ndcg(events: Events, catalogue: Catalogue, **changes: object) -> float:
    """ndcg@10 on the test items of the demo's small MMM4Rec without ids, trained from scratch."""
    own = CONFIG.settings["mmm4rec"]
    settings = {k: v for k, v in own.items() if k not in ("pretrain", "finetune")} | {"with_id": False} | changes
    stage = StageSettings(optimizer="nadam", learning_rate=5e-3, batch_size=64, epochs=EPOCHS)
    torch.manual_seed(0)
    system = build("mmm4rec", settings, catalogue)
    train(
        system, events, events.train_rows(), stage, finetune_loss,
        seed=0, time_aware=True, whole_catalogue=True,
    )  # fmt: skip
    return summarise(rank_targets(system, events, events.test_rows(), time=True))["ndcg@10"]


@pytest.mark.slow
def test_without_time_text_or_images_the_model_loses_by_a_margin(domain: tuple[Events, Catalogue]) -> None:
    events, catalogue = domain
    found = {
        "all": ndcg(events, catalogue),
        "time": ndcg(events, catalogue, use_time="off"),
        "text": ndcg(events, replace(catalogue, text=torch.zeros_like(catalogue.text))),
        "image": ndcg(events, replace(catalogue, image=torch.zeros_like(catalogue.image))),
    }
    print(found)
    for without in ("time", "text", "image"):
        assert found[without] < MARGIN * found["all"], without
