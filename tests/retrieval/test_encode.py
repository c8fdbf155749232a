"""Captions in batches of similar length."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from structalign.retrieval import encode
from structalign.retrieval.encode import pooled_texts, token_batches

END = 99


class Spelling(nn.Module):
    """Stands in for a retriever: a token is a letter's place in the alphabet, a word's feature is (1, token)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.device = torch.device("cpu")

    def tokenize(self, texts: list[str]) -> Tensor:
        rows = [[ord(letter) - 96 for letter in text] + [END] for text in texts]
        return torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])

    def encode_text(self, tokens: Tensor, task: int) -> tuple[Tensor, Tensor, Tensor]:
        words = torch.stack([torch.ones_like(tokens), tokens], dim=-1).float()  # [b,L,2]
        return words, (tokens > 0) & (tokens < END), words.amax(dim=1)


CAPTIONS = ["ccc", "a", "bbbbbb", "d", "ee", "f"]


def test_a_batch_is_padded_to_captions_of_its_own_length() -> None:
    batches = list(token_batches(Spelling(), CAPTIONS, size=2))  # type: ignore[arg-type]
    assert [places.tolist() for places, _ in batches] == [[1, 3], [5, 4], [0, 2]]
    assert [tokens.shape[1] for _, tokens in batches] == [2, 3, 7]


@pytest.mark.parametrize(("limit", "sizes"), [(100, [6]), (14, [4, 2]), (7, [3, 1, 1, 1]), (1, [1] * 6)])
def test_long_captions_come_in_smaller_batches(monkeypatch: pytest.MonkeyPatch, limit: int, sizes: list[int]) -> None:
    monkeypatch.setattr(encode, "BATCH_TOKENS", limit)
    batches = list(token_batches(Spelling(), CAPTIONS))  # type: ignore[arg-type]
    assert [len(places) for places, _ in batches] == sizes
    assert sorted(torch.cat([places for places, _ in batches]).tolist()) == list(range(len(CAPTIONS)))


def test_features_stand_in_the_order_of_the_captions() -> None:
    features = pooled_texts(Spelling(), CAPTIONS, 1)  # type: ignore[arg-type]
    torch.testing.assert_close(features[:, 1] / features[:, 0], torch.tensor([3.0, 1, 2, 4, 5, 6]))
