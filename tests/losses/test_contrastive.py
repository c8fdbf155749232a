"""Properties of the losses; the released code's numbers are in test_golden_functions.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from structalign.losses import contrastive as losses
from structalign.losses.etf import simplex_etf
from structalign.methods.base import Term, total
from structalign.model.text_pooling import TextPooling

SCALE = 1.3
B, L, N, D, C, P = 4, 3, 2, 5, 6, 3


@pytest.fixture
def batch() -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 1, 1]], dtype=torch.bool)
    return {
        "similarity": draw(B, B),
        "teacher": draw(B, B),
        "words": draw(B, L, D),
        "mask": mask,
        "frames": draw(B, N, D),
        "category": torch.tensor([0, 5, 2, 0]),
        "prototypes": simplex_etf(C, D),
        "text_proj": draw(D, D),
        "video_proj": draw(D, D),
        "pseudo_text": draw(P, D),
        "pseudo_video": draw(P, D),
        "pseudo_category": torch.tensor([1, 3, 3]),
    }


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(math.exp(value) for value in row))
    return [value - total for value in row]


def test_scl_by_hand(batch: dict[str, Tensor]) -> None:
    logits = batch["similarity"] * math.exp(SCALE) / 2
    rows = [-log_softmax(row)[i] for i, row in enumerate(logits.tolist())]
    columns = [-log_softmax(column)[i] for i, column in enumerate(logits.T.tolist())]
    assert float(losses.scl(batch["similarity"], SCALE)) == pytest.approx(sum(rows) / B + sum(columns) / B)


def test_a_number_for_a_scale_is_as_exact_as_a_tensor(batch: dict[str, Tensor]) -> None:
    as_tensor = losses.scl(batch["similarity"], torch.tensor(4.6, dtype=torch.float64))
    assert float(losses.scl(batch["similarity"], 4.6)) == pytest.approx(float(as_tensor), abs=1e-12)


VIDEO = torch.tensor([7, 8, 7, 9])


def test_another_caption_of_the_same_video_can_be_masked(batch: dict[str, Tensor]) -> None:
    logits = (batch["similarity"] * math.exp(SCALE) / 2).tolist()
    expected = 0.0
    for matrix in (logits, [list(column) for column in zip(*logits, strict=True)]):
        for i, row in enumerate(matrix):
            kept = [j for j in range(B) if j == i or VIDEO[j] != VIDEO[i]]
            expected -= log_softmax([row[j] for j in kept])[kept.index(i)] / B
    assert float(losses.scl(batch["similarity"], SCALE, "masked", VIDEO)) == pytest.approx(expected)


def test_another_caption_of_the_same_video_can_be_positive(batch: dict[str, Tensor]) -> None:
    logits = (batch["similarity"] * math.exp(SCALE) / 2).tolist()
    expected = 0.0
    for matrix in (logits, [list(column) for column in zip(*logits, strict=True)]):
        for i, row in enumerate(matrix):
            right = [j for j in range(B) if VIDEO[j] == VIDEO[i]]
            expected -= sum(log_softmax(row)[j] for j in right) / len(right) / B
    assert float(losses.scl(batch["similarity"], SCALE, "positive", VIDEO)) == pytest.approx(expected)


@pytest.mark.parametrize("same_video", ["masked", "positive"])
def test_without_shared_videos_all_choices_agree(batch: dict[str, Tensor], same_video: str) -> None:
    plain = losses.scl(batch["similarity"], SCALE)
    torch.testing.assert_close(losses.scl(batch["similarity"], SCALE, same_video, torch.arange(B)), plain)
    inputs = [batch[name] for name in ("words", "mask", "frames", "pseudo_text", "pseudo_video")]
    plain = losses.pseudo_contrastive(*inputs, SCALE)
    torch.testing.assert_close(losses.pseudo_contrastive(*inputs, SCALE, same_video, torch.arange(B)), plain)


@pytest.mark.parametrize("same_video", ["masked", "positive"])
def test_a_batch_of_one_video_only_stays_finite(batch: dict[str, Tensor], same_video: str) -> None:
    similarity = batch["similarity"].requires_grad_()
    loss = losses.scl(similarity, SCALE, same_video, torch.zeros(B, dtype=torch.long))
    loss.backward()
    assert loss.isfinite()
    assert similarity.grad.isfinite().all()
    if same_video == "masked":
        assert float(loss.detach()) == pytest.approx(0)


def test_wrong_choices_are_named(batch: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="which video"):
        losses.scl(batch["similarity"], SCALE, "masked")
    with pytest.raises(ValueError, match="'ignored'"):
        losses.scl(batch["similarity"], SCALE, "ignored", VIDEO)


def test_crp_by_hand(batch: dict[str, Tensor]) -> None:
    temperature, teacher_scale, expected = 3.0, 0.7, 0.0
    ours = (batch["similarity"] * math.exp(SCALE) / 2 / temperature).tolist()
    theirs = (batch["teacher"] * math.exp(teacher_scale) / 2 / temperature).tolist()
    for flip in (lambda m: m, lambda m: [list(column) for column in zip(*m, strict=True)]):
        for student, teacher in zip(flip(ours), flip(theirs), strict=True):
            q, p = log_softmax(student), log_softmax(teacher)
            expected += sum(math.exp(b) * (b - a) for a, b in zip(q, p, strict=True)) / B / 2
    loss = losses.crp(batch["similarity"], batch["teacher"], SCALE, teacher_scale, temperature)
    assert float(loss) == pytest.approx(expected * temperature**2)


def test_crp_vanishes_at_the_teacher_alone(batch: dict[str, Tensor]) -> None:
    assert float(losses.crp(batch["teacher"], batch["teacher"], SCALE, SCALE)) == pytest.approx(0, abs=1e-12)
    assert float(losses.crp(batch["similarity"], batch["teacher"], SCALE, SCALE)) > 0.01


def test_a_teacher_may_come_from_inference_mode_and_gets_no_gradient(batch: dict[str, Tensor]) -> None:
    student = batch["similarity"].requires_grad_()
    with torch.inference_mode():
        teacher = batch["teacher"] * 1
    for loss in (losses.crp(student, teacher, SCALE, SCALE), losses.distillation(student, teacher)):
        student.grad = None
        loss.backward()
        assert student.grad.any()
    teacher = batch["teacher"].requires_grad_()
    losses.crp(student, teacher, SCALE, SCALE).backward()
    losses.distillation(student, teacher).backward()
    assert teacher.grad is None


def test_features_at_their_prototypes_lose_nothing(batch: dict[str, Tensor]) -> None:
    prototype = batch["prototypes"][batch["category"]]
    words, frames = prototype[:, None].repeat(1, L, 1), prototype[:, None].repeat(1, N, 1)
    eye = torch.eye(D, dtype=torch.float64)
    arguments = (batch["category"], batch["prototypes"], eye, eye)
    assert float(losses.etf_alignment(words, batch["mask"], frames, *arguments)) == pytest.approx(0, abs=1e-12)
    assert float(losses.etf_alignment(-words, batch["mask"], -frames, *arguments)) == pytest.approx(4)
    assert float(losses.etf_pseudo(prototype, -prototype, *arguments)) == pytest.approx(2)


def test_padding_changes_no_loss(batch: dict[str, Tensor]) -> None:
    broken = {**batch, "words": batch["words"].masked_fill(~batch["mask"][..., None], math.nan)}
    for names, function in ((ETF, losses.etf_alignment), (PSEUDO, TERMS["pseudo_contrastive"][0])):
        expected = function(*[batch[name] for name in names])
        torch.testing.assert_close(function(*[broken[name] for name in names]), expected)


ETF = ("words", "mask", "frames", "category", "prototypes", "text_proj", "video_proj")
ETF_PSEUDO = ("pseudo_text", "pseudo_video", "pseudo_category", "prototypes", "text_proj", "video_proj")
PSEUDO = ("words", "mask", "frames", "pseudo_text", "pseudo_video")
TERMS = {
    "scl": (lambda s: losses.scl(s, SCALE), ("similarity",)),
    "scl masked": (lambda s: losses.scl(s, SCALE, "masked", VIDEO), ("similarity",)),
    "scl positive": (lambda s: losses.scl(s, SCALE, "positive", VIDEO), ("similarity",)),
    "crp": (lambda s, t: losses.crp(s, t.detach(), SCALE, SCALE), ("similarity", "teacher")),
    "etf_alignment": (losses.etf_alignment, ETF),
    "etf_pseudo": (losses.etf_pseudo, ETF_PSEUDO),
    "pseudo_contrastive": (lambda *a: losses.pseudo_contrastive(*a, SCALE), PSEUDO),
    "contrastive": (lambda *a: losses.contrastive(*a, SCALE), ("pseudo_text", "pseudo_video")),
    "distillation": (lambda s, t: losses.distillation(s, t.detach()), ("similarity", "teacher")),
}


@pytest.mark.parametrize("name", TERMS)
def test_gradients(batch: dict[str, Tensor], name: str) -> None:
    function, names = TERMS[name]
    fixed = ("mask", "category", "pseudo_category", "prototypes", "teacher")
    inputs = [batch[part] if part in fixed else batch[part].requires_grad_() for part in names]
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("name", ["etf_alignment", "pseudo_contrastive", "scl masked", "scl positive"])
def test_the_order_of_a_batch_does_not_matter(batch: dict[str, Tensor], name: str) -> None:
    order = torch.tensor([2, 0, 3, 1])
    if name.startswith("scl"):
        choice = name.removeprefix("scl ")
        mixed = losses.scl(batch["similarity"][order][:, order], SCALE, choice, VIDEO[order])
        torch.testing.assert_close(mixed, losses.scl(batch["similarity"], SCALE, choice, VIDEO))
        return
    function, names = TERMS[name]
    moved = ("words", "mask", "frames", "category")
    mixed = function(*[batch[part][order] if part in moved else batch[part] for part in names])
    torch.testing.assert_close(mixed, function(*[batch[part] for part in names]))


def test_pseudo_contrastive_shares_nothing_between_pseudo_pairs_and_videos(batch: dict[str, Tensor]) -> None:
    inputs = [batch[name] for name in PSEUDO]
    text = torch.cat([losses.pool_words(batch["words"], batch["mask"]), batch["pseudo_text"]])
    video = torch.cat([losses.pool_frames(batch["frames"]), batch["pseudo_video"]])
    logits = math.exp(SCALE) * video @ text.T
    same = torch.eye(B + P, dtype=torch.float64)
    same[0, 2] = same[2, 0] = 1
    target = same / same.sum(1, keepdim=True)
    expected = cross_entropy(logits, target) + cross_entropy(logits.T, target)
    torch.testing.assert_close(losses.pseudo_contrastive(*inputs, SCALE, "positive", VIDEO), expected)


@pytest.mark.parametrize("same_class", ["masked", "positive"])
@pytest.mark.parametrize("same_video", ["negative", "masked", "positive"])
def test_pseudo_pairs_of_one_class_need_not_be_told_apart(
    batch: dict[str, Tensor], same_video: str, same_class: str
) -> None:
    """Against plain loops over rows and columns; the batch keeps its own rule."""
    inputs = [batch[name] for name in PSEUDO]
    text = torch.cat([losses.pool_words(batch["words"], batch["mask"]), batch["pseudo_text"]])
    video = torch.cat([losses.pool_frames(batch["frames"]), batch["pseudo_video"]])
    old = torch.arange(P) // 2  # two pairs of each class
    groups = [("batch", int(number)) for number in VIDEO] + [("old", int(number)) for number in old]
    modes = {"batch": same_video, "old": same_class}
    expected = 0.0
    for logits in (math.exp(SCALE) * video @ text.T, math.exp(SCALE) * text @ video.T):
        for i, row in enumerate(logits):
            same = {j for j, group in enumerate(groups) if group == groups[i]}
            mode = modes[groups[i][0]]
            kept = [j for j in range(B + P) if j == i or j not in same or mode != "masked"]
            right = same if mode == "positive" else {i}
            logs = dict(zip(kept, log_softmax(row[kept]), strict=True))
            expected -= sum(float(logs[j]) for j in right) / len(right) / (B + P)
    found = losses.pseudo_contrastive(*inputs, SCALE, same_video, VIDEO, same_class, old)
    assert float(found) == pytest.approx(expected)


def test_pseudo_pairs_of_one_class_as_positives_train_nothing_else(batch: dict[str, Tensor]) -> None:
    """They are constants: as targets or as negatives of each other they give the same gradient; left out, another."""
    old, gradients = torch.zeros(P, dtype=torch.long), {}
    for same_class in ("negative", "positive", "masked"):
        leaves = {name: batch[name].detach().clone().requires_grad_() for name in ("words", "frames")}
        inputs = [{**batch, **leaves}[name] for name in PSEUDO]
        loss = losses.pseudo_contrastive(*inputs, SCALE, "negative", VIDEO, same_class, old)  # type: ignore[arg-type]
        gradients[same_class] = torch.cat(
            [part.flatten() for part in torch.autograd.grad(loss, list(leaves.values()))]
        )
    torch.testing.assert_close(gradients["positive"], gradients["negative"])
    assert not torch.allclose(gradients["masked"], gradients["negative"])


def test_large_logits_keep_their_precision_under_autocast(
    batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    text, video = batch["pseudo_text"].float(), batch["pseudo_video"].float()
    pooled = normalize(video, dim=-1).expand(len(text), -1, -1)  # as a text's pooling of frames gives it
    pooling = TextPooling(text.shape[-1])
    monkeypatch.setattr(pooling, "forward", lambda *_: pooled)
    for compute in (
        lambda: losses.contrastive(text, video, 4.6),
        lambda: losses.cross_task(text, video, text[:1], 4.6),
        lambda: losses.scaled_cosines(text, video, 4.6).sum(),
        lambda: math.exp(4.6) * pooling.cosines(text, video[:, None]).sum(),
    ):
        expected = compute()
        with torch.autocast("cpu", torch.bfloat16):
            assert float(compute()) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("same_video", ["negative", "masked", "positive"])
def test_stored_videos_are_negatives_of_every_text(batch: dict[str, Tensor], same_video: str) -> None:
    text, video = losses.pool_words(batch["words"], batch["mask"]), losses.pool_frames(batch["frames"])
    stored = normalize(batch["pseudo_video"], dim=-1)
    logits = math.exp(SCALE) * text @ torch.cat([video, stored]).T  # [B,B+P]
    same = VIDEO[:, None] == torch.cat([VIDEO, torch.full((P,), -1)])
    own = torch.eye(B, B + P, dtype=torch.float64)
    target = same / same.sum(1, keepdim=True) if same_video == "positive" else own
    if same_video == "masked":
        logits = logits.masked_fill(same & (own == 0), -math.inf)
        expected = cross_entropy(logits, torch.arange(B))
    else:
        expected = cross_entropy(logits, target)
    torch.testing.assert_close(losses.cross_task(5 * text, video, stored, SCALE, same_video, VIDEO), expected)


def test_contrastive_normalises(batch: dict[str, Tensor]) -> None:
    text, video = batch["pseudo_text"], batch["pseudo_video"]
    cosine = normalize(video, dim=-1) @ normalize(text, dim=-1).T
    torch.testing.assert_close(
        losses.contrastive(5 * text, 0.1 * video, SCALE), losses.scl(cosine, SCALE + math.log(P) / 2)
    )


def test_distillation_is_least_at_the_teacher(batch: dict[str, Tensor]) -> None:
    teacher = batch["teacher"].requires_grad_()
    student = teacher.detach().clone().requires_grad_()
    losses.distillation(student, teacher).backward()
    assert float(student.grad.abs().max()) < 1e-12
    assert losses.distillation(batch["similarity"], teacher) > losses.distillation(student, teacher)


def test_pooling_without_words_gives_zeros() -> None:
    words = torch.full((1, 3, 4), math.nan)
    assert not losses.pool_words(words, torch.zeros(1, 3, dtype=torch.bool)).any()


def test_adaptive_weight_is_a_share_of_the_base_without_gradient() -> None:
    base = torch.tensor(8.0, requires_grad=True)
    etf = torch.tensor(2.0, requires_grad=True)
    loss = total({"base": Term(base), "etf": Term(etf, 0.1 * losses.adaptive_factor(base, etf))})
    assert float(loss.detach()) == pytest.approx(8 * 1.1)
    loss.backward()
    assert float(base.grad) == pytest.approx(1)  # the factor has no gradient
    assert float(etf.grad) == pytest.approx(0.1 * 8 / 2)


def test_an_adaptive_term_of_zero_adds_nothing() -> None:
    base, etf = torch.tensor(8.0), torch.tensor(0.0)
    assert float(total({"base": Term(base), "etf": Term(etf, losses.adaptive_factor(base, etf))})) == 8
