"""VQRec: items by discrete codes of their text (Hou, He, McAuley & Zhao, WWW 2023).

Optimised product quantisation turns an item's text features into M digits of K values; its vector is the mean of its
digits' learned vectors; a causal Transformer reads the history. A new domain has codes of its own: first which vector
each of its values takes over is learned (a permutation), then the vectors themselves.

Shapes: B rows, L positions, N items, M digits, K values a digit, D width.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mmm4rec.models.base import Catalogue, Rows, System, Tables
from mmm4rec.models.items import at_hand, text_features
from mmm4rec.models.transformer import TransformerSettings
from mmm4rec.nn.dropout import Dropout
from mmm4rec.nn.initialise import normal_
from mmm4rec.nn.losses import Duplicates, without_duplicates
from mmm4rec.nn.quantise import ProductQuantiser
from mmm4rec.nn.transformer import EPS, TransformerEncoder

ITEMS_A_VALUE = 4  # a small catalogue gets so few values that this many items share one, on average


class VQRecSettings(TransformerSettings):
    """Sizes, losses and the stages of fine-tuning; ``config/systems/vqrec.yaml`` says where each value comes from."""

    digits: int = Field(ge=1)
    values: int = Field(ge=1)
    temperature: float = Field(gt=0)
    duplicates: Duplicates = "masked"
    fake_share: float = Field(ge=0, le=1)
    permutation_epochs: int = Field(ge=0)
    sinkhorn_turns: int = Field(ge=1)
    sinkhorn_temperature: float = Field(gt=0)
    defects: list[Literal["zero_gradient_permutation", "lost_codes"]] = Field([])


class VQRec(System):
    """Mean of code vectors, position embeddings, a causal Transformer; scores are cosines.

    What fine-tuning does follows from the epoch and from the state alone, so that it may be stopped and resumed, and
    any epoch's weights kept: ``transferred`` says that the weights come from pre-training, ``permuting`` that the code
    vectors are still to be read through the permutation.
    """

    Settings = VQRecSettings
    settings: VQRecSettings
    codes: Tensor
    firsts: Tensor
    transferred: Tensor
    permuting: Tensor

    def __init__(self, settings: VQRecSettings, catalogue: Catalogue, *, pretraining: bool = False) -> None:
        super().__init__(settings, catalogue, pretraining=pretraining)
        s = settings
        self.pretraining = pretraining
        codes, self.values_used = item_codes(catalogue, s.digits, s.values)
        self.register_buffer("codes", codes)
        self.register_buffer("firsts", first_rows(s.digits, s.values).to(codes.device), persistent=False)
        self.code = nn.Embedding(s.digits * (s.values + 1), s.hidden_size)
        self.position = nn.Embedding(s.max_length, s.hidden_size)
        self.norm = nn.LayerNorm(s.hidden_size, eps=EPS)
        self.dropout = Dropout(s.dropout)
        self.encoder = TransformerEncoder(s.hidden_size, s.inner_size, s.layers, s.heads, s.dropout)
        self.apply(normal_)
        self.register_buffer("transferred", torch.tensor(pretraining))
        self.register_buffer("permuting", torch.tensor(False))
        self.reads_permuted = False  # `permuting`, where asking costs no wait for the device
        if not pretraining:
            # T; trained only where there is something to permute
            self.permutation = nn.Parameter(torch.randn(s.digits, s.values, s.values), requires_grad=False)
        self.register_load_state_dict_post_hook(VQRec._follow_state)

    def _follow_state(self, *_: Any) -> None:
        self.reads_permuted = bool(self.permuting)
        if not self.pretraining:
            self.permutation.requires_grad_(bool(self.transferred))

    # -- items

    def item_tables(self, ids: Tensor | None = None) -> Tables:
        """Item vectors and candidate vectors [M + 1, D]; in pre-training also the codes [M + 1, digits]."""
        codes = at_hand(self.codes, ids)
        vectors = F.embedding_bag(codes, self.code_vectors(), mode="mean")
        candidates = F.normalize(vectors, dim=-1) / self.settings.temperature
        return (vectors, candidates, codes) if self.pretraining else (vectors, candidates)

    def candidates(self, tables: Tables) -> Tensor:
        """Item vectors of length 1 / temperature, [M, D]."""
        return tables[1][1:]

    def code_vectors(self) -> Tensor:
        """The vectors [digits * (values + 1), D] that codes point to: E, or P E while P is learned.

        The first of each digit belongs to items without text, and stays in its place.
        """
        if not self.reads_permuted:
            return self.code.weight
        blocks = self.code.weight.detach().unflatten(0, (self.settings.digits, -1))
        first, values = blocks[:, :1], blocks[:, 1:]
        values = self.drawn_permutation() @ values if self.training else reordered(values, self.best_permutation())
        return torch.cat([first, values], 1).flatten(0, 1)

    def drawn_permutation(self) -> Tensor:
        """P [digits, K, K], 0 or 1 with one 1 a row and a column: which value's vector each value takes over.

        Nearest to Sinkhorn((T + Gumbel noise) / temperature), whose gradient stands for that of P.
        """
        soft = self._noisy()
        hard = torch.zeros_like(soft).scatter_(-1, self._hard(soft.detach())[..., None], 1)
        if "zero_gradient_permutation" in self.settings.defects:
            return torch.ceil(hard * soft)
        return hard + soft - soft.detach()

    def best_permutation(self) -> Tensor:
        """Where the 1s of P stand without noise, [digits, K] int64."""
        return self._hard(self._sinkhorn(self.permutation.detach()))

    def last_permutation(self) -> Tensor:
        """Where the 1s stand in the order that the vectors are put in for good, [digits, K] int64: without noise.

        The defect ``lost_codes`` takes one more draw, as it does in training.
        """
        if "lost_codes" in self.settings.defects:
            return self._hard(self._noisy().detach())
        return self.best_permutation()

    def _noisy(self) -> Tensor:
        noise = -torch.empty_like(self.permutation).exponential_().log()
        return self._sinkhorn(self.permutation + noise)

    def _hard(self, soft: Tensor) -> Tensor:
        return soft.argmax(-1) if "lost_codes" in self.settings.defects else one_to_one(soft)

    def _sinkhorn(self, logits: Tensor) -> Tensor:
        return sinkhorn(logits / self.settings.sinkhorn_temperature, self.settings.sinkhorn_turns)

    # -- rows

    def encode(self, tables: Tables, rows: Rows) -> Tensor:
        """Hidden state of the last event, of length 1, [B, D]; position 0 is the oldest kept event."""
        x = F.embedding(rows.items, tables[0]) + self.position.weight[: rows.items.shape[1]]
        weight: Tensor = self.norm.weight
        bias: Tensor = self.norm.bias
        if self.reads_permuted:  # only the permutation learns
            weight, bias = weight.detach(), bias.detach()
        x = self.dropout(F.layer_norm(x, self.norm.normalized_shape, weight, bias, self.norm.eps))
        return F.normalize(self.encoder.last(x, rows.lengths), dim=-1)

    # -- training

    def settling_epochs(self) -> int:
        """Those that learn the permutation."""
        return self.settings.permutation_epochs if self.transferred and not self.pretraining else 0

    def start_epoch(self, epoch: int) -> None:
        """Learn the permutation in the first epochs after a transfer; then put the vectors in its order, and them."""
        permute = epoch <= self.settling_epochs()
        if self.reads_permuted and not permute:
            with torch.no_grad():
                values = self.code.weight.unflatten(0, (self.settings.digits, -1))[:, 1:]
                values.copy_(reordered(values, self.last_permutation()))
        self.permuting.fill_(permute)
        self.reads_permuted = permute

    def pretrain_loss(self, tables: Tables, rows: Rows) -> Tensor:
        """Mean cross-entropy of each target among the batch's targets and one semi-synthetic negative of its own.

        That is the target's code with a share of its digits drawn anew.
        """
        users = self.users(tables, rows)
        logits = users @ tables[1][rows.targets].T
        logits = without_duplicates(logits, rows.targets, self.settings.duplicates)
        fakes = F.embedding_bag(self.fake_codes(tables[2][rows.targets]), self.code.weight, mode="mean")
        fake = (users * F.normalize(fakes, dim=-1)).sum(-1, keepdim=True) / self.settings.temperature
        logits = torch.cat([logits, fake.to(logits.dtype)], 1)
        return F.cross_entropy(logits.float(), torch.arange(len(logits), device=logits.device))

    def fake_codes(self, codes: Tensor) -> Tensor:
        """Codes [B, digits] with each digit replaced by one of the values in use, with probability ``fake_share``."""
        drawn = torch.randint_like(codes, self.values_used) + self.firsts + 1
        return torch.where(torch.rand(codes.shape, device=codes.device) < self.settings.fake_share, drawn, codes)

    def frozen(self) -> Iterable[str]:
        """Positions and encoder."""
        return ("position.", "encoder.")

    def carried_over(self, name: str) -> bool:
        """Everything but the codes, which are of one domain's items."""
        return name != "codes"


def one_to_one(scores: Tensor) -> Tensor:
    """The column each row gets if the best pair is taken again and again, [..., K] int64 of [..., K, K].

    A pair that is the best of its row and of its column among those left is taken before either could be taken
    otherwise, so all such pairs are taken at once.
    """
    left, column = scores.clone(), scores.new_full(scores.shape[:-1], -1, dtype=torch.int64)
    row = torch.arange(scores.shape[-1], device=scores.device)
    while (column < 0).any():
        best = left.argmax(-1)
        mutual = (left.argmax(-2).gather(-1, best) == row) & (column < 0)
        column = torch.where(mutual, best, column)
        taken = torch.zeros_like(best).scatter_add(-1, best, mutual.long()).bool()
        left.masked_fill_(mutual[..., None] | taken[..., None, :], -torch.inf)
    return column


def item_codes(catalogue: Catalogue, digits: int, values: int) -> tuple[Tensor, int]:
    """Rows of the code table that make up each item, [N + 1, digits] int32, and how many values a digit has in use.

    Digit m has the rows m (values + 1), ...; its first is that of items without text, and of the padding. The quantiser
    is fitted on items that occur in training. It is our own: in torch, a minute at most on a CPU, repeatable, and no
    dependency of 65 MB for two calls (faiss); scikit-learn has no such rotation.

    Raises:
        UserError: the domain has no text features.
    """
    text = text_features(catalogue)
    known = text.any(1) if catalogue.has_text is None else catalogue.has_text
    fitted = known if catalogue.popularity is None else known & (catalogue.popularity > 0)
    if not fitted.any():
        fitted = known
    used = max(1, min(values, int(fitted.sum()) // ITEMS_A_VALUE))
    codes = first_rows(digits, values).to(text.device).repeat(len(text), 1)
    if known.any():
        codes[known] += (ProductQuantiser(text[fitted], digits, used).codes(text[known]) + 1).int()
    return codes, used


def first_rows(digits: int, values: int) -> Tensor:
    """Row of the code table where each digit's begin, [digits] int32."""
    return torch.arange(digits, dtype=torch.int32) * (values + 1)


def sinkhorn(logits: Tensor, turns: int) -> Tensor:
    """Matrices [..., K, K] nearly doubly stochastic: rows and columns of exp(logits) normalised by turns."""
    for _ in range(turns):
        logits = logits - logits.logsumexp(-1, keepdim=True)
        logits = logits - logits.logsumexp(-2, keepdim=True)
    return logits.exp()


def reordered(values: Tensor, order: Tensor) -> Tensor:
    """Vectors [digits, K, D] taken in ``order`` [digits, K]."""
    return values.gather(1, order[..., None].expand_as(values))


MODEL = VQRec
