"""LwF on a random vocabulary: the teacher is asked about randomly composed texts (METHOD.md, section 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from structalign.methods.base import Batch, DistillationMethod
from structalign.util.distributed import to_device


class VrLwF(DistillationMethod):
    """LwF whose distillation texts are random token sequences, as long as the batch's captions."""

    def start_epoch(self, generator: torch.Generator) -> None:
        """Random texts of this epoch come from this generator."""
        self.generator = generator

    def reference_tokens(self, batch: Batch) -> Tensor:
        """Replace every word of the batch's captions (B, L) by a random one; start, end and padding stay."""
        vocabulary = self.retriever.vocab_size - 2  # the last two are the start and the end token
        draw = torch.randint(1, vocabulary, batch.tokens.shape, generator=self.generator)
        return torch.where(self.retriever.word_mask(batch.tokens), to_device(draw, batch.tokens.device), batch.tokens)
