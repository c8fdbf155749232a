"""Prompts before the keys and values of a frozen attention."""

from __future__ import annotations

import math

import torch
from open_clip.model import CLIP
from torch import Tensor, nn

from structalign.model.adapters import Context
from structalign.model.clip import ClipInfo
from structalign.model.prompts import PromptedAttention
from structalign.model.retriever import Retriever
from tests.helpers.params import config

WIDTH, HEADS, LENGTH = 16, 2, 3


def attention() -> nn.MultiheadAttention:
    torch.manual_seed(0)
    return nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval()


def drawn(num_tasks: int | None, context: Context) -> PromptedAttention:
    made = PromptedAttention(attention(), LENGTH, num_tasks, context)
    with torch.no_grad():
        for number, prompts in enumerate([*made.prompts, *filter(lambda part: part is not None, [made.general])]):
            prompts.copy_(torch.randn(prompts.shape, generator=torch.Generator().manual_seed(number)))
    return made


def reference(made: PromptedAttention, states: Tensor, prompts: Tensor, causal: bool) -> Tensor:
    """Plain loops over heads and queries of one sequence (L, W)."""
    base, size = made.base, WIDTH // HEADS
    query, key, value = (
        states @ w.T + b for w, b in zip(base.in_proj_weight.chunk(3), base.in_proj_bias.chunk(3), strict=True)
    )
    key, value = torch.cat([prompts[0], key]), torch.cat([prompts[1], value])
    rows = []
    for place, row in enumerate(query):
        seen = len(prompts[0]) + (place + 1 if causal else len(states))
        heads = []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            weights = (key[:seen, part] @ row[part] / math.sqrt(size)).softmax(0)
            heads.append(weights @ value[:seen, part])
        rows.append(base.out_proj(torch.cat(heads)))
    return torch.stack(rows)


def test_every_token_sees_the_prompts_and_none_is_added() -> None:
    made, states = drawn(None, Context()), torch.randn(2, 5, WIDTH)
    mask = torch.full((5, 5), -torch.inf).triu(1)
    with torch.no_grad():
        for causal in (False, True):
            found, _ = made(states, states, states, attn_mask=mask if causal else None)
            for one, sequence in zip(found, states, strict=True):
                torch.testing.assert_close(one, reference(made, sequence, made.general, causal), rtol=1e-4, atol=1e-5)


def test_each_task_reads_with_its_own_prompts() -> None:
    context = Context()
    made, states = drawn(2, context), torch.randn(1, 5, WIDTH)
    with torch.no_grad():
        for task in (1, 2):
            context.task = task
            expected = reference(made, states[0], made.prompts[task - 1], causal=False)
            torch.testing.assert_close(made(states, states, states)[0][0], expected, rtol=1e-4, atol=1e-5)


def test_untouched_prompts_shrink_what_is_mixed_by_their_share_of_the_softmax() -> None:
    """If all logits are alike, exactly n / (n + L)."""
    made, states = PromptedAttention(attention(), LENGTH, None, Context()), torch.randn(1, 5, WIDTH)
    with torch.no_grad():
        made.base.in_proj_weight[: 2 * WIDTH] = 0
        made.base.in_proj_bias[: 2 * WIDTH] = 0
        plain = made.base(states, states, states)[0] - made.base.out_proj.bias
        prompted = made(states, states, states)[0] - made.base.out_proj.bias
    torch.testing.assert_close(prompted, plain * 5 / (5 + LENGTH))


def test_general_prompts_train_throughout_and_experts_in_their_task() -> None:
    vision = {"image_size": 32, "layers": 6, "width": 32, "patch_size": 16, "head_width": 16}
    text = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 6}
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    settings = config("method=dual_prompts").model
    made = Retriever(CLIP(**model), ClipInfo("test", model, [0.5] * 3, [0.5] * 3), settings, num_tasks=3, seed=1)
    for task in (1, 2):
        made.prepare_task(task)
        trained = {name.rpartition(".attn.")[2] for name, weight in made.named_parameters() if weight.requires_grad}
        assert trained == {"general", f"prompts.{task - 1}"}
        shared, own = made.parameter_groups()
        assert (len(shared), len(own)) == (2 * 2, 2 * 3)  # two blocks and three, in each tower
    before, _ = made.encode_video(torch.randint(256, (2, 3, 3, 32, 32), dtype=torch.uint8), task=1)
    assert before.shape == (2, 3, 16)
    assert made.reads_by_task
