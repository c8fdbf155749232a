"""Text-conditioned pooling of frames, X-Pool (METHOD.md, section 7): a vector of each video for each text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from structalign.losses.similarity import full_precision


class TextPooling(nn.Module):
    """One head of cross-attention from a text to a video's frames, and a residual linear map.

    Parameters
    ----------
    width : int
        Of the joint space, D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_input, self.norm_attended, self.norm_output = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key, self.value, self.output, self.mlp = (_identity(width) for _ in range(5))

    def forward(self, text: Tensor, frames: Tensor, keep: Tensor | None = None) -> Tensor:
        """Pool every video for every text.

        Parameters
        ----------
        text : Tensor, shape (T, D)
            Global features; they need not be normalised.
        frames : Tensor, shape (V, N, D)
        keep : Tensor, shape (V, T, D), optional
            Factors on the residual linear map: dropout, drawn by the caller.

        Returns
        -------
        Tensor, shape (V, T, D)
            Not L2-normalised.
        """
        text, frames = self.norm_input(text), self.norm_input(frames)
        query, key = self.query(text), self.key(frames)  # [T,D], [V,N,D]
        # The output map comes before the weighted sum: weights sum to 1, and there are fewer frames than pairs.
        value = self.output(self.value(frames))  # [V,N,D]
        weights = (query @ key.mT / text.shape[-1] ** 0.5).softmax(dim=-1)  # [V,T,N]
        attended = self.norm_attended(weights @ value)  # [V,T,D]
        update = self.mlp(attended)
        return self.norm_output(attended + (update if keep is None else update * keep))

    def cosines(self, text: Tensor, frames: Tensor, keep: Tensor | None = None) -> Tensor:
        """Cosines (V, T) of texts (T, D) with what each makes of videos (V, N, D); `keep` as in `forward`."""
        pooled = self(text, frames, keep)  # [V,T,D]
        with full_precision(text.device):
            dtype = torch.promote_types(text.dtype, torch.float32)
            pooled, text = normalize(pooled.to(dtype), dim=-1), normalize(text.to(dtype), dim=-1)
            return torch.einsum("vtd,td->vt", pooled, text)


def _identity(width: int) -> nn.Linear:
    linear = nn.Linear(width, width)
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
