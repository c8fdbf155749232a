"""X-Pool's pooling of frames by a text."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from structalign.model.text_pooling import TextPooling


def pooling(width: int = 8) -> TextPooling:
    made = TextPooling(width)
    with torch.no_grad():
        for number, weight in enumerate(made.parameters()):
            weight.add_(0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
    return made


def test_it_is_attention_from_each_text_to_the_frames_of_each_video() -> None:
    """Against plain loops, one text and one video at a time."""
    pool, text, frames = pooling(), torch.randn(3, 8), torch.randn(4, 5, 8)
    keep = (torch.rand(4, 3, 8) > 0.3).float() / 0.7
    made = pool(text, frames, keep)
    for v in range(4):
        for t in range(3):
            expected = one(pool, text[t], frames[v], keep[v, t])
            torch.testing.assert_close(made[v, t], expected, rtol=1e-4, atol=1e-5)
            cosine = torch.cosine_similarity(text[t], expected, dim=0)
            torch.testing.assert_close(pool.cosines(text, frames, keep)[v, t], cosine, rtol=1e-4, atol=1e-5)


def one(pool: TextPooling, text: Tensor, frames: Tensor, keep: Tensor) -> Tensor:
    def norm(x: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
        return layer_norm(x, (len(text),), layer.weight, layer.bias)

    query = pool.query(norm(text, pool.norm_input))
    scores = [(query @ pool.key(norm(frame, pool.norm_input))).item() / math.sqrt(len(text)) for frame in frames]
    weights = torch.tensor(scores).softmax(0)
    attended = sum(w * pool.value(norm(f, pool.norm_input)) for w, f in zip(weights, frames, strict=True))
    attended = norm(pool.output(attended), pool.norm_attended)
    return norm(attended + pool.mlp(attended) * keep, pool.norm_output)


def test_untouched_maps_are_the_identity_and_a_single_frame_is_itself() -> None:
    pool, frames = TextPooling(16), torch.randn(2, 1, 16)
    made = pool(torch.randn(3, 16), frames)
    assert torch.allclose(made, layer_norm(frames, (16,)).expand(2, 3, 16), atol=1e-4)


def test_it_has_the_published_number_of_parameters() -> None:
    assert sum(weight.numel() for weight in TextPooling(512).parameters()) == 1_316_352  # of 152.59M
