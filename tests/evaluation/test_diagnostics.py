"""What the record says of class means, with and without videos that are encoded again."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from structalign.evaluation.diagnostics import diagnose
from structalign.evaluation.record import measured_class_means
from structalign.retrieval.gallery import TaskGallery
from tests.retrieval.test_ranker import WIDTH, stored


class Aligning:
    """Stands in for a method that projects features to prototypes: here by a reflection."""

    def __init__(self, galleries_of: int) -> None:
        self.retriever, _ = stored()
        self.prototypes = torch.eye(WIDTH)[: 1 + galleries_of]

    def align(self, text: Tensor, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return -text, -video, self.prototypes


def diagnosed(videos_per_class: int) -> tuple[dict[str, Tensor], list[TaskGallery]]:
    _, galleries = stored()
    method = Aligning(len(galleries))
    clips = {clip: frames for g in galleries for clip, frames in zip(g.clips, g.frames, strict=True)}

    def encode(names: list[str], _task: int) -> Tensor:
        return torch.stack([clips[name] for name in names])

    return diagnose({}, galleries, method, encode, videos_per_class), galleries  # type: ignore[arg-type]


def test_texts_are_measured_alike_whether_videos_are_encoded_again_or_not() -> None:
    whole, _ = diagnosed(4)
    without, _ = diagnosed(0)
    assert without.keys() < whole.keys()
    assert not [name for name in without if "video" in name]
    for name in ("text/aligned", "text/scatter", "prototypes", "text/current", "drift/text"):
        assert torch.equal(whole[name], without[name]), name
    measured = measured_class_means(without)["text"]
    assert measured.prototypes is not None


def test_projected_means_are_those_of_unit_features() -> None:
    found, galleries = diagnosed(3)
    for place, gallery in enumerate(galleries):
        pooled = normalize(gallery.frames[:3].mean(dim=1), dim=-1)  # as they are pooled, L2-normalised
        torch.testing.assert_close(found["video/aligned"][place], -pooled.mean(dim=0), rtol=0, atol=1e-5)
