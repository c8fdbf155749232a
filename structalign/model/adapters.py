"""Adapters that stand in for the attention of a frozen CLIP block (METHOD.md, section 2).

Each replaces a block's `nn.MultiheadAttention`, keeps its call, and holds it as `base`. Untouched, each gives
exactly what the frozen attention gives.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear, scaled_dot_product_attention, softplus

PROJECTIONS = ("q", "k", "v", "out")


@dataclass
class Context:
    """What adapters need to know of the batch that passes through; the encoder sets it before each pass.

    Attributes
    ----------
    num_frames : int
        Frames per video, N.
    end : Tensor, shape (T,)
        Position of each text's end token.
    prototype : Tensor, shape (width,), or None
        The task prototype p_t; None for task 1, which bypasses the router.
    task : int
        The task that reads the batch, from 1.
    """

    num_frames: int = 1
    end: Tensor | None = None
    prototype: Tensor | None = None
    task: int = 1


def project(attention: nn.MultiheadAttention, query: Tensor, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (T, Q, W) of `query`, keys and values (T, L, W) of `states`, with the packed weights of `attention`."""
    weight, bias, width = attention.in_proj_weight, attention.in_proj_bias, attention.embed_dim
    if query is states:
        return linear(states, weight, bias).chunk(3, dim=-1)  # type: ignore[return-value]
    key, value = linear(states, weight[width:], bias[width:]).chunk(2, dim=-1)
    return linear(query, weight[:width], bias[:width]), key, value


def mix_heads(
    attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Attend with each head, up to the output projection: (T, L, W)."""
    heads = [part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in (query, key, value)]
    mixed = scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=mask)  # [T,H,L,W/H]
    return mixed.transpose(1, 2).flatten(2)  # [T,L,W]


def attend(attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend and project the outcome: (T, L, W)."""
    return attention.out_proj(mix_heads(attention, query, key, value))


def noisy_top_k(logits: Tensor, noise: Tensor | None, top_k: int) -> tuple[Tensor, Tensor]:
    """Pick the experts that answer (METHOD.md, section 2).

    Parameters
    ----------
    logits : Tensor, shape (..., E)
        The router's, of each input.
    noise : Tensor, shape (..., E), optional
        In training, Gaussian noise of standard deviation softplus(noise) + 0.01 is added to them.
    top_k : int
        How many of the E experts answer, k.

    Returns
    -------
    gates : Tensor, shape (..., k)
        Softmax over the logits of those that answer.
    which : Tensor, shape (..., k), int64
        Their numbers.
    """
    if noise is not None:
        logits = logits + torch.randn_like(logits) * (softplus(noise) + 0.01)
    best, which = logits.topk(top_k, dim=-1)
    return best.softmax(dim=-1).to(logits.dtype), which


class FrameFusionAttention(nn.Module):
    """Mix a frame's own attention with attention from a neighbouring frame.

    (1 - a) * own + a * cross, with a learned scalar a that starts at 0. Cross takes keys and values from frame n
    and queries from frame n-1 in even blocks (frame 0 queries itself), n+1 in odd ones (the last queries itself).
    It starts as a copy of the block's own attention.

    Parameters
    ----------
    base : MultiheadAttention
        The frozen attention of the block.
    block : int
        Number of the block within the tower, from 0.
    context : Context
    """

    def __init__(self, base: nn.MultiheadAttention, block: int, context: Context) -> None:
        super().__init__()
        self.base = base
        self.cross = copy.deepcopy(base)
        self.gate = nn.Parameter(torch.zeros(1))
        self.backward_looking = block % 2 == 0
        self.context = context

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Attend within frames and across neighbours: `query` (B*N, Q, W) to tokens `key` = `value` (B*N, P, W)."""
        own = attend(self.base, *project(self.base, query, key))
        queries, keys, values = project(self.cross, query, key)
        cross = attend(self.cross, self._neighbour(queries), keys, values)
        # Mixed precision ends here: half precision rounds a small share of a small difference away.
        dtype = torch.promote_types(own.dtype, self.gate.dtype)
        return torch.lerp(own.to(dtype), cross.to(dtype), self.gate.to(dtype)), None

    def _neighbour(self, tokens: Tensor) -> Tensor:
        """Put what the neighbouring frame's tokens gave in the place of each frame's: (B*N, Q, W)."""
        frames = tokens.unflatten(0, (-1, self.context.num_frames))  # [B,N,Q,W]
        if self.backward_looking:
            shifted = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
        else:
            shifted = torch.cat([frames[:, 1:], frames[:, -1:]], dim=1)
        return shifted.flatten(0, 1)


class LoRA(nn.Module):
    """A low-rank update of one projection: scale * B A x, with dropout on A's input.

    Parameters
    ----------
    inputs, outputs : int
        Width of the projection's input and output.
    rank : int
    alpha : float
        The update is scaled by alpha / rank.
    dropout : float
    """

    def __init__(self, inputs: int, outputs: int, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.scale, self.dropout = alpha / rank, dropout
        self.A = nn.Parameter(torch.empty(rank, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, states: Tensor) -> Tensor:
        """Map states (T, L, inputs) to the update (T, L, outputs)."""
        hidden = linear(dropout(states, self.dropout, self.training), self.A)  # [T,L,r]
        return linear(self.scale * hidden, self.B)


class LoRAExperts(nn.Module):
    """A mixture of low-rank updates: one A, E matrices B_e, and a router that weighs them per text.

    The router sees the end token's vector in the projection's own input, plus the task prototype. In training,
    Gaussian noise of standard deviation softplus(linear(.)) + 0.01 is added to its logits; the softmax over the
    `top_k` highest gives the gates. Without a prototype (task 1) expert 1 answers alone.

    Parameters
    ----------
    inputs, outputs, rank, alpha, dropout
        As for `LoRA`.
    experts : int
    top_k : int
    context : Context
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rank: int,
        alpha: float,
        dropout: float,
        experts: int,
        top_k: int,
        context: Context,
    ) -> None:
        super().__init__()
        self.scale, self.dropout, self.top_k = alpha / rank, dropout, top_k
        self.context = context
        self.A = nn.Parameter(torch.empty(rank, inputs))
        self.B = nn.Parameter(torch.zeros(experts, outputs, rank))
        self.router = nn.Linear(inputs, experts, bias=False)
        self.noise = nn.Linear(inputs, experts, bias=False)
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        nn.init.zeros_(self.noise.weight)

    def forward(self, states: Tensor) -> Tensor:
        """Map states (T, L, inputs) to the mixed update (T, L, outputs)."""
        return mixed_updates([self], states)[0]

    @torch.no_grad()
    def copy_first_expert(self) -> None:
        """Hand what expert 1 learnt in task 1 to all others."""
        self.B.copy_(self.B[:1].expand_as(self.B))


def mixed_updates(mixtures: Sequence[LoRAExperts], states: Tensor) -> Tensor:
    """Updates of U mixtures of the same size that read the same states, as few large products.

    Parameters
    ----------
    mixtures : sequence of LoRAExperts
    states : Tensor, shape (T, L, inputs)

    Returns
    -------
    Tensor, shape (U, T, L, outputs)
    """
    first = mixtures[0]
    dropped = dropout(states.expand(len(mixtures), -1, -1, -1), first.dropout, first.training)  # [U,T,L,W]
    down = torch.stack([mixture.A for mixture in mixtures])  # [U,r,W]
    hidden = torch.bmm(dropped.flatten(1, 2), down.mT).unflatten(1, states.shape[:2])  # [U,T,L,r]
    if first.context.prototype is None:
        up = torch.stack([mixture.B[0] for mixture in mixtures])  # [U,out,r]
        return torch.bmm(first.scale * hidden.flatten(1, 2), up.mT).unflatten(1, states.shape[:2])
    gates = first.scale * mixed_gates(mixtures, states, first.context.prototype)  # [U,T,E]
    up = torch.stack([mixture.B for mixture in mixtures])  # [U,E,out,r]
    # Mixing the small matrices first makes one batched product of what would be E full-size updates.
    mixed = torch.bmm(gates, up.flatten(2)).unflatten(2, up.shape[2:])  # [U,T,out,r]
    return torch.bmm(hidden.flatten(0, 1), mixed.flatten(0, 1).mT).unflatten(0, hidden.shape[:2])


def mixed_gates(mixtures: Sequence[LoRAExperts], states: Tensor, prototype: Tensor) -> Tensor:
    """Weigh the experts of U mixtures for each text: (U, T, E), `top_k` of them above 0, summing to 1."""
    first = mixtures[0]
    rows = torch.arange(len(states), device=states.device)
    seen = states[rows, first.context.end] + prototype  # [T,inputs]
    maps = [mixture.router.weight for mixture in mixtures]
    if first.training:
        maps += [mixture.noise.weight for mixture in mixtures]
    scores = linear(seen, torch.cat(maps)).unflatten(1, (-1, len(first.B)))  # [T,U,E], then as many for the noise
    logits, *noise = scores.transpose(0, 1).split(len(mixtures))  # [U,T,E]
    gates, which = noisy_top_k(logits, noise[0] if noise else None, first.top_k)  # [U,T,k]
    return gates.new_zeros(logits.shape).scatter(-1, which, gates)


class LoRAAttention(nn.Module):
    """The frozen attention with updates on some of its projections.

    Parameters
    ----------
    base : MultiheadAttention
        The frozen attention of the block; batch first, with packed q, k, v.
    projections : iterable of str
        Which of q, k, v, out get an update.
    make : callable
        Makes an update for a given input and output width.
    """

    def __init__(
        self,
        base: nn.MultiheadAttention,
        projections: Iterable[str],
        make: Callable[[int, int], nn.Module],
    ) -> None:
        super().__init__()
        self.base = base
        width = base.embed_dim
        self.updates = nn.ModuleDict({name: make(width, width) for name in projections})

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Attend within sequences: `query` (T, Q, W) to states `key` = `value` (T, L, W)."""
        parts = zip(project(self.base, query, key), self._updates(query, key), strict=True)
        queries, keys, values = (part + update for part, update in parts)  # [T,Q,W], [T,L,W], [T,L,W]
        mixed = mix_heads(self.base, queries, keys, values, attn_mask)  # [T,Q,W]
        result = self.base.out_proj(mixed)
        if "out" in self.updates:
            result = result + self.updates["out"](mixed)
        return result, None

    def _updates(self, query: Tensor, key: Tensor) -> Iterable[Tensor]:
        """Updates of queries (T, Q, W), keys and values (T, L, W)."""
        updates = [self.updates[name] for name in "qkv"]
        if query is key and isinstance(updates[0], LoRAExperts):
            return mixed_updates(updates, query)  # type: ignore[arg-type]
        return [update(states) for update, states in zip(updates, (query, key, key), strict=True)]
