"""Prompts for a frozen attention: learnt keys and values that every token attends to (METHOD.md, section 7)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from structalign.model.adapters import Context, mix_heads, project

_KEY_STD = 0.02


class PromptedAttention(nn.Module):
    """The frozen attention with prompts before the tokens' keys and values; no query is added.

    Values start at 0 and keys near it, so that untouched prompts take a share of every softmax and add nothing. With
    n prompts and L tokens whose logits are all alike, the mixed values shrink by n / (n + L); sharper attention
    loses less.

    Parameters
    ----------
    base : MultiheadAttention
        The frozen attention of the block; batch first, with packed q, k, v.
    length : int
        Prompts in a set.
    num_tasks : int or None
        Sets to provide, one a task, of which the present task's is used; None: one set that all tasks share.
    context : Context
        Says which task reads the batch.
    """

    def __init__(self, base: nn.MultiheadAttention, length: int, num_tasks: int | None, context: Context) -> None:
        super().__init__()
        self.base, self.context = base, context
        self.general = _prompts(length, base.embed_dim) if num_tasks is None else None
        self.prompts = nn.ParameterList(_prompts(length, base.embed_dim) for _ in range(num_tasks or 0))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Attend within sequences: `query` (T, Q, W) to the prompts and to states `key` = `value` (T, L, W)."""
        chosen = self.prompts[self.context.task - 1] if self.general is None else self.general  # [2,n,W]
        q, k, v = project(self.base, query, key)  # [T,Q,W], [T,L,W], [T,L,W]
        k, v = (
            torch.cat([part.to(own).expand(len(own), -1, -1), own], 1)
            for part, own in zip(chosen, (k, v), strict=True)
        )
        if attn_mask is not None:
            attn_mask = pad(attn_mask, (chosen.shape[1], 0))  # [Q,n+L]: an additive mask, and prompts are seen
        return self.base.out_proj(mix_heads(self.base, q, k, v, attn_mask)), None


def _prompts(length: int, width: int) -> nn.Parameter:
    """Keys and values (2, length, width)."""
    return nn.Parameter(torch.stack([torch.randn(length, width) * _KEY_STD, torch.zeros(length, width)]))
