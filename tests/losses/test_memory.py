"""The memory of old classes: its statistics, how it grows, and what is drawn from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from structalign.losses.memory import PrototypeMemory, class_statistics
from structalign.util.checkpoint import load_tensors, save_tensors
from structalign.util.errors import UserError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=30, deadline=None)
@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=20), seed=st.integers(0, 2**16))
def test_statistics_equal_those_class_by_class(labels: list[int], seed: int) -> None:
    features = torch.randn(len(labels), 3, generator=seeded(seed), dtype=torch.float64)
    classes, means, radii = class_statistics(features, torch.tensor(labels))
    assert classes.tolist() == sorted(set(labels))
    for row, name in enumerate(classes):
        own = features[torch.tensor(labels) == name]
        torch.testing.assert_close(means[row], own.mean(0))
        trace = own.var(0, correction=1).sum() if len(own) > 1 else torch.tensor(0.0)
        assert float(radii[row]) == pytest.approx(float((trace / 3).sqrt()), abs=1e-12)


def test_statistics_do_not_lose_a_small_spread_to_a_large_mean() -> None:
    features = 1e6 + 1e-3 * torch.randn(500, 8, generator=seeded(), dtype=torch.float64)
    _, _, exact = class_statistics(features, torch.zeros(500, dtype=torch.long))
    assert float(exact) == pytest.approx(1e-3, rel=0.05)


def test_statistics_need_finite_samples() -> None:
    with pytest.raises(UserError, match="no samples"):
        class_statistics(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    features = torch.ones(4, 3)
    features[2, 0] = torch.nan
    with pytest.raises(UserError, match=r"\[9\]"):
        class_statistics(features, torch.tensor([5, 5, 9, 5]))


def task(first: int, counts: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Texts, two a video, and videos of classes first, first + 1, ... with so many videos each; means lie apart."""
    category = torch.repeat_interleave(torch.arange(len(counts)) + first, torch.tensor(counts))
    captions = category.repeat_interleave(2)
    noise = seeded(seed)
    text = captions[:, None] * 10.0 + torch.randn(len(captions), 4, generator=noise)
    video = category[:, None] * -10.0 + 2 * torch.randn(len(category), 4, generator=noise)
    return text, captions, video, category


def test_tasks_add_up_under_global_ids() -> None:
    first, second = task(0, [5, 5]), task(2, [8, 3])
    memory = PrototypeMemory().add(*first).add(*second)
    assert memory.classes.tolist() == [0, 1, 2, 3]
    assert memory.counts.tolist() == [10, 10, 16, 6]
    joint = PrototypeMemory().add(*(torch.cat(parts) for parts in zip(first, second, strict=True)))
    for name, value in joint.to_tensors().items():
        torch.testing.assert_close(getattr(memory, name), value)


def test_a_class_cannot_be_learnt_twice() -> None:
    memory = PrototypeMemory().add(*task(0, [3, 3]))
    with pytest.raises(ValueError, match=r"\[1\]"):
        memory.add(*task(1, [3, 3]))


def test_texts_and_videos_must_be_of_the_same_classes() -> None:
    text, captions, video, category = task(0, [3, 3])
    with pytest.raises(ValueError, match="videos of"):
        PrototypeMemory().add(text, captions, video[:3], category[:3])


def test_draws_have_the_remembered_means_and_radii() -> None:
    memory = PrototypeMemory().add(*task(0, [30, 30]))
    text, video, category = memory.draw(20_000, seeded(1))
    for side, means, radii in (
        (text, memory.text_means, memory.text_radii),
        (video, memory.video_means, memory.video_radii),
    ):
        classes, drawn_means, drawn_radii = class_statistics(side, category)
        assert classes.tolist() == [0, 1]
        torch.testing.assert_close(drawn_means, means, rtol=0, atol=0.1)
        torch.testing.assert_close(drawn_radii, radii, rtol=0.03, atol=0)


def test_both_halves_of_a_pair_are_of_one_class_with_noise_of_their_own() -> None:
    memory = PrototypeMemory().add(*task(0, [30, 30, 30]))
    text, video, category = memory.draw(5000, seeded(2))
    assert torch.equal((text.mean(1) / 10).round().long(), category)
    assert torch.equal((video.mean(1) / -10).round().long(), category)
    ours = (text - memory.text_means[category]).flatten()
    theirs = (video - memory.video_means[category]).flatten()
    assert abs(float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1])) < 0.03


@pytest.mark.parametrize(("balanced", "shares"), [(True, [0.25] * 4), (False, [0.64, 0.16, 0.16, 0.04])])
def test_balance_on_an_imbalanced_split(balanced: bool, shares: list[float]) -> None:
    memory = PrototypeMemory().add(*task(0, [64, 16])).add(*task(2, [16, 4]))
    _, _, category = memory.draw(20_000, seeded(3), balanced=balanced)
    drawn = torch.bincount(category, minlength=4) / len(category)
    torch.testing.assert_close(drawn, torch.tensor(shares), rtol=0, atol=0.02)


def test_the_generator_decides() -> None:
    memory = PrototypeMemory().add(*task(0, [5, 5]))
    again = [memory.draw(6, seeded(4)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*again, strict=True))
    assert not torch.equal(again[0][0], memory.draw(6, seeded(5))[0])


def test_there_is_nothing_to_draw_before_the_first_task() -> None:
    with pytest.raises(ValueError, match="no classes"):
        PrototypeMemory().draw(4, seeded())


def test_a_stored_memory_is_the_same_memory(tmp_path: Path) -> None:
    memory = PrototypeMemory().add(*task(0, [5, 5]))
    save_tensors({**memory.to_tensors(), "text_proj": torch.ones(2, 2)}, tmp_path / "memory.safetensors")
    loaded = PrototypeMemory.from_tensors(load_tensors(tmp_path / "memory.safetensors"))
    for name, value in memory.to_tensors().items():
        assert torch.equal(getattr(loaded, name), value)
    assert len(PrototypeMemory.from_tensors({"text_proj": torch.ones(2, 2)})) == 0


def test_an_empty_memory_survives_storage() -> None:
    assert len(PrototypeMemory.from_tensors(PrototypeMemory().to_tensors())) == 0


def test_half_a_memory_is_refused() -> None:
    tensors = PrototypeMemory().add(*task(0, [5, 5])).to_tensors()
    with pytest.raises(UserError, match="video_radii missing"):
        PrototypeMemory.from_tensors({name: value for name, value in tensors.items() if name != "video_radii"})
    with pytest.raises(UserError, match="number of classes"):
        PrototypeMemory.from_tensors({**tensors, "video_radii": torch.ones(1)})
