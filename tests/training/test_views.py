"""What of its frames a video shows, at test time and in training."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from structalign.training import views
from structalign.training.views import View, augment, augment_on_gpu, draw_augmentation


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_center_crop_is_clips_own_preprocessing() -> None:
    """Bicubic resize of the shorter side and centre crop, as Pillow does it."""
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8).repeat(4, 0).repeat(4, 1)  # 80 x 120
    pixels = views.center_crop(torch.from_numpy(picture)[None].permute(0, 3, 1, 2), 32)
    resized = Image.fromarray(picture).resize((48, 32), Image.Resampling.BICUBIC).crop((8, 0, 40, 32))
    assert (pixels.shape, pixels.dtype) == ((1, 3, 32, 32), torch.uint8)
    assert (pixels[0].permute(1, 2, 0).int() - torch.from_numpy(np.array(resized)).int()).abs().max() <= 2


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 40), st.integers(0, 2**30), st.floats(0.05, 1))
def test_pixels_have_the_right_size(height: int, width: int, size: int, seed: int, smallest: float) -> None:
    frames = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    assert views.center_crop(frames, size).shape == (2, 3, size, size)
    augmented = train_pixels(frames, size, seeded(seed), smallest, flip=True)
    assert (augmented.shape, augmented.dtype) == ((2, 3, size, size), torch.uint8)


def train_pixels(frames: Tensor, size: int, generator: torch.Generator, smallest: float, flip: bool) -> Tensor:
    """Frames (N, 3, H, W) as one step of training sees them: (N, 3, size, size)."""
    return augment([frames], [draw_augmentation(frames, generator, smallest, flip)], size)[0]


def coordinates(height: int, width: int) -> Tensor:
    """Two equal frames whose red channel is x, and green y: crops can be read off them."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)]).to(torch.uint8).expand(2, 3, height, width)


def test_crops_keep_area_and_shape() -> None:
    frames, generator, shares = coordinates(200, 240), seeded(0), []
    for _ in range(200):
        red, green, _ = train_pixels(frames, 100, generator, 0.5, flip=False)[0].float()
        width = (red[50, 90] - red[50, 10]) / 80 * 100
        height = (green[90, 50] - green[10, 50]) / 80 * 100
        share = float(width * height / (200 * 240))
        shares.append(share)
        assert 0.46 < share < 1.04
        assert 0.7 < width / height < 1.4
    assert min(shares) < 0.55
    assert max(shares) > 0.9


def test_all_frames_of_a_video_are_cropped_alike() -> None:
    generator = seeded(1)
    for _ in range(20):
        first, second = train_pixels(coordinates(60, 80), 32, generator, 0.5, flip=True)
        assert torch.equal(first, second)


def test_flips_happen_half_of_the_time_and_only_if_wanted() -> None:
    def mirrored(flip: bool) -> int:
        generator = seeded(2)
        pixels = [train_pixels(coordinates(60, 80), 32, generator, 0.5, flip)[0, 0] for _ in range(200)]
        return sum(int(red[16, 31] < red[16, 0]) for red in pixels)

    assert mirrored(flip=False) == 0
    assert 70 < mirrored(flip=True) < 130


def test_flipping_does_not_move_crops() -> None:
    for seed in range(10):
        kept, turned = (train_pixels(coordinates(60, 80), 32, seeded(seed), 0.5, flip) for flip in (False, True))
        assert torch.equal(kept, turned) or torch.equal(kept, turned.flip(-1))


# By matrix products, as on a GPU


@settings(deadline=None, max_examples=60)
@given(st.integers(4, 70), st.integers(4, 70), st.integers(8, 40), st.integers(0, 2**30), st.floats(0.05, 1))
def test_products_cut_as_pytorch_resizes(height: int, width: int, size: int, seed: int, smallest: float) -> None:
    generator = seeded(seed)
    frames = torch.randint(0, 256, (3, 2, 3, height, width), dtype=torch.uint8, generator=generator)
    drawn = [draw_augmentation(video, generator, smallest, flip=True) for video in frames]
    for video, view, cut in zip(frames, drawn, augment_on_gpu(list(frames), drawn, size), strict=True):
        part = video[..., view.top : view.top + view.height, view.left : view.left + view.width].float()
        wanted = interpolate(part, (size, size), mode="bicubic", antialias=True).clamp(0, 255)
        wanted = wanted.flip(-1) if view.mirrored else wanted
        assert cut.dtype == torch.uint8
        assert (cut - wanted).abs().max() <= 0.51  # rounded


def test_a_cut_of_the_right_size_is_kept_to_the_bit() -> None:
    frames = torch.randint(0, 256, (1, 2, 3, 30, 40), dtype=torch.uint8)
    (cut,) = augment_on_gpu(list(frames), [View(3, 5, 16, 16, mirrored=True)], 16)
    assert torch.equal(cut, frames[0, ..., 3:19, 5:21].flip(-1))


def test_videos_of_several_sizes_keep_their_order() -> None:
    videos = [coordinates(60, 80), coordinates(48, 64), coordinates(60, 80), coordinates(80, 60)]
    drawn = [draw_augmentation(frames, seeded(number), 0.5, flip=True) for number, frames in enumerate(videos)]
    seen = augment_on_gpu(videos, drawn, 32)
    assert seen.is_contiguous()
    assert (seen.int() - augment(videos, drawn, 32).int()).abs().max() <= 1
