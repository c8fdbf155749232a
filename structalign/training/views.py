"""How frames become the pixels that the model sees: at test time the centre, in training a random view.

In training each video is augmented as a whole: all its frames get the same crop and flip.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def center_crop(frames: Tensor, size: int) -> Tensor:
    """Resize the shorter side to `size` (bicubic) and crop the centre: uint8 (N, 3, H, W) to (N, 3, size, size)."""
    height, width = frames.shape[-2:]
    scale = size / min(height, width)
    resized = _resize(frames, (max(size, round(height * scale)), max(size, round(width * scale))))
    top, left = (resized.shape[-2] - size) // 2, (resized.shape[-1] - size) // 2
    return _as_bytes(resized[..., top : top + size, left : left + size])


class View(NamedTuple):
    """How a video is seen once: what is cut out of its frames, and whether they are mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


def draw_augmentation(frames: Tensor, generator: torch.Generator, crop_scale: float, flip: bool) -> View:
    """Draw what a video shows in training.

    Parameters
    ----------
    frames : Tensor, shape (N, 3, H, W)
    generator : Generator
    crop_scale : float
        Smallest share of the area that the crop keeps; its sides' ratio lies between 3/4 and 4/3.
    flip : bool
        Whether to mirror half of the videos.
    """
    box = _crop_box(frames.shape[-2], frames.shape[-1], generator, crop_scale)
    # Drawn in any case: crops do not depend on `flip`.
    mirrored = bool(torch.rand((), generator=generator) < 0.5)
    return View(*box, mirrored=mirrored and flip)


def _crop_box(height: int, width: int, generator: torch.Generator, smallest: float) -> tuple[int, int, int, int]:
    """Draw top, left, height and width of a crop; after ten misfits, the largest centred one."""
    area, (low, high) = height * width, (math.log(3 / 4), math.log(4 / 3))
    for _ in range(10):
        share, shape, y, x = torch.rand(4, generator=generator).tolist()
        target = area * (smallest + (1 - smallest) * share)
        ratio = math.exp(low + (high - low) * shape)
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def augment(videos: Sequence[Tensor], views: Sequence[View], size: int) -> Tensor:
    """Crop, resize (bicubic) and mirror videos on their device.

    Parameters
    ----------
    videos : sequence of Tensor, each of shape (N, 3, H, W), uint8
        H and W may differ from video to video.
    views : sequence of View
    size : int

    Returns
    -------
    Tensor, shape (V, N, 3, size, size), uint8
        A GPU gives what the CPU gives, but for rounding, and overshoots between the CPU's two passes.
    """
    if videos[0].device.type == "cpu":
        return torch.stack([_cut(frames, view, size) for frames, view in zip(videos, views, strict=True)])
    return augment_on_gpu(videos, views, size)


def _cut(frames: Tensor, view: View, size: int) -> Tensor:
    part = frames[..., view.top : view.top + view.height, view.left : view.left + view.width]
    resized = _resize(part, (size, size))
    return resized.flip(-1) if view.mirrored else resized


def augment_on_gpu(videos: Sequence[Tensor], views: Sequence[View], size: int) -> Tensor:
    """Augment as `augment` does, by two matrix products for all videos of one size.

    A GPU would otherwise launch a dozen kernels for each video.
    """
    alike: dict[torch.Size, list[int]] = defaultdict(list)
    for place, frames in enumerate(videos):
        alike[frames.shape].append(place)
    parts = [
        _cut_alike(torch.stack([videos[place] for place in places]), [views[place] for place in places], size)
        for places in alike.values()
    ]
    order = torch.tensor([place for places in alike.values() for place in places]).argsort()
    return parts[0] if len(parts) == 1 else torch.cat(parts)[order]


def _cut_alike(frames: Tensor, views: Sequence[View], size: int) -> Tensor:
    """Views of frames (V, N, 3, H, W): (V, N, 3, size, size)."""
    boxes = torch.tensor(views).to(frames.device, non_blocking=True)  # [V,5]
    top, left, high, wide, mirrored = boxes.unbind(-1)
    down, across = _bicubic(top, high, frames.shape[-2], size), _bicubic(left, wide, frames.shape[-1], size)
    across = torch.where(mirrored[:, None, None] > 0, across.flip(1), across)  # [V,size,W]
    narrow = torch.einsum("vnchw,vxw->vnchx", frames.float(), across)  # [V,N,3,H,size]
    return _as_bytes(torch.einsum("vnchx,vyh->vncyx", narrow, down))


def _bicubic(start: Tensor, length: Tensor, pixels: int, size: int) -> Tensor:
    """Weights of a line's pixels in `size` pixels made of V cuts of it, as `interpolate` with antialias weighs them.

    Keys' cubic with a = -1/2, stretched by the factor that a cut shrinks by; pixels outside the cut count nothing.
    (V,) and (V,) to (V, size, pixels).
    """
    scale = length[:, None] / size  # [V,1]
    centre = (torch.arange(size, device=start.device) + 0.5) * scale  # [V,size]
    place = torch.arange(pixels, device=start.device) + 0.5 - start[:, None]  # [V,pixels]
    inside = (place > 0) & (place < length[:, None])
    x = ((place[:, None] - centre[:, :, None]) / scale.clamp(min=1)[:, None]).abs()  # [V,size,pixels]
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, far) * ((x < 2) & inside[:, None])
    return weights / weights.sum(dim=-1, keepdim=True)


def _resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bytes; a GPU resizes floats only, and returns them for `_as_bytes`."""
    frames = frames if frames.device.type == "cpu" else frames.float()
    if tuple(frames.shape[-2:]) == size:
        return frames
    return interpolate(frames, size, mode="bicubic", antialias=True)


def _as_bytes(frames: Tensor) -> Tensor:
    """Round what a GPU resized."""
    return frames if frames.dtype == torch.uint8 else frames.round().clamp(0, 255).to(torch.uint8)
