"""The same CLIP with less work: it skips what an image's feature does not depend on, and fuses QuickGELU.

Names of weights stay, and features change by rounding alone. benchmarks/step counts what each saves.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, silu

_SLOPE = 1.702


class _QuickGELU(torch.autograd.Function):
    """x * sigmoid(1.702 x), as silu(1.702 x) / 1.702: one exponential each way, and only x is kept."""

    @staticmethod
    def forward(ctx: Any, states: Tensor) -> Tensor:
        ctx.save_for_backward(states)
        return silu(_SLOPE * states, inplace=True).div_(_SLOPE)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (states,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradients[0], _SLOPE * states)  # type: ignore[no-any-return]


class QuickGELU(nn.Module):
    """What OpenAI's CLIP uses in place of GELU."""

    def forward(self, states: Tensor) -> Tensor:
        """Map states of any shape, element by element."""
        return _QuickGELU.apply(states)  # type: ignore[no-any-return]


def fuse_quick_gelu(clip: nn.Module) -> None:
    """Replace open_clip's QuickGELU, which takes three passes over memory each way."""
    for module in list(clip.modules()):
        for name, child in module.named_children():
            if type(child).__name__ == "QuickGELU":
                setattr(module, name, QuickGELU())


def embed_by_product(visual: Any) -> None:
    """Let a GPU embed patches that do not overlap with a matrix product: cuDNN has no fast kernel for them."""
    conv = visual.conv1
    if isinstance(conv, nn.Conv2d) and conv.kernel_size == conv.stride and conv.padding == (0, 0):
        conv.forward = partial(_embed_patches, conv)  # type: ignore[method-assign]


def _embed_patches(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """The patch embedding: images (I, 3, H, W) to (I, W', H/P, W/P)."""
    return patch_product(conv, images) if images.is_cuda else nn.Conv2d.forward(conv, images)


def patch_product(conv: nn.Conv2d, images: Tensor) -> Tensor:
    """What a convolution of patches that do not overlap gives, as a matrix product."""
    height, width = conv.kernel_size
    patches = images.unfold(2, height, height).unfold(3, width, width)  # [I,3,H/P,W/P,P,P]
    patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3)  # [I,H/P,W/P,3*P*P]
    return linear(patches, conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)


def skip_last_patches(visual: Any) -> None:
    """Let the last block of an image tower compute its CLS token alone, if the feature is that token's."""
    if getattr(visual, "pool_type", None) == "tok" and visual.attn_pool is None:
        block = visual.transformer.resblocks[-1]
        block.forward = partial(_first_token, block)


def _first_token(block: Any, states: Tensor, attn_mask: None = None) -> Tensor:
    """Residual attention block for the first token alone: (T, L, W) to (T, 1, W); images have no mask.

    Its patches still give keys and values; their own queries, MLPs and projections are what is spared.
    """
    normed = block.ln_1(states)  # [T,L,W]
    mixed = block.attn(normed[:, :1], normed, normed, need_weights=False)[0]  # [T,1,W]
    first = states[:, :1] + block.ls_1(mixed)
    return first + block.ls_2(block.mlp(block.ln_2(first)))  # type: ignore[no-any-return]
