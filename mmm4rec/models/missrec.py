"""MISSRec: multi-modal interest-aware sequences (Wang et al., ACM MM 2023).

Text and image of every item are mapped to one width; k-means over the vectors of both finds interests, and the
interests of a row's items are what an encoder reads; a decoder reads the items themselves and asks the encoder. A user
weighs text and image of a candidate by how well each fits.

Shapes: B rows, L positions, N items, M items at hand, m modalities of the domain, D width.
"""

import logging
import math
from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmm4rec.models.base import Catalogue, Rows, System, Tables
from mmm4rec.models.items import IdVectors, at_hand, ids_at_hand, require_features
from mmm4rec.models.transformer import TransformerSettings
from mmm4rec.nn.augment import drop_items, exchange_items, happens
from mmm4rec.nn.dropout import Dropout
from mmm4rec.nn.encoder_decoder import EncoderDecoder
from mmm4rec.nn.initialise import normal_, small_biases_
from mmm4rec.nn.kmeans import kmeans
from mmm4rec.nn.losses import Duplicates, in_batch_cross_entropy, without_duplicates
from mmm4rec.nn.transformer import EPS
from mmm4rec.nn.unit import unit

log = logging.getLogger(__name__)


class MISSRecSettings(TransformerSettings):
    """Sizes, interests and losses; ``config/systems/missrec.yaml`` says where each value comes from."""

    with_id: bool = True
    interest_share: float = Field(gt=0, le=1)
    pretrain_interest_share: float = Field(gt=0, le=1)
    cluster_passes: int = Field(ge=1)
    temperature: float = Field(gt=0)
    orthogonality: float = Field(ge=0)
    view_weight: float = Field(ge=0)
    view_drop_share: float = Field(ge=0, lt=1)
    duplicates: Duplicates = "masked"
    word_drop_batches: float = Field(0.1, ge=0, le=1)
    word_drop_ratio: float = Field(0.2, ge=0, le=1)


class MISSRec(System):
    """Adaptors, interests, encoder and decoder; scores fuse the cosines with a candidate's text and image."""

    Settings = MISSRecSettings
    settings: MISSRecSettings
    has_image: Tensor | None
    points: Tensor
    interests: Tensor
    clusters: Tensor
    reads_text_dropped = True
    lost_words: Tensor | None

    def __init__(self, settings: MISSRecSettings, catalogue: Catalogue, *, pretraining: bool = False) -> None:
        super().__init__(settings, catalogue, pretraining=pretraining)
        require_features("missrec", catalogue)
        s = settings
        self.features, self.adaptors = nn.Module(), nn.ModuleDict()
        for modality in ("text", "image"):
            features = getattr(catalogue, modality)
            if features is not None:
                self.features.register_buffer(modality, features.float(), persistent=False)
                self.adaptors[modality] = nn.Linear(features.shape[1], s.hidden_size)
        # images are left out where they are missing, if the policy says so and the item has a text to be known by
        masked = catalogue.missing_image == "mask" and len(self.adaptors) == 2
        self.register_buffer("has_image", catalogue.has_image if masked else None, persistent=False)
        if s.with_id and not pretraining:
            self.item = IdVectors(catalogue, s.hidden_size)
        if len(self.adaptors) == 2:
            self.fusion = nn.Parameter(torch.zeros(()))
        self.position = nn.Embedding(s.max_length, s.hidden_size)
        self.norm = nn.LayerNorm(s.hidden_size, eps=EPS)
        self.dropout = Dropout(s.dropout)
        self.network = EncoderDecoder(s.hidden_size, s.inner_size, s.layers, s.heads, s.dropout)
        self.apply(normal_)
        small_biases_(*self.adaptors.values())

        there = torch.ones(len(self.adaptors), catalogue.n_items, dtype=torch.bool)
        if self.has_image is not None:
            there[1] = self.has_image[1:]
        if pretraining and catalogue.text_dropped is None:
            log.info("no features of texts with words left out: the other view of a row always has items left out")
        elif pretraining:
            log.info("other views: texts with words left out in %g %% of the batches", 100 * s.word_drop_batches)
        lost = None
        if pretraining and s.word_drop_batches and catalogue.text is not None and catalogue.text_dropped is not None:
            lost = catalogue.text_dropped.float() - catalogue.text.float()
        self.register_buffer("lost_words", lost, persistent=False)  # what a text's features change by without them
        # which of all text and then all image vectors take part in the search for interests
        self.register_buffer("points", there.flatten().nonzero()[:, 0], persistent=False)
        share = s.pretrain_interest_share if pretraining else s.interest_share
        n_interests = math.ceil(share * len(self.points))
        # as the last epoch's start left them; before the first, one interest for all
        self.register_buffer("interests", torch.zeros(n_interests + 1, s.hidden_size))
        self.register_buffer("clusters", torch.ones(catalogue.n_items + 1, len(self.adaptors), dtype=torch.int64))
        self.clusters[0] = 0

    # -- items

    def item_tables(self, ids: Tensor | None = None) -> Tables:
        """What rows read, and what candidates are, row 0 for padding.

        Returns:
            The sum of an item's vectors [M + 1, D]; its interests [M + 1, m] int64, 0 for none; its id [M + 1]; and the
            vectors a and d [M + 1, D] of the scores (u a + c (u d) sigmoid(fusion * u d)) / temperature. A domain of
            one modality has no d.
        """
        parts = self.modalities(ids)
        vectors = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        by_id = self.item.table(ids) if self.has_ids else None
        clusters = at_hand(self.clusters, ids)
        known = ids_at_hand(self.n_items, ids, vectors.device)
        if by_id is not None:
            vectors = vectors + by_id
        if len(parts) == 1:
            return vectors, clusters, known, unit(vectors)
        text, image = map(unit, parts)
        if self.has_image is not None:
            image = torch.where(at_hand(self.has_image, ids)[:, None], image, text)  # then text has all the weight
        # With p = softmax(fusion * (u text, u image)), p_text u text + p_image u image is
        # u image + (u text - u image) p_text, and p_text = sigmoid(fusion * (u text - u image)).
        base = image if by_id is None else (unit(by_id) + 2 * image) / 3
        return vectors, clusters, known, base, text - image

    def modalities(self, ids: Tensor | None = None) -> list[Tensor]:
        """Vectors [M + 1, D] of each modality; the bias where an item lacks it, or zero if it is left out."""
        parts = [adaptor(at_hand(getattr(self.features, m), ids)) for m, adaptor in self.adaptors.items()]
        if self.has_image is not None:
            parts[1] = parts[1] * at_hand(self.has_image, ids)[:, None]
        return parts

    def candidates(self, tables: Tables) -> Tensor:
        """There are none: scores are no products of vectors."""
        raise AssertionError("MISSRec scores are not products; see `scores`")

    def scores(self, tables: Tables, users: Tensor) -> Tensor:
        """Scores [B, M] of all items at hand."""
        return self.fused(users, *(table[1:] for table in tables[3:]))

    def fused(self, users: Tensor, base: Tensor, difference: Tensor | None = None) -> Tensor:
        """Scores [B, M] of the candidates whose ``base`` and ``difference`` [M, D] these are (``item_tables``)."""
        scores = users @ base.T
        if difference is not None:
            by = users @ difference.T
            scores = torch.addcmul(scores, by, torch.sigmoid(self.fusion * by), value=2 / 3 if self.has_ids else 1.0)
        return scores / self.settings.temperature

    @property
    def has_ids(self) -> bool:
        """Whether items have vectors of their own."""
        return hasattr(self, "item")

    # -- rows

    def users(self, tables: Tables, rows: Rows) -> Tensor:
        """User vectors [B, D] of length 1."""
        return self.users_and_penalties(tables, rows)[0]

    def users_and_penalties(self, tables: Tables, rows: Rows) -> tuple[Tensor, Tensor]:
        """User vectors [B, D] and how alike the row's interests are, [B]."""
        encoded = self.encode_rows(tables, rows)
        return encoded[:, :-1], encoded[:, -1]

    def encode(self, tables: Tables, rows: Rows) -> Tensor:
        """User vectors and, in the last column, how alike the row's interests are: [B, D + 1].

        That is |sum of the encoder's results|^2 / D: as these have about the same length, it is least where they are
        orthogonal.
        """
        real = torch.arange(rows.items.shape[1], device=rows.items.device) < rows.lengths[:, None]
        tokens, known = distinct((tables[1][rows.items] * real[..., None]).flatten(1))
        memory = self.network.encode(F.embedding(tokens, self.interests), known)
        alike = (memory * known[..., None]).sum(1).square().mean(-1, keepdim=True)
        x = F.embedding(rows.items, tables[0]) + self.position.weight[: rows.items.shape[1]]
        last = self.network.decode_last(self.dropout(self.norm(x)), rows.lengths, memory, known)
        return torch.cat([unit(last), alike], -1)

    # -- training

    @torch.no_grad()
    def start_epoch(self, epoch: int) -> None:
        """Find the interests anew: k-means over the text vectors and image vectors of all items together.

        In torch, so that it runs where the adaptors are: the points never leave the device, where scikit-learn's
        MiniBatchKMeans would have them on the CPU. Full passes cost what as many passes of mini-batches cost.
        """
        points = torch.cat([part[1:] for part in self.modalities()])
        centroids, labels = kmeans(points[self.points][None], len(self.interests) - 1, self.settings.cluster_passes)
        self.interests[1:] = centroids[0]
        clusters = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        clusters[self.points] = labels[0] + 1
        self.clusters[1:] = clusters.view(-1, self.n_items).T

    def finetune_loss(self, tables: Tables, rows: Rows) -> Tensor:
        """Sum over the rows of the cross-entropy over the catalogue; to their mean, all penalties are added."""
        users, alike = self.users_and_penalties(tables, rows)
        loss = F.cross_entropy(self.scores(tables, users).float(), rows.targets - 1, reduction="sum")
        return loss + len(users) * self.settings.orthogonality * alike.sum()

    def pretrain_loss(self, tables: Tables, rows: Rows) -> Tensor:
        """Cross-entropy of each target among the batch's, of each row's other view among the batch's, penalties."""
        s = self.settings
        users, alike = self.users_and_penalties(tables, rows)
        logits = self.fused(users, *(table[rows.targets] for table in tables[3:]))
        logits = without_duplicates(logits, rows.targets, s.duplicates)
        loss = F.cross_entropy(logits.float(), torch.arange(len(logits), device=logits.device))
        views, views_alike = self.users_and_penalties(*self.other_view(tables, rows))
        between = in_batch_cross_entropy(users / s.temperature, views, rows.targets, s.duplicates)
        return loss + s.view_weight * between + s.orthogonality * (alike.sum() + views_alike.sum())

    def other_view(self, tables: Tables, rows: Rows) -> tuple[Tables, Rows]:
        """The same rows less items or, in a share of the batches, with texts that lack words for some of their items.

        Images, and the interests of an item, stay those of all its words.

        Returns:
            The view's tables, in which items by texts that lack words stand below the others, and its rows.
        """
        s = self.settings
        if self.lost_words is not None and happens(s.word_drop_batches):
            vectors, interests, ids, *_ = tables
            fewer = vectors + F.linear(self.lost_words[ids], self.adaptors.get_parameter("text.weight"))
            both = torch.cat([vectors, fewer]), interests.repeat(2, 1)
            return both, replace(rows, items=exchange_items(rows.items, s.word_drop_ratio, len(vectors)))
        items, lengths = drop_items(rows.items, rows.lengths, s.view_drop_share)
        return tables, Rows(items, lengths, rows.targets)

    def frozen(self) -> Iterable[str]:
        """Positions, encoder and decoder."""
        return ("position.", "network.")

    def carried_over(self, name: str) -> bool:
        """Everything but what belongs to one domain's items."""
        return name not in ("item.weight", "interests", "clusters")


def distinct(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Ids [B, Q] of each row in ascending order, and which are the first of their kind and not 0, [B, Q] bool."""
    ids = ids.sort(-1).values
    before = F.pad(ids[:, :-1], (1, 0))  # ids are at least 0, so a 0 in front hides nothing but zeros
    return ids, ids != before


MODEL = MISSRec
