"""Video proxy tokens, CLIP-ViP (METHOD.md, section 7): all frames of a video pass through the vision tower at once.

Shapes: B videos, N frames, P patches of a frame, M leading tokens (the class token and the proxies), W features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear
from torch.utils.checkpoint import checkpoint

from structalign.model.adapters import mix_heads, project

PROXIES = 4
FRAMES = 12
"""Temporal embeddings; for another number of frames they are interpolated."""


class VideoProxies(nn.Module):
    """Tokens that see all frames, and embeddings of when a frame was.

    Parameters
    ----------
    width : int
        Of the vision tower, W.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proxies = nn.Parameter(torch.randn(PROXIES, width))
        self.temporal = nn.Parameter(torch.zeros(FRAMES, width))

    def encode(self, visual: Any, patches: Tensor, recompute: bool = False) -> Tensor:
        """Encode videos with a vision tower of open_clip's: (B, W), pooled as the tower pools an image.

        Parameters
        ----------
        visual : Module
        patches : Tensor, shape (B, N, P, W)
            As `embed_patches` gives them.
        recompute : bool
            Compute blocks again in the backward pass.
        """
        leading = torch.cat([visual.class_embedding[None], self.proxies]) + visual.positional_embedding[0]  # [M,W]
        leading = visual.ln_pre(leading).expand(len(patches), -1, -1)  # [B,M,W]
        patches = visual.ln_pre(patches + self._when(patches.shape[1])[:, None])  # [B,N,P,W]
        for block in visual.transformer.resblocks:
            if recompute:
                leading, patches = checkpoint(attend_by_proxy, block, leading, patches, use_reentrant=False)
            else:
                leading, patches = attend_by_proxy(block, leading, patches)
        pooled, _ = visual._pool(torch.cat([leading[:, :1], patches.flatten(1, 2)], dim=1))  # [B,W]
        return pooled

    def _when(self, num_frames: int) -> Tensor:
        """Temporal embeddings (N, W)."""
        if num_frames == FRAMES:
            return self.temporal
        return interpolate(self.temporal.T[None], num_frames, mode="linear", align_corners=True)[0].T


def embed_patches(visual: Any, images: Tensor) -> Tensor:
    """Embed images (I, 3, H, W) as patches with their positions: (I, P, W), before the tower's first norm."""
    return visual.conv1(images).flatten(2).mT + visual.positional_embedding[1:]  # type: ignore[no-any-return]


def attend_by_proxy(block: Any, leading: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
    """Residual attention block in which leading tokens see everything, and patches those and their own frame.

    Parameters
    ----------
    block : ResidualAttentionBlock
        Of open_clip's.
    leading : Tensor, shape (B, M, W)
    patches : Tensor, shape (B, N, P, W)

    Returns
    -------
    leading : Tensor, shape (B, M, W)
    patches : Tensor, shape (B, N, P, W)
    """
    num_frames, attention = patches.shape[1], block.attn
    normed, seen = block.ln_1(leading), block.ln_1(patches).flatten(0, 1)  # [B,M,W], [B*N,P,W]
    query, *led = project(attention, normed, normed)  # [B,M,W] each
    own_query, *own = project(attention, seen, seen)  # [B*N,P,W] each
    everything = [
        torch.cat([a, b.unflatten(0, (-1, num_frames)).flatten(1, 2)], 1) for a, b in zip(led, own, strict=True)
    ]
    nearby = [torch.cat([a.repeat_interleave(num_frames, 0), b], 1) for a, b in zip(led, own, strict=True)]
    mixed = mix_heads(attention, query, *everything)  # [B,M,W]
    mixed_own = mix_heads(attention, own_query, *nearby).unflatten(0, (-1, num_frames))  # [B,N,P,W]
    return _finish(block, leading, mixed), _finish(block, patches, mixed_own)


def _finish(block: Any, states: Tensor, mixed: Tensor) -> Tensor:
    """Add the output projection of the attention, then the MLP."""
    out = block.attn.out_proj
    states = states + block.ls_1(linear(mixed, out.weight, out.bias))
    return states + block.ls_2(block.mlp(block.ln_2(states)))  # type: ignore[no-any-return]
