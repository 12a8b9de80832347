"""Number formats are chosen by the hardware and scale what must be scaled."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dira_core.errors import RecipeError
from dira_core.optim import build_optimizer
from dira_core.optimizer_options import Optimizer
from dira_core.precision import (
    Precision,
    resolve_device,
    resolve_precision,
    smallest_bf16_side,
)

CPU = torch.device("cpu")


def test_auto_takes_bf16_only_where_the_cpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        assert resolve_precision("auto", CPU, 64) == expected
    assert resolve_precision("fp16", CPU, 64) == "fp16"


def test_bf16_on_a_cpu_is_not_taken_for_views_whose_gradients_would_be_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert resolve_precision("auto", CPU, 16) == "fp32"
    with pytest.raises(RecipeError, match="17 px"):
        resolve_precision("bf16", CPU, 16)
    assert resolve_precision("bf16", CPU, 17) == "bf16"
    assert resolve_precision("bf16", torch.device("cuda"), 16) == "bf16"


def test_in_3d_the_deepest_map_must_keep_three_voxels_for_bf16_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert [smallest_bf16_side(2, 32), smallest_bf16_side(3, 8), smallest_bf16_side(3, 16)] == [
        17,
        17,
        33,
    ]
    least = smallest_bf16_side(3, 16)
    assert resolve_precision("auto", CPU, 32, least) == "fp32"
    assert resolve_precision("auto", CPU, 33, least) == "bf16"
    with pytest.raises(RecipeError, match="33 px"):
        resolve_precision("bf16", CPU, 32, least)


def test_cuda_without_a_gpu_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == CPU
    with pytest.raises(RecipeError, match="train.device=cpu"):
        resolve_device("cuda")


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_networks_compute_in_the_chosen_format(name: str, dtype: torch.dtype) -> None:
    with Precision(name, CPU).autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype


def test_fp16_gradients_are_unscaled_before_the_step() -> None:
    steps = []
    for name in ("fp32", "fp16"):
        torch.manual_seed(0)
        layer = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(layer.parameters(), 0.1)
        precision = Precision(name, CPU)
        precision.backward(layer(torch.ones(3, 4)).square().mean())
        precision.unscale(optimizer)
        precision.step([optimizer])
        steps.append(layer.weight.detach().clone())
    torch.testing.assert_close(*steps)


@pytest.mark.parametrize("rule", ["sgd", "adam", "adamw", "lars"])
def test_an_overflowing_fp16_step_halves_the_scale_and_leaves_no_other_trace(rule: str) -> None:
    """The first step of all: torch's fused SGD would take what lies in memory for its momentum."""
    learned = []
    for slopes in ([3e38, 1.0], [1.0]):
        torch.manual_seed(0)
        layer = nn.Linear(300, 300)
        groups = [{"params": layer.parameters()}]
        optimizer = build_optimizer(groups, Optimizer(name=rule, lr=0.1, lr_batch=None), 1)
        precision = Precision("fp16", CPU)
        for slope in slopes:
            before, scale = layer.weight.detach().clone(), precision.state_dict()["scale"]
            optimizer.zero_grad()
            precision.backward(layer(torch.ones(1, 300)).sum() * slope)
            precision.unscale(optimizer)
            precision.step([optimizer])
            overflows = slope > 1
            assert torch.equal(layer.weight, before) == overflows
            assert precision.state_dict()["scale"] == (scale / 2 if overflows else scale)
        learned.append(layer.weight.detach())
    assert torch.equal(*learned)


def test_the_scale_survives_a_checkpoint() -> None:
    precision, again = Precision("fp16", CPU), Precision("fp16", CPU)
    state = precision.state_dict() | {"scale": 8.0}
    again.load_state_dict(state)
    assert again.state_dict()["scale"] == 8.0
