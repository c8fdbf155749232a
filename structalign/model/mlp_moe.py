"""Adapter experts beside the frozen MLP of a CLIP block, picked by a router of the task (METHOD.md, section 7).

Each stands in the place of a block's MLP, keeps its call, and holds it as `base`. Untouched, it gives exactly what
the frozen MLP gives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from structalign.model.adapters import Context, noisy_top_k


class RoutedExperts(nn.Module):
    """The frozen MLP plus low-rank experts, scale * up(ReLU(down(x))), of which a router picks `top_k`.

    The router is the task's own: a linear map of one state of each image (its CLS token) or text (its end token),
    as it enters the MLP. It starts at 0, so that at first the noise of training spreads the work over all experts.

    Parameters
    ----------
    base : Module
        The frozen MLP of the block.
    width : int
        Width of the block.
    rank : int
        Width of an expert's hidden state.
    alpha : float
        What experts add is scaled by alpha / rank.
    dropout : float
        Dropout on the experts' hidden states.
    experts : int
        Number of experts, E.
    top_k : int
        Experts that answer for one image or text, k.
    num_tasks : int
        Routers to provide, one a task.
    context : Context
        Names the task, and where each text ends.
    at_end : bool
        True: the end token's state is routed. False: the first token's, which is CLS.

    Attributes
    ----------
    usage : Tensor, shape (E,), int64
        How often each expert was picked in training since the count was last set to 0.
    frozen : Tensor, shape (E,), bool
        Experts that keep what earlier tasks taught them: they answer, and take no gradient.
    """

    usage: Tensor
    frozen: Tensor

    def __init__(
        self,
        base: nn.Module,
        width: int,
        rank: int,
        alpha: float,
        dropout: float,
        experts: int,
        top_k: int,
        num_tasks: int,
        context: Context,
        at_end: bool,
    ) -> None:
        super().__init__()
        self.base, self.context = base, context
        self.rank, self.scale, self.dropout, self.top_k, self.at_end = rank, alpha / rank, dropout, top_k, at_end
        self.down = nn.Parameter(torch.empty(experts, rank, width).uniform_(-(width**-0.5), width**-0.5))
        self.up = nn.Parameter(torch.zeros(experts, rank, width))
        self.routers = nn.ParameterList(nn.Parameter(torch.zeros(experts, width)) for _ in range(num_tasks))
        self.noises = nn.ParameterList(nn.Parameter(torch.zeros(experts, width)) for _ in range(num_tasks))
        self.register_buffer("usage", torch.zeros(experts, dtype=torch.long), persistent=False)
        self.register_buffer("frozen", torch.zeros(experts, dtype=torch.bool), persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        """Map states (T, L, W) of T images or texts to what the MLP and the picked experts add: (T, L, W)."""
        gates, which = self.route(states)  # [T,k]
        picked = which[..., None] == torch.arange(len(self.usage), device=states.device)  # [T,k,E]
        if self.training:
            self.usage += picked.sum(dim=(0, 1))
        # Picking by a product with ones and zeros copies few small matrices; running all experts costs more.
        down = self._pick(self.down, picked).transpose(1, 2)  # [T,W,k*r]
        hidden = torch.bmm(states, down).relu() * gates.repeat_interleave(self.rank, dim=1)[:, None]  # [T,L,k*r]
        hidden = dropout(hidden, self.dropout, self.training)
        return self.base(states) + self.scale * torch.bmm(hidden, self._pick(self.up, picked))

    def route(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Pick experts for each image or text: gates (T, k), which sum to 1, and the experts' numbers (T, k)."""
        rows = torch.arange(len(states), device=states.device)
        seen = states[rows, self.context.end] if self.at_end else states[:, 0]  # [T,W]
        task = self.context.task - 1
        noise = linear(seen, self.noises[task]) if self.training else None
        return noisy_top_k(linear(seen, self.routers[task]), noise, self.top_k)

    def _pick(self, weight: Tensor, picked: Tensor) -> Tensor:
        """Matrices of the picked experts, one above the other: (T, k*r, W)."""
        if self.training:
            weight = torch.where(self.frozen[:, None, None], weight.detach(), weight)
        rows = picked.flatten(0, 1).to(weight.dtype) @ weight.flatten(1)  # [T*k,r*W]
        return rows.view(len(picked), -1, weight.shape[-1])

    @torch.no_grad()
    def freeze_most_used(self) -> None:
        """Freeze the `top_k` free experts that training used most, and start the count anew.

        Nothing is frozen if fewer than `top_k` experts would stay free for the tasks to come.
        """
        used = self.usage.masked_fill(self.frozen, -1)
        if int((~self.frozen).sum()) >= 2 * self.top_k:
            self.frozen[used.topk(self.top_k).indices] = True
        self.usage.zero_()

    def frozen_parameters(self) -> int:
        """Count the parameters of frozen experts."""
        return int(self.frozen.sum()) * (self.down[0].numel() + self.up[0].numel())
