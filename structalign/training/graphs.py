"""CUDA graphs of both encoders: a GPU replays thousands of kernels without launching each again.

With adapters, a step of ViT-B/32 launches 5,000 kernels, most of which take less time than their launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import pad

from structalign.config.schema import Config
from structalign.methods.base import Method
from structalign.model.retriever import Retriever

STRIDE = 8
"""Texts are padded to a multiple of this length, so that few graphs serve all batches."""

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]


class GraphedEncoders:
    """Encodes as a retriever does, with one graph for each shape of texts and of videos.

    A graph keeps one set of outputs and of what its gradients need: it can be used once in a step. If the same shape
    comes a second time, it is encoded without a graph.

    Parameters
    ----------
    retriever : Retriever
        What of it has gradients must not change from here on.
    """

    def __init__(self, retriever: Retriever) -> None:
        self.retriever = retriever
        self.graphs: dict[tuple[object, ...], Encode] = {}
        self.taken: set[tuple[object, ...]] = set()

    def forward_text(self, tokens: Tensor, task: int) -> tuple[Tensor, Tensor]:
        """Do the work of `Retriever.forward_text`."""
        length = tokens.shape[1]
        room = min(-(-length // STRIDE) * STRIDE, self.retriever.info.context_length)
        padded = pad(tokens, (0, room - length))
        words, global_ = self._replay(lambda tokens: self.retriever.forward_text(tokens, task), padded, False, task)
        return words[:, :length], global_

    def forward_video(self, states: Tensor, num_frames: int, task: int) -> tuple[Tensor, Tensor]:
        """Do the work of `Retriever.forward_video`."""
        return self._replay(
            lambda states: self.retriever.forward_video(states, num_frames, task), states, True, num_frames, task
        )

    def _replay(self, encode: Encode, inputs: Tensor, vision: bool, *more: object) -> tuple[Tensor, Tensor]:
        key = (vision, inputs.shape, torch.is_grad_enabled(), self.retriever.training, *more)
        if key in self.taken:
            return encode(inputs)
        self.taken.add(key)
        if key not in self.graphs:
            self.graphs[key] = _capture(encode, inputs, self.retriever, vision)
        return self.graphs[key](inputs)


class _Encoder(nn.Module):
    """One of a retriever's encoders as a module."""

    def __init__(self, encode: Encode, retriever: Retriever) -> None:
        super().__init__()
        self.encode, self.retriever = encode, retriever

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.encode(inputs)


def _capture(encode: Encode, inputs: Tensor, retriever: Retriever, vision: bool) -> Encode:
    """Record an encoder's pass over inputs of this shape and, if anything in its tower trains, the pass back."""
    encoder = _Encoder(encode, retriever)
    trained = {
        name: weight
        for name, weight in encoder.named_parameters()
        if weight.requires_grad and (".visual." in name) == vision
    }
    # A recording must not meet autograd's nodes of earlier steps, which belong to another stream: it has leaves of
    # its own, in the same memory.
    leaves = [weight.detach().requires_grad_() for weight in trained.values()]

    def run(inputs: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        return functional_call(encoder, dict(zip(trained, weights, strict=True)), (inputs,))  # type: ignore[no-any-return]

    kind = inputs.device.type
    # The trial run before the recording draws dropout, which must not depend on when a shape comes first.
    with (
        torch.random.fork_rng([inputs.device] if kind == "cuda" else []),
        torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False),
    ):
        replay = torch.cuda.make_graphed_callables(
            run,
            (inputs.clone(), *leaves),
            num_warmup_iters=1,
            allow_unused_input=True,  # task 1 uses the first expert alone
        )
    return lambda inputs: cast(tuple[Tensor, Tensor], replay(inputs, *trained.values()))


@contextmanager
def replaying(encoders: Sequence[GraphedEncoders]) -> Iterator[None]:
    """Let the retrievers encode by their graphs, for the length of one step's loss."""
    for part in encoders:
        part.taken.clear()
        part.retriever.graphed = part
    try:
        yield
    finally:
        for part in encoders:
            part.retriever.graphed = None


def graphed_encoders(method: Method, config: Config) -> list[GraphedEncoders]:
    """Graphs for a method's model and for its teacher, if `train.cuda_graphs` wants them and they can be had."""
    model = config.model
    if not config.train.cuda_graphs or method.retriever.device.type != "cuda" or method.retriever.trainable == "all":
        return []
    if model.checkpoint_vision or "mlp_moe" in (model.text_adapter, model.vision_adapter):
        return []  # random states are put back, or uses counted, outside of what a graph repeats
    return [GraphedEncoders(part) for part in (method.retriever, method.teacher) if part is not None]
