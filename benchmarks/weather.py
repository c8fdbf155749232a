"""How many videos of each family the tiny CLIP finds, untrained, in the weather of each.

    python -m benchmarks.weather              as the strengths in structalign/data/weather.py are
    python -m benchmarks.weather --even 16    look for strengths at which about 16% of each family are found

Test videos of the tuning seed 100, ranked among those of all families by the cosine of global features. R@1 of the
second column is among the family's own videos. A round of the search moves each family's strength up if more of its
videos are found than wanted, and down if fewer are; the best of the rounds is printed, to be copied. The
search starts from the strengths that are there.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.step import composed
from structalign.config.schema import ModelConfig
from structalign.data.datasets.creatures import Family, Scene, _plan, families, film
from structalign.data.weather import WEATHER
from structalign.evaluation.reference import zero_shot_ranks
from structalign.losses.contrastive import pool_frames
from structalign.model.retriever import Retriever
from structalign.pretraining.tiny_clip import tiny_clip
from structalign.training.views import center_crop

SEED = 100
"""Of the tuning data: no result uses it."""

STEP = 0.012
"""How far a strength moves for each percent of recall too many or too few, in the first round."""


class Zoo:
    """As many test videos of every family, and how many of them CLIP finds."""

    def __init__(self, model: ModelConfig, videos: int) -> None:
        self.videos = videos
        clip, info = tiny_clip()
        self.retriever = Retriever(clip, info, model, num_tasks=1, seed=0).eval()
        self.families = families(len(WEATHER))
        plans = [
            _plan(family, np.random.default_rng([SEED, family.number]), {"test": videos}) for family in self.families
        ]
        captions = [clip.captions[0] for plan in plans for clip, _ in plan]
        tokens = self.retriever.tokenize(captions)
        self.text = normalize(self.retriever.encode_text(tokens, 1)[-1], dim=-1)  # [F*V,D]
        self.scenes = [[scene for _, scene in plan] for plan in plans]
        self.seen: dict[tuple[str, float], Tensor] = {}

    def recall(self) -> tuple[Tensor, Tensor]:
        """R@1 (percent) of each family (F,): among all videos, and among its own."""
        video = torch.cat([self._videos(family) for family in self.families])  # [F*V,D]
        every = zero_shot_ranks(self.text, video, torch.arange(len(video)))
        blocks = zip(self.text.split(self.videos), video.split(self.videos), strict=True)
        own = torch.cat([zero_shot_ranks(*block, torch.arange(self.videos)) for block in blocks])
        found, within = ((ranks == 1).float().view(-1, self.videos).mean(dim=1) * 100 for ranks in (every, own))
        return found, within

    def _videos(self, family: Family) -> Tensor:
        """Global features (V, D) of a family in its present weather."""
        key = family.weather, WEATHER[family.weather][1]
        if key not in self.seen:
            scenes = self.scenes[family.number]
            self.seen[key] = pool_frames(torch.cat([self._frames(scene) for scene in scenes]))
        return self.seen[key]

    def _frames(self, scene: Scene) -> Tensor:
        """Frame features (1, 4, D) of a video."""
        frames = torch.from_numpy(film(scene)[1::3]).permute(0, 3, 1, 2)  # [4,3,H,W]
        pixels = center_crop(frames, self.retriever.image_size)  # [4,3,S,S]
        return self.retriever.encode_video(pixels[None])[0]


def even(zoo: Zoo, target: float, rounds: int) -> None:
    """Move strengths until the families' recall is as near the target as it gets."""
    best = float("inf"), dict(WEATHER)
    for turn in range(rounds):
        found = zoo.recall()[0]
        away = (found - target).square().mean().sqrt().item()
        print(f"round {turn + 1}: R@1 {found.mean():.1f}, from {found.min():.0f} to {found.max():.0f}", flush=True)
        best = min(best, (away, dict(WEATHER)), key=lambda pair: pair[0])
        for (name, (change, strength)), share in zip(list(WEATHER.items()), found.tolist(), strict=True):
            move = np.clip(STEP * 0.92**turn * (share - target), -0.15, 0.15)
            WEATHER[name] = change, round(float(np.clip(strength + move, 0.1, 1)), 2)
    WEATHER.update(best[1])


@torch.inference_mode()
def main() -> None:
    """Print a family a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--even", type=float, metavar="R@1")
    parser.add_argument("--rounds", type=int, default=14)
    parser.add_argument("--videos", type=int, default=50, help="of each family")
    options = parser.parse_args()
    zoo = Zoo(composed([]).model, options.videos)
    if options.even is not None:
        even(zoo, options.even, options.rounds)
    found, within = zoo.recall()
    for family, one, other in zip(zoo.families, found.tolist(), within.tolist(), strict=True):
        print(f"{family.weather:10} {WEATHER[family.weather][1]:.2f}   {one:4.0f}%  {other:4.0f}%   {family.name}")
    print(f"all               {found.mean():4.1f}% {within.mean():5.1f}%")


if __name__ == "__main__":
    main()
