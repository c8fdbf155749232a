"""Adapters trained with the terms of StructAlign (METHOD.md, section 4).

The terms themselves are in `losses/`; here they are put together, with their teacher, their prototypes and their
memory of earlier classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from structalign.config.schema import Config
from structalign.losses import contrastive as losses
from structalign.losses.etf import simplex_etf
from structalign.losses.memory import PrototypeMemory
from structalign.losses.similarity import word_frame_similarity
from structalign.methods.base.adapters import AdapterMethod
from structalign.methods.base.batch import Batch, joint_text, joint_video
from structalign.methods.base.method import Teacher, TrainingFeatures
from structalign.methods.base.terms import Term, Terms, total
from structalign.model.retriever import Retriever
from structalign.util.distributed import to_device
from structalign.util.errors import UserError
from structalign.util.seeding import derive_seed


class AlignedMethod(AdapterMethod):
    """Word-frame contrast, relation preservation, alignment with an ETF, pseudo pairs; a weight of 0 drops one."""

    def __init__(self, config: Config, retriever: Retriever, num_categories: int) -> None:
        super().__init__(config, retriever, num_categories)
        self.memory = PrototypeMemory()
        self.prototypes: Tensor | None = None
        if config.loss.etf_weight > 0:
            self._build_etf()

    def _build_etf(self) -> None:
        """Prototypes (C, D) and the linear maps P_t, P_v that take words and frames to them."""
        device, width = self.retriever.device, self.retriever.embed_dim
        seed = derive_seed(self.config.seed, 0, 1)
        classes = self.config.etf.num_classes or max(2, self.num_categories)
        if classes < self.num_categories:
            raise UserError(f"etf.num_classes = {classes} is below the {self.num_categories} categories of the split")
        self.prototypes = simplex_etf(classes, width, seed, self.config.etf.construction).float().to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.text_proj = nn.Linear(width, width, bias=False)
            self.video_proj = nn.Linear(width, width, bias=False)
        for projection in (self.text_proj, self.video_proj):
            projection.to(device).requires_grad_(self.config.etf.train_projections)

    def teacher_kind(self, task: int) -> Teacher | None:
        """Relation preservation needs a teacher from task 2 on."""
        return self.config.loss.crp_teacher if task > 1 and self.config.loss.crp_weight > 0 else None

    def needs_features(self, task: int, num_tasks: int) -> bool:
        """Class statistics serve the pseudo pairs of later tasks."""
        return task < num_tasks and self._uses_pseudo_pairs()

    def _uses_pseudo_pairs(self) -> bool:
        loss = self.config.loss
        return loss.pseudo_weight > 0 or (loss.pseudo_etf and loss.etf_weight > 0)

    def start_epoch(self, generator: torch.Generator) -> None:
        """Pseudo pairs of this epoch come from this generator."""
        self.generator = generator

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Those of the adapters; trained projections share the rate of the attention adapters."""
        groups = super().parameter_groups()
        if self.prototypes is not None and self.config.etf.train_projections:
            key = "lr_first" if self.task == 1 else "lr_later"
            weights = [self.text_proj.weight, self.video_proj.weight]
            rate = getattr(self.config.train, key)
            groups.append({"name": "projections", "params": weights, "lr": rate, "key": key})
        return groups

    def loss(self, batch: Batch) -> Terms:
        """Compute scl, crp, etf and pseudo for a batch of B pairs."""
        weights = self.config.loss
        pseudo = self._pseudo_pairs(len(batch.tokens))  # first: copying them must not wait for what a GPU still does
        words, mask, _ = joint_text(self.retriever, batch.tokens, self.task)  # [B,L,D], [B,L]
        frames, _ = joint_video(self.retriever, batch)  # [B,N,D]
        similarity = self._similarity(frames, words, mask)  # [B,B]
        terms = {"scl": Term(losses.scl(similarity, self._scl_scale(len(words)), weights.same_video, batch.video))}
        if self.teacher is not None:
            terms["crp"] = Term(self._relation_preserving(self.teacher, similarity, batch), weights.crp_weight)
        if self.prototypes is not None:
            joining = pseudo if weights.pseudo_etf else None
            etf = self._etf(self.prototypes, words, mask, frames, batch.category, joining)
            factor = losses.adaptive_factor(total(terms), etf) if weights.etf_adaptive else 1.0
            terms["etf"] = Term(etf, weights.etf_weight * factor)
        if pseudo is not None and weights.pseudo_weight > 0:
            text, video, old = (part[: len(batch.tokens)] for part in pseudo)  # B of the 2B pairs
            contrast = losses.pseudo_contrastive(
                words,
                mask,
                frames,
                text,
                video,
                self.retriever.log_scale,
                weights.same_video,
                batch.video,
                weights.pseudo_same_class,
                old,
            )
            terms["pseudo"] = Term(contrast, weights.pseudo_weight)
        return terms

    def _scl_scale(self, batch_size: int) -> Tensor:
        """Logarithm of what `scl` is to multiply by before it divides by the batch's root."""
        shift = math.log(batch_size) / 2 if self.config.loss.scl_scale == "global" else 0.0
        return self.retriever.log_scale + shift

    def _similarity(self, frames: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        return word_frame_similarity(frames, words, mask, pooling=self.config.similarity.pooling)

    def _relation_preserving(self, teacher: Retriever, similarity: Tensor, batch: Batch) -> Tensor:
        """Compare the batch's similarities with those of the teacher, which sees the same pixels."""
        # The previous model knows no prototype of the present task: it reads texts as its own last task did.
        task = self.task - 1 if self.config.loss.crp_teacher == "previous" else self.task
        with torch.inference_mode():
            words, mask, _ = joint_text(teacher, batch.tokens, task)
            frames, _ = joint_video(teacher, batch)
            target = self._similarity(frames, words, mask)  # [B,B]
        target = target.clone()  # because autograd does not save inference tensors
        return losses.crp(
            similarity, target, self.retriever.log_scale, teacher.log_scale, self.config.loss.temperature
        )

    def _pseudo_pairs(self, batch_size: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Draw 2B pseudo pairs of old classes: text (2B, D), video (2B, D), category (2B,)."""
        if not self.memory or not self._uses_pseudo_pairs():
            return None
        pairs = self.memory.draw(2 * batch_size, self.generator, balanced=self.config.loss.pseudo_balanced)
        text, video, category = (to_device(part, self.retriever.device) for part in pairs)
        if self.config.loss.pseudo_normalised:
            text, video = normalize(text, dim=-1), normalize(video, dim=-1)
        return text, video, category

    def _etf(
        self,
        prototypes: Tensor,
        words: Tensor,
        mask: Tensor,
        frames: Tensor,
        category: Tensor,
        pseudo: tuple[Tensor, Tensor, Tensor] | None,
    ) -> Tensor:
        """Align the batch, and from task 2 on the pseudo pairs, with their class prototypes."""
        maps = (self.text_proj.weight, self.video_proj.weight)
        term = losses.etf_alignment(words, mask, frames, category, prototypes, *maps)
        if pseudo is None:
            return term
        text, video, old = pseudo
        return term + losses.etf_pseudo(text, video, old, prototypes, *maps)

    def trained_parameters(self) -> int:
        """Those of the retriever, and the projections if they train."""
        projections = 0
        if self.prototypes is not None and self.config.etf.train_projections:
            projections = self.text_proj.weight.numel() + self.video_proj.weight.numel()
        return super().trained_parameters() + projections

    def finish_task(self, features: TrainingFeatures | None) -> None:
        """Add the classes of the finished task to the memory."""
        if features is not None:
            self.memory = self.memory.add(
                features.text, features.text_category, features.video, features.video_category
            )

    def state(self) -> dict[str, Tensor]:
        """Class statistics, and the projections if there are any."""
        state = dict(self.memory.to_tensors())
        if self.prototypes is not None:
            state |= {"text_proj": self.text_proj.weight, "video_proj": self.video_proj.weight}
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore class statistics and projections."""
        self.memory = PrototypeMemory.from_tensors(state)
        if self.prototypes is not None and "text_proj" in state:
            with torch.no_grad():
                self.text_proj.weight.copy_(state["text_proj"])
                self.video_proj.weight.copy_(state["video_proj"])

    def align(self, text: Tensor, video: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Project pooled features (M, D) to where they meet the prototypes (C, D)."""
        if self.prototypes is None:
            return None
        with torch.no_grad():
            return self.text_proj(text), self.video_proj(video), self.prototypes
