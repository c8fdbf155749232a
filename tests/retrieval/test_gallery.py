"""Galleries side by side: which of them a column of the scores belongs to."""

from __future__ import annotations

import pytest
import torch

from structalign.retrieval.gallery import TaskGallery, locate


def test_columns_count_the_videos_of_one_gallery_after_the_other() -> None:
    galleries = [
        TaskGallery(task, [f"{task}.{video}" for video in range(size)], [0] * size, [], [], torch.zeros(size, 1, 1))
        for task, size in ((1, 2), (2, 1), (3, 3))
    ]
    located = [locate(galleries, column) for column in range(6)]
    assert [gallery.clips[position] for gallery, position in located] == ["1.0", "1.1", "2.0", "3.0", "3.1", "3.2"]
    with pytest.raises(IndexError, match="beyond"):
        locate(galleries, 6)
