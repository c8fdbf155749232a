"""A training step on a GPU that is not there: tensors without data find mixed devices and types all the same.

The backward pass is left out: PyTorch's engine asks the driver for the device's context, fake tensors or not.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from structalign.methods.base import Batch, Method, total
from structalign.training.trainer import autocast
from tests.training.test_distributed import remember
from tests.training.test_trainer import TRAINED, config_for, start

CUDA = torch.device("cuda", 0)


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    """Within it every tensor is one without data, on the CPU or on a GPU."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield FakeTensorMode(allow_non_fake_inputs=True)
    torch.__future__.set_overwrite_module_params_on_conversion(before)


def move(method: Method, mode: FakeTensorMode) -> None:
    """Put everything that a method holds on the GPU, as `Learner` does."""

    def to_gpu(tensor: Tensor) -> Tensor:
        return mode.from_tensor(tensor.detach()).to(CUDA)

    for holder in (method, method.teacher, method.retriever):
        for name, value in list(vars(holder).items()) if holder is not None else ():
            if isinstance(value, nn.Module):
                trains = {key for key, weight in value.named_parameters() if weight.requires_grad}
                value._apply(to_gpu)
                for key, weight in value.named_parameters():
                    weight.requires_grad_(key in trains)
            elif isinstance(value, Tensor):
                setattr(holder, name, to_gpu(value))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("name", [name for name in TRAINED if name != "joint"])
def test_a_step_mixes_neither_devices_nor_types(
    fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch, name: str, precision: str
) -> None:
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)  # what can be pinned only with a GPU
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    config = config_for(name)
    method, data = start(config, 2)
    if name == "structalign":
        remember(method)
    generator = torch.Generator().manual_seed(0)
    (batch, *_) = data.batches(config.train, generator, torch.device("cpu"))
    method.start_epoch(generator)
    with fake:
        move(method, fake)
        on_gpu = Batch(
            *(fake.from_tensor(part).to(CUDA) for part in (batch.pixels, batch.tokens)),
            *(fake.from_tensor(part).to(CUDA) for part in (batch.category, batch.video)),
        )
        groups = method.parameter_groups()
        weights = [weight for group in groups for weight in group["params"]]
        optimizer = torch.optim.AdamW(groups)
        method.retriever.train()
        with autocast(precision, CUDA):
            loss = total(method.loss(on_gpu))
        assert (loss.device, loss.dtype, loss.requires_grad) == (CUDA, torch.float32, True)
        for weight in weights:
            weight.grad = torch.empty_like(weight)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        method.finish_step()
        assert {(weight.device, weight.dtype) for weight in weights} == {(CUDA, torch.float32)}
