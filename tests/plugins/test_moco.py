"""MoCo-v2 against equation 1 of its paper, written plainly, and against lightly."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from methods import Flat, part, seen
from torch import Tensor, nn
from torch.nn import functional as F
from world import WORLD, together

import dira_moco
from dira_core import Backbone, Batch, Discriminator, Encodings, Progress, Queue
from dira_core.nn.resnet import ResNet
from dira_core.optimizer_options import Optimizer
from dira_core.testing import TinyBackbone, check
from dira_moco import MoCoOptions

DIM, SIZE, T = 8, 11, 0.3
HERE = Progress(0, 1, 0, 1)


def batch(size: int = 5, seed: int = 0, first: int = 0) -> Batch:
    images = torch.randn(2, size, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    return seen(*images, index=torch.arange(first, first + size))


def build(backbone: Backbone, n_images: int = SIZE, **options: Any) -> Discriminator:
    (component,) = dira_moco.dira_discriminators()
    published = {"momentum": 0.999, "head_norm": False}
    options = {"dim": DIM, "temperature": T, **published, **options}
    module: Discriminator = component.build(MoCoOptions(**options), backbone)
    module.prepare(n_images)
    return module


def queue_of(module: Discriminator) -> Queue:
    queue = module.get_submodule("queue")
    assert isinstance(queue, Queue)
    return queue


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(1, keepdim=True).sqrt()


def embed(backbone: nn.Module, projector: nn.Module, images: Tensor) -> Tensor:
    return unit(projector(backbone(images)[-1].mean((2, 3))))


def equation_1(query: Tensor, key: Tensor, negatives: Tensor, own: Tensor) -> Tensor:
    """Minus the mean of log(e^(q k / T) / (e^(q k / T) + sum of e^(q n / T)))."""
    losses = []
    for i, q in enumerate(query):
        others = [
            torch.exp(q @ n / T) for n, mine in zip(negatives, own[i], strict=True) if not mine
        ]
        positive = torch.exp(q @ key[i] / T)
        losses.append(-torch.log(positive / sum(others, positive)))
    return torch.stack(losses).mean()


def gradients(loss: Tensor, *modules: nn.Module) -> list[Tensor]:
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    found: list[Tensor] = list(torch.autograd.grad(loss, parameters))
    return found


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("key_norm", ["average", "batch"])
@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("seen", [0, 1, 3])
def test_the_loss_is_equation_1_without_an_images_own_keys(
    backbone: Backbone, key_norm: str, size: int, seen: int
) -> None:
    module = build(backbone, key_norm=key_norm)
    for seed in range(seen):
        module(Encodings(backbone, batch(size, seed)))
        module.after_step(HERE)
    students = [backbone, module.get_submodule("projector")]
    teachers = [copy.deepcopy(module.get_submodule(f"teacher.copies.{i}")) for i in range(2)]
    given = batch(size, seed=9)
    loss = module(Encodings(backbone, given)).loss
    negatives, own = queue_of(module).keys, queue_of(module).index  # with the keys of this batch
    teachers[0].train(key_norm == "batch" or not seen)

    with torch.no_grad():
        key = embed(teachers[0], teachers[1], given.views[1].image)
    query = embed(students[0], students[1], given.views[0].image)
    masked = (given.index[:, None] == own) | (own < 0)
    kept = min(size * (seen + 1), SIZE)
    assert int(masked.sum()) == kept + size * (SIZE - kept)  # its own, and the random start
    expected = equation_1(query, key, negatives, masked)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        gradients(loss, *students), gradients(expected, *students), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("size", [2, 5])
def test_with_own_keys_among_the_negatives_the_loss_is_that_of_lightly(
    backbone: Backbone, size: int
) -> None:
    lightly = pytest.importorskip("lightly.loss")
    module = build(backbone, key_norm="batch", others_only=False)
    module(Encodings(backbone, batch(size)))
    oracle = lightly.NTXentLoss(temperature=T, memory_bank_size=(SIZE, DIM))
    oracle.memory_bank.bank = queue_of(module).keys.clone()
    projector = module.get_submodule("projector")
    given = batch(size, seed=9)
    expected = oracle(
        embed(backbone, projector, given.views[0].image),
        embed(backbone, projector, given.views[1].image).detach(),  # the teacher has not moved
    )
    loss = module(Encodings(backbone, given)).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        gradients(loss, backbone, projector),
        gradients(expected, backbone, projector),
        atol=1e-5,
        rtol=1e-5,
    )


def test_keys_as_published_join_the_queue_after_the_loss_and_go_round(backbone: Backbone) -> None:
    module = build(backbone, others_only=False)
    queue, expected = queue_of(module), []
    for step in range(6):
        given = batch(3, seed=step, first=3 * step)
        before, here = queue.keys.clone(), copy.deepcopy(module)
        loss = module(Encodings(backbone, given)).loss
        loss.backward()
        here.get_buffer("queue.keys").copy_(before)
        assert torch.equal(here(Encodings(backbone, given)).loss, loss)
        teacher = [module.get_submodule(f"teacher.copies.{i}") for i in range(2)]
        if step:
            expected.append(embed(teacher[0], teacher[1], given.views[1].image))
        module.after_step(HERE)
    assert int(queue.cursor) == 6 * 3 % SIZE
    held = queue.keys.roll(-int(queue.cursor), 0)
    torch.testing.assert_close(held, torch.cat(expected)[-SIZE:])
    assert queue.index.roll(-int(queue.cursor)).tolist() == list(range(18 - SIZE, 18))


@pytest.mark.parametrize("key_norm", ["average", "batch"])
def test_evaluation_touches_neither_queue_nor_teacher(backbone: Backbone, key_norm: str) -> None:
    module = build(backbone, key_norm=key_norm)
    module(Encodings(backbone, batch()))
    module.after_step(HERE)
    module.eval()
    backbone.eval()
    before = state(module)
    with torch.no_grad():
        first = module(Encodings(backbone, batch(seed=1))).loss
        again = module(Encodings(backbone, batch(seed=1))).loss
    assert torch.equal(first, again)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("key_norm", ["average", "batch"])
def test_a_run_goes_on_from_its_state_to_the_bit(backbone: Backbone, key_norm: str) -> None:
    def train(backbone: Backbone, module: Discriminator, steps: range) -> None:
        parameters = [*backbone.parameters(), *module.get_submodule("projector").parameters()]
        sgd = torch.optim.SGD(parameters, lr=0.1)
        for step in steps:
            sgd.zero_grad()
            module(Encodings(backbone, batch(seed=step, first=step))).loss.backward()
            sgd.step()
            module.after_step(HERE)

    module = build(backbone, key_norm=key_norm)
    train(backbone, module, range(4))
    held = state(nn.ModuleList([backbone, module]))
    train(backbone, module, range(4, 8))

    torch.manual_seed(7)
    other = TinyBackbone()
    resumed = build(other, key_norm=key_norm)
    nn.ModuleList([other, resumed]).load_state_dict(held)
    train(other, resumed, range(4, 8))
    ended = state(nn.ModuleList([other, resumed]))
    for name, value in state(nn.ModuleList([backbone, module])).items():
        assert torch.equal(ended[name], value), name


def test_after_n_steps_the_teacher_is_the_closed_form_of_the_average(backbone: Backbone) -> None:
    m, n = 0.7, 6
    module = build(backbone, momentum=m)
    students = nn.ModuleList([backbone, module.get_submodule("projector")])
    history = [[p.detach().clone() for p in students.parameters()]]
    sgd = torch.optim.SGD(students.parameters(), lr=0.3)
    for step in range(n):
        sgd.zero_grad()
        module(Encodings(backbone, batch(seed=step))).loss.backward()
        sgd.step()
        module.after_step(Progress(step, n, 0, 1))
        history.append([p.detach().clone() for p in students.parameters()])
    for number, own in enumerate(module.get_submodule("teacher").parameters()):
        later = [(1 - m) * m ** (n - i) * history[i][number] for i in range(1, n + 1)]
        torch.testing.assert_close(own, m**n * history[0][number] + torch.stack(later).sum(0))


def test_the_teacher_copies_backbone_and_projector_alone_and_gets_no_gradient(
    backbone: Backbone,
) -> None:
    module = build(backbone)
    module(Encodings(backbone, batch())).loss.backward()
    teacher, projector = module.get_submodule("teacher"), module.get_submodule("projector")
    students = [*backbone.parameters(), *projector.parameters()]
    assert [p.shape for p in teacher.parameters()] == [p.shape for p in students]
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    grouped = [p for group in module.param_groups() for p in group["params"]]
    assert [id(p) for p in grouped] == [id(p) for p in projector.parameters()]


def test_only_view_0_goes_through_the_backbone(backbone: Backbone) -> None:
    """So a Restorer pays for one view, and nothing of the key is kept for its backward pass."""
    module, seen = build(backbone), []
    backbone.register_forward_hook(lambda _, images, __: seen.append(images[0]))
    given = batch()
    module(Encodings(backbone, given))
    assert [id(images) for images in seen] == [id(given.views[0].image)]


def test_two_processes_are_one_with_the_global_batch(tmp_path: Path) -> None:
    def steps(rank: int | None) -> dict[str, Tensor]:
        """Two steps, the second with keys of the first in the queue; all of them, or one part."""
        torch.manual_seed(0)
        backbone = Flat()
        module = build(backbone)
        projector = module.get_submodule("projector")
        losses, found = [], []
        for step in range(2):
            whole = batch(6, seed=step)
            pick = slice(None) if rank is None else slice(3 * rank, 3 * rank + 3)
            loss = module(Encodings(backbone, part(whole, pick))).loss
            losses.append(loss)
            found.append(torch.cat([g.flatten() for g in gradients(loss, backbone, projector)]))
            module.after_step(HERE)
        queue = queue_of(module)
        return {
            "loss": torch.stack(losses),
            "gradient": torch.stack(found),
            "keys": queue.keys.clone(),
            "index": queue.index.clone(),
        }

    parts, whole = together(tmp_path, steps), steps(None)
    for name in ("loss", "gradient"):
        mean = torch.stack([one[name] for one in parts]).sum(0) / WORLD
        torch.testing.assert_close(mean, whole[name].detach(), atol=1e-6, rtol=1e-5)
    for one in parts:
        torch.testing.assert_close(one["keys"], whole["keys"], atol=1e-6, rtol=0)
        assert torch.equal(one["index"], whole["index"])


def test_under_bf16_autocast_loss_and_keys_are_in_float32_and_near(backbone: Backbone) -> None:
    module = build(backbone, key_norm="batch")
    expected = copy.deepcopy(module)(Encodings(backbone, batch())).loss
    with torch.autocast("cpu", torch.bfloat16):
        objective = module(Encodings(backbone, batch()))
    assert objective.loss.dtype == torch.float32
    torch.testing.assert_close(objective.loss, expected, atol=0.5, rtol=0)
    torch.testing.assert_close(queue_of(module).keys.norm(dim=1), torch.ones(SIZE))


def test_embedding_and_metric_are_the_query_and_its_cosine_with_the_key(backbone: Backbone) -> None:
    module, given = build(backbone, key_norm="batch"), batch()
    objective = module(Encodings(backbone, given))
    projector = module.get_submodule("projector")
    query, key = (embed(backbone, projector, view.image) for view in given.views)
    assert objective.embedding is not None
    torch.testing.assert_close(objective.embedding, query)
    torch.testing.assert_close(objective.metrics["cosine"], F.cosine_similarity(query, key).mean())


@pytest.mark.parametrize(
    ("queue", "n_images", "size"),
    [(None, 50, 50), (None, 1000, 64), (None, 8000, 400), (None, 10**7, 65_536), (9, 5, 9)],
)
def test_a_queue_left_to_the_data_is_a_twentieth_of_the_source(
    queue: int | None, n_images: int, size: int
) -> None:
    held = queue_of(build(Flat(), n_images, queue=queue, dim=2))
    assert held.keys.shape == (size, 2)


@pytest.mark.parametrize(("depth", "features"), [(18, 512), (50, 2048)])
def test_the_head_has_the_sizes_of_the_paper_and_follows_the_backbone(
    depth: int, features: int
) -> None:
    with torch.device("meta"):
        module = build(ResNet(depth, 1, zero_init_residual=True), dim=128)
        normed = build(ResNet(depth, 1, zero_init_residual=True), dim=128, head_norm=True)
    shapes = [tuple(p.shape) for p in module.get_submodule("projector").parameters()]
    assert shapes == [(features, features), (features,), (128, features), (128,)]
    kinds = [type(layer).__name__ for layer in normed.get_submodule("projector").children()]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]


def test_defaults_are_those_of_the_paper_and_its_public_code() -> None:
    options = MoCoOptions.model_validate({"queue": "none"})
    assert (options.dim, options.temperature) == (128, 0.2)
    assert options.queue is None
    (component,) = dira_moco.dira_discriminators()
    optimizer = Optimizer(**component.defaults["optimizer"])
    assert (optimizer.name, optimizer.lr, optimizer.lr_batch) == ("sgd", 0.03, 64)
    assert (optimizer.momentum, optimizer.weight_decay) == (0.9, 1e-4)
    assert (optimizer.schedule, optimizer.warmup_epochs) == ("cosine", 0)


@pytest.mark.parametrize(("steps", "momentum"), [(5, 0), (100, 0.9), (10**6, 0.999)])
def test_a_momentum_left_to_the_run_averages_its_last_tenth(steps: int, momentum: float) -> None:
    module = build(Flat(), momentum=None)
    projector, teacher = module.get_submodule("projector"), module.get_submodule("teacher.copies.1")
    before = next(teacher.parameters()).clone()
    with torch.no_grad():
        next(projector.parameters()).add_(1)
    module.after_step(Progress(0, steps, 0, 1))
    expected = momentum * before + (1 - momentum) * (before + 1)
    torch.testing.assert_close(next(teacher.parameters()).data, expected)


def test_with_norms_in_the_head_images_start_with_unlike_embeddings() -> None:
    alike = []
    for head_norm in (False, True):
        torch.manual_seed(0)
        backbone = TinyBackbone()
        z = build(backbone, head_norm=head_norm)(Encodings(backbone, batch(8))).embedding
        assert z is not None
        others = (z @ z.T).detach().fill_diagonal_(0)
        alike.append(float(others.sum() / (8 * 7)))
    assert alike[0] > 0.5
    assert alike[1] == pytest.approx(-1 / 7, abs=0.05)  # as little as eight vectors can be


def test_it_keeps_the_contract_with_norms_of_the_batch_too() -> None:
    assert [wrong for _, wrong in check("discriminator", "mocov2", key_norm="batch")] == [None] * 3
