"""The retriever: a frozen CLIP, its adapters, and what of it trains in which task."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from structalign.config.backbone import adapted_blocks
from structalign.config.schema import ModelConfig
from structalign.model.adapters import (
    PROJECTIONS,
    Context,
    FrameFusionAttention,
    LoRA,
    LoRAAttention,
    LoRAExperts,
)
from structalign.model.clip import (
    CLIP_LOG_SCALE,
    ClipInfo,
    cut_padding,
    end_positions,
    mismatch,
    project_text,
    text_states,
    text_tower,
    word_mask,
)
from structalign.model.fast_clip import embed_by_product, fuse_quick_gelu, skip_last_patches
from structalign.model.mlp_moe import RoutedExperts
from structalign.model.prompts import PromptedAttention
from structalign.model.text_pooling import TextPooling
from structalign.model.video_proxies import VideoProxies, embed_patches
from structalign.util.errors import UserError

Trainable = Literal["adapters", "all"]

_OF_A_TASK = re.compile(r"(?:^|\.)(?:prototypes|routers|noises|prompts)\.(\d+)$")
"""Names of the parameters that exist once a task, with the task's number less 1."""


_GENERAL_BLOCKS, _EXPERT_BLOCKS = 2, 3
"""Blocks of a tower with prompts that all tasks share, and after them with prompts of each task."""

_TRAINED_WITH_CLIP = ("clip.", "text_pooling.", "proxies.")


def _full_residual(_module: nn.Module, _inputs: Any, patches: Tensor) -> Tensor:
    """Keep the residual stream in full precision under autocast, with every method: the patches set its type."""
    return patches.float() if patches.dtype in (torch.bfloat16, torch.float16) else patches


class Encoders(Protocol):
    """What encodes in a retriever's place: its own methods of these names, done in another way."""

    def forward_text(self, tokens: Tensor, task: int) -> tuple[Tensor, Tensor]:
        """Encode texts."""

    def forward_video(self, states: Tensor, num_frames: int, task: int) -> tuple[Tensor, Tensor]:
        """Encode videos."""


class Retriever(nn.Module):
    """Encodes videos into frame features and texts into word features, in CLIP's joint space.

    Parameters
    ----------
    clip : Module
        An open_clip model; it is taken over, not copied.
    info : ClipInfo
    model : ModelConfig
        Which adapters, and how large.
    num_tasks : int
        How many task prototypes, and routers of a task's own, to provide: K.
    seed : int
        Seeds the adapters' start.
    trainable : {"adapters", "all"}
        "all": CLIP itself and the pooling of frames train, except for the logit scale, and belong to the state.

    Attributes
    ----------
    text_pooling : TextPooling or None
        What makes a vector of a video's frames for each text, if `model.video_pooling` is "text".
    proxies : VideoProxies or None
        What encodes all frames at once, if it is "proxies".
    task : int
        The present task, from 1; videos are encoded as it sees them unless `encode_video` is told otherwise.
    graphed : Encoders or None
        What does the work of `forward_text` and `forward_video` in their place, such as CUDA graphs.

    Raises
    ------
    UserError
        If the model has fewer blocks than adapters, or blocks of another kind.
    """

    clip: Any
    log_scale: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        clip: nn.Module,
        info: ClipInfo,
        model: ModelConfig,
        num_tasks: int,
        seed: int,
        trainable: Trainable = "adapters",
    ) -> None:
        super().__init__()
        self.clip, self.info, self.model, self.trainable = clip, info, model, trainable
        self.context = Context()
        self.task = 1
        self.graphed: Encoders | None = None
        self._tokenizer: Any = None
        self.register_buffer("log_scale", torch.tensor(CLIP_LOG_SCALE), persistent=False)
        self.register_buffer("mean", torch.tensor(info.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(info.std).view(3, 1, 1), persistent=False)
        frozen = {id(weight) for weight in clip.parameters()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._attach_vision(num_tasks)
            self._attach_text(num_tasks)
            self.text_pooling = TextPooling(self.embed_dim) if model.video_pooling == "text" else None
            self.proxies = (
                VideoProxies(self.clip.visual.conv1.out_channels) if model.video_pooling == "proxies" else None
            )
        fuse_quick_gelu(clip)
        skip_last_patches(self.clip.visual)
        embed_by_product(self.clip.visual)
        self._adapter_names = [name for name, weight in self.named_parameters() if id(weight) not in frozen]
        self.requires_grad_(False)
        self.clip.visual.conv1.register_forward_hook(_full_residual)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.log_scale.device

    @property
    def embed_dim(self) -> int:
        """Width of the joint space, D."""
        return self.info.model["embed_dim"]

    @property
    def image_size(self) -> int:
        """Height and width of the frames that the model sees."""
        return self.info.image_size

    @property
    def vocab_size(self) -> int:
        """Number of tokens; the last two are the start and the end token."""
        return text_tower(self.clip).vocab_size

    @property
    def reads_by_task(self) -> bool:
        """Whether a text's features may depend on the task that reads it."""
        return self.model.text_adapter not in ("none", "lora")

    def _attach_vision(self, num_tasks: int) -> None:
        model, kind = self.model, self.model.vision_adapter
        blocks = self._blocks(self.clip.visual, "vision_adapter")
        self._stem_blocks = len(blocks)
        if kind == "none":
            return
        if kind == "prompts":
            self._stem_blocks = 0
            self._attach_prompts(blocks, num_tasks)
            return
        layers = adapted_blocks(model.adapter_layers, len(blocks), self.info.name)
        self._stem_blocks = len(blocks) - layers
        make = partial(LoRA, rank=model.vision_rank, alpha=model.lora_alpha, dropout=model.dropout)
        for number in range(len(blocks) - layers, len(blocks)):
            base = blocks[number].attn
            if kind == "frame_fusion":
                blocks[number].attn = FrameFusionAttention(base, number, self.context)
            elif kind == "mlp_moe":
                self._attach_routed(blocks[number], model.vision_rank, num_tasks, at_end=False)
            else:
                blocks[number].attn = LoRAAttention(base, "qkv", make)

    def _attach_routed(self, block: Any, rank: int, num_tasks: int, at_end: bool) -> None:
        """Put experts beside the MLP of a block."""
        model = self.model
        block.mlp = RoutedExperts(
            block.mlp,
            width=block.attn.embed_dim,
            rank=rank,
            alpha=model.lora_alpha,
            dropout=model.dropout,
            experts=model.experts,
            top_k=model.top_k,
            num_tasks=num_tasks,
            context=self.context,
            at_end=at_end,
        )

    def _attach_prompts(self, blocks: Sequence[Any], num_tasks: int) -> None:
        """Shared prompts in the first two blocks, those of each task in the next three."""
        for block in blocks[:_GENERAL_BLOCKS]:
            block.attn = PromptedAttention(block.attn, self.model.general_prompts, None, self.context)
        for block in blocks[_GENERAL_BLOCKS : _GENERAL_BLOCKS + _EXPERT_BLOCKS]:
            block.attn = PromptedAttention(block.attn, self.model.expert_prompts, num_tasks, self.context)

    def _attach_text(self, num_tasks: int) -> None:
        kind, model = self.model.text_adapter, self.model
        self.prototypes = nn.ParameterList()
        if kind == "none":
            return
        blocks = self._blocks(text_tower(self.clip), "text_adapter")
        if kind == "prompts":
            self._attach_prompts(blocks, num_tasks)
            return
        if kind == "mlp_moe":
            for block in blocks:
                self._attach_routed(block, model.rank, num_tasks, at_end=True)
            return
        sizes: dict[str, Any] = {"rank": model.rank, "alpha": model.lora_alpha, "dropout": model.dropout}
        make: Callable[[int, int], nn.Module]
        if kind == "lora_moe":
            make = partial(LoRAExperts, **sizes, experts=model.experts, top_k=model.top_k, context=self.context)
            width = blocks[0].attn.embed_dim
            self.prototypes.extend(nn.Parameter(torch.randn(width) * 0.02) for _ in range(num_tasks))
        else:
            make = partial(LoRA, **sizes)
        for block in blocks:
            block.attn = LoRAAttention(block.attn, PROJECTIONS, make)

    def _blocks(self, tower: nn.Module, key: str) -> Sequence[Any]:
        """The residual blocks of a tower whose attention an adapter can take the place of."""
        blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
        if blocks is None or not isinstance(blocks[0].attn, nn.MultiheadAttention):
            kind = getattr(self.model, key)
            raise UserError(f"model.{key} = {kind!r}: {self.info.name} has no such blocks; `none` or a plain ViT")
        return blocks

    def _experts(self) -> Iterator[LoRAExperts]:
        return (module for module in self.modules() if isinstance(module, LoRAExperts))

    def routed_experts(self) -> dict[str, RoutedExperts]:
        """The experts beside the blocks' MLPs, by the block's name; none unless an adapter is `mlp_moe`."""
        return {name: module for name, module in self.named_modules() if isinstance(module, RoutedExperts)}

    # Encoding

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Turn texts into tokens (T, L), L as long as the longest of them needs."""
        if self._tokenizer is None:
            from open_clip.tokenizer import SimpleTokenizer

            self._tokenizer = SimpleTokenizer(context_length=self.info.context_length)
        return cut_padding(self._tokenizer(list(texts)))

    def word_pieces(self, text: str) -> list[tuple[str, list[int]]]:
        """Spell out the tokens of a text that `word_mask` marks, each piece with the positions of its tokens.

        A piece is one token, or several that share a character: tokens are made of bytes.
        """
        tokens = self.tokenize([text])
        pieces: list[tuple[str, list[int]]] = []
        open_tokens: list[int] = []
        places: list[int] = []
        for place, word in enumerate(tokens[word_mask(tokens)].tolist()):
            open_tokens, places = [*open_tokens, word], [*places, place]
            piece = self._tokenizer.decode(open_tokens)
            if "\ufffd" not in piece:
                pieces.append((piece.strip(), places))
                open_tokens, places = [], []
        if places:  # the text was cut within a character
            pieces.append((self._tokenizer.decode(open_tokens).strip("\ufffd "), places))
        return pieces

    def count_cut(self, texts: Sequence[str]) -> int:
        """Count the texts that have more tokens than the encoder reads, so that their ends are lost."""
        self.tokenize([""])
        room = self.info.context_length - 2  # the start and the end token
        return sum(len(self._tokenizer.encode(text)) > room for text in texts)

    @staticmethod
    def word_mask(tokens: Tensor) -> Tensor:
        """Mark the words (T, L): neither start nor end token nor padding."""
        return word_mask(tokens)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Scale uint8 pixels (..., 3, H, W) to what CLIP was trained on."""
        return pixels.float().div_(255).sub_(self.mean).div_(self.std)  # in one buffer

    def encode_video(self, pixels: Tensor, task: int | None = None) -> tuple[Tensor, Tensor]:
        """Encode videos frame by frame.

        Parameters
        ----------
        pixels : Tensor, shape (B, N, 3, H, W)
            uint8, or floats that `normalise` has been applied to.
        task : int, optional
            Whose routers see the videos, from 1, if vision has any; the present task's by default.

        Returns
        -------
        frames : Tensor, shape (B, N, D)
            Each frame's CLS token, projected; not L2-normalised. With proxies, (B, 1, D): the video's.
        global_ : Tensor, shape (B, D)
            Their mean.
        """
        return self.encode_stem(self.stem(pixels), pixels.shape[1], task)

    def stem(self, pixels: Tensor) -> Tensor:
        """What the blocks below the first adapter make of pixels (B, N, 3, H, W): tokens (B*N, P, W).

        With proxies, embedded patches: no block sees a frame alone. A teacher with the same frozen CLIP can start
        from it, too: see `shares_stem`.
        """
        if pixels.dtype == torch.uint8:
            pixels = self.normalise(pixels)
        if self.proxies is not None:
            return embed_patches(self.clip.visual, pixels.flatten(0, 1))  # [B*N,P,W]
        states = self.clip.visual._embeds(pixels.flatten(0, 1))  # [B*N,P,W]
        for block in self.stem_blocks():
            states = block(states)
        return states

    def stem_blocks(self) -> Sequence[Any]:
        """The vision blocks below the first adapter; all of them if vision has none."""
        return self.clip.visual.transformer.resblocks[: self._stem_blocks]  # type: ignore[no-any-return]

    def shares_stem(self, other: Retriever) -> bool:
        """Whether the other model's stem is this one's: both keep CLIP frozen, and their adapters start alike."""
        return self.trainable == other.trainable == "adapters" and self._stem_blocks == other._stem_blocks

    def encode_stem(self, states: Tensor, num_frames: int, task: int | None = None) -> tuple[Tensor, Tensor]:
        """Encode videos of `num_frames` frames as `encode_video` does, from what `stem` gave."""
        return (self.graphed or self).forward_video(states, num_frames, task or self.task)

    def forward_video(self, states: Tensor, num_frames: int, task: int) -> tuple[Tensor, Tensor]:
        """The vision tower from its first adapter on: what `encode_stem` gives."""
        self.context.num_frames, self.context.task = num_frames, task
        visual = self.clip.visual
        recompute = self.model.checkpoint_vision and torch.is_grad_enabled()
        if self.proxies is not None:
            pooled = self.proxies.encode(visual, states.unflatten(0, (-1, num_frames)), recompute)  # [B,W]
            num_frames = 1
        else:
            for block in visual.transformer.resblocks[self._stem_blocks :]:
                states = checkpoint(block, states, use_reentrant=False) if recompute else block(states)
            pooled, _ = visual._pool(states)  # [B*N,W]
        features = pooled if visual.proj is None else pooled @ visual.proj  # [B*N,D]
        frames = features.unflatten(0, (-1, num_frames))  # [B,N,D]
        return frames, frames.mean(dim=1)

    def encode_text(self, tokens: Tensor, task: int) -> tuple[Tensor, Tensor, Tensor]:
        """Encode texts as one task reads them.

        Parameters
        ----------
        tokens : Tensor, shape (T, L), int64
        task : int
            Whose prototype steers the router; task 1 has none and is read by expert 1. Of routers that each task
            has for its own, this task's.

        Returns
        -------
        words : Tensor, shape (T, L, D)
            Token states, projected; not L2-normalised.
        mask : Tensor, shape (T, L), bool
            True where there is a word.
        global_ : Tensor, shape (T, D)
            The end token's state, projected; not L2-normalised.
        """
        words, global_ = (self.graphed or self).forward_text(tokens, task)
        return words, word_mask(tokens), global_

    def forward_text(self, tokens: Tensor, task: int) -> tuple[Tensor, Tensor]:
        """The text tower: what `encode_text` gives, but for the mask."""
        end = end_positions(tokens)
        self.context.end, self.context.task = end, task
        self.context.prototype = self.prototypes[task - 1] if task > 1 and len(self.prototypes) else None
        states = text_states(self.clip, tokens)  # [T,L,W]
        words = project_text(self.clip, states)  # [T,L,D]
        # Projected on its own, as CLIP does, so that untouched adapters give CLIP's very bits.
        global_ = project_text(self.clip, states[torch.arange(len(tokens), device=tokens.device), end])  # [T,D]
        return words, global_

    # Training

    def prepare_task(self, task: int) -> None:
        """Choose what has gradients: in task 1 A and B_1, later A, all B, router and p_t; vision adapters always.

        Of routers that each task has for its own, the task's.
        """
        self.task = task
        self.requires_grad_(False)
        if self.trainable == "all":
            self.clip.requires_grad_(True)
            self.clip.logit_scale.requires_grad_(False)
            for pooling in filter(None, (self.text_pooling, self.proxies)):
                pooling.requires_grad_(True)
            return
        later = ("router.weight", "noise.weight")
        for name, weight in self.named_parameters():
            if name not in self._adapter_names:
                continue
            of_a_task = _OF_A_TASK.search(name)
            if of_a_task:
                own = int(of_a_task[1]) == task - 1
                weight.requires_grad_(own and (task > 1 or not name.startswith("prototypes.")))
            else:
                weight.requires_grad_(task > 1 or not name.endswith(later))

    def finish_task(self, task: int) -> None:
        """Close a task: when task 1 ends, its expert is copied into every other."""
        if task == 1:
            for experts in self._experts():
                experts.copy_first_expert()

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Split what trains into adapters, and scalars a with what each task starts anew: prototype p or routers."""
        attention: list[nn.Parameter] = []
        scalars: list[nn.Parameter] = []
        for name, weight in self.named_parameters():
            if weight.requires_grad:
                scalar = _OF_A_TASK.search(name) or name.endswith("attn.gate")
                (scalars if scalar else attention).append(weight)
        return attention, scalars

    def trained_parameters(self, task: int) -> int:
        """Count what trains in a task; of the experts only the first does in task 1."""
        count = sum(weight.numel() for weight in self.parameters() if weight.requires_grad)
        if task == 1:
            count -= sum(experts.B[1:].numel() for experts in self._experts() if experts.B.requires_grad)
        return count

    def trained_state(self) -> dict[str, Tensor]:
        """What a checkpoint holds: the adapters, or all of CLIP if it trains."""
        weights = dict(self.named_parameters())
        if self.trainable == "all":
            return {name: weight for name, weight in weights.items() if name.startswith(_TRAINED_WITH_CLIP)}
        return {name: weights[name] for name in self._adapter_names}

    @torch.no_grad()
    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Restore from `trained_state()`.

        Raises
        ------
        UserError
            If names or shapes differ: the checkpoint comes from another model.
        """
        own = self.trained_state()
        problem = mismatch(own, state)
        if problem:
            raise UserError(f"checkpoint of another model, or of other model.* parameters: {problem}")
        for name, weight in own.items():
            weight.copy_(state[name])
