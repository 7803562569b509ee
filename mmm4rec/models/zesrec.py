"""ZESRec: items known by their text alone, to move to other domains (Ding et al., arXiv 2105.08318).

Its authors published no code. As in the comparisons of UniSRec, the row encoder is SASRec's in the place of a GRU, and
two linear maps without an activation between them lead from the text to the item vector.

Shapes: M items at hand, D width.
"""

from torch import Tensor, nn

from mmm4rec.models.base import Catalogue
from mmm4rec.models.items import TextVectors
from mmm4rec.models.transformer import TransformerSettings, TransformerSystem


class TwoLinear(nn.Module):
    """W_2 (W_1 t + b_1) + b_2 of the frozen text features t."""

    def __init__(self, catalogue: Catalogue, width: int) -> None:
        super().__init__()
        self.inner = TextVectors(catalogue, width)
        self.outer = nn.Linear(width, width)

    def table(self, ids: Tensor | None = None) -> Tensor:
        """Vectors [M + 1, D] of ``ids`` [M], or of the whole catalogue."""
        return self.outer(self.inner.table(ids))


class ZESRecSettings(TransformerSettings):
    """Sizes, and whether the encoder stays as pre-trained."""

    freeze_encoder: bool = False


class ZESRec(TransformerSystem):
    """SASRec over text; pre-trained and fine-tuned with cross-entropies of plain products."""

    Settings = ZESRecSettings
    settings: ZESRecSettings

    def __init__(self, settings: ZESRecSettings, catalogue: Catalogue, *, pretraining: bool = False) -> None:
        super().__init__(settings, catalogue, TwoLinear(catalogue, settings.hidden_size))

    def frozen(self) -> tuple[str, ...]:
        """Nothing, or positions and the encoder, as UniSRec's are."""
        return ("position.", "encoder.") if self.settings.freeze_encoder else ()


MODEL = ZESRec
