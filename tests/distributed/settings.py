"""Ways to train one small network on several ranks, and the float64 single process that each must agree with.

A setting says how the network is spread over the ranks and how a step goes through it. The reference knows nothing of
ranks: it trains the whole network on the global batch, whose loss is the mean of the losses of all parts.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer

import gradwatch
from gradwatch.clip import by_layer_norm, by_value
from tests import reference

STEPS = 6  # what a sampled step shows of its update reaches the other ranks with the next step
ROWS = 16  # of the global batch
WIDTH = 6
LEARNING_RATE, MOMENTUM = 0.02, 0.9  # a momentum at which the largest batch goes beyond the limit of "auto", too
SIZES = (1.0, 0.5, 1.0, 8.0, 1.0)  # of the batches: what each way of clipping changes, and what it leaves alone, occurs
NORM, VALUE, LAYER_NORM = 1.0, 0.05, 0.3
POLICIES: dict[str, Any] = {
    "none": None,
    "norm": NORM,
    "value": by_value(VALUE),
    "layer norm": by_layer_norm(LAYER_NORM),
    "auto": "auto",
}
FIGURES = ("grad_norm", "nonfinite", "update_ratio", "grad_norm_total", "grad_norm_clipped_total", "skipped")

AFTER_TORCH_2_6 = "scale_grads" in inspect.signature(ScheduleGPipe).parameters
"""Whether torch does by itself what it should; 2.6 adds the gradients of microbatches up where others take the mean,
waits for ever in ``Schedule1F1B`` over gloo, and adds gradients in parts to whole weights with an error of 2e-4."""

Module = nn.Module
Part = tuple[int, int]
"""Which part of the global batch a rank has, and how many there are."""


# --- the network and its batches


def net() -> nn.Sequential:
    """Return the network: widths that no number of ranks divides, and a last layer whose bias is one entry."""
    torch.manual_seed(0)
    layers = nn.Linear(WIDTH, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 13), nn.Tanh(), nn.Linear(13, 1)
    nn.init.normal_(layers[2].bias)  # a weight of norm 0 has no update ratio
    return nn.Sequential(*layers).double()


class Branched(nn.Module):
    """A trunk that every row goes through, a branch for the first part of a batch, a layer that nobody calls."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = net()
        self.branch = nn.Linear(WIDTH, 1).double()
        self.spare = nn.Linear(WIDTH, 1).double()

    def forward(self, rows: Tensor, index: int) -> Tensor:
        return self.trunk(rows) + self.branch(rows) if index == 0 else self.trunk(rows)


class Routed(nn.Module):
    """A trunk, and experts of which each rank of a mesh may hold its own: every row goes to one of them."""

    def __init__(self, experts: int = 4) -> None:
        super().__init__()
        self.trunk = net()
        self.experts = nn.Parameter(torch.randn(experts, WIDTH, generator=generator(5), dtype=torch.float64) / 40)

    def forward(self, rows: Tensor) -> Tensor:
        here = self.experts.to_local() if isinstance(self.experts, DTensor) else self.experts
        return self.trunk(rows) + (rows.tanh() @ here.T).sum(1, keepdim=True)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(step: int, part: Part = (0, 1), micro: Part = (0, 1)) -> Tensor:
    """Return the rows of a part, or of one of the micro-batches that it is divided into."""
    rows = torch.randn(ROWS, WIDTH, generator=generator(100 + step), dtype=torch.float64) * SIZES[step % len(SIZES)]
    for index, count in (part, micro):
        rows = rows.chunk(count)[index]
    return rows


def targets(rows: Tensor) -> Tensor:
    return rows.sum(1, keepdim=True) / 4


def loss_of(model: Module, rows: Tensor, index: int) -> Tensor:
    """Return the mean over the rows; ``index`` is that of the part."""
    return nn.functional.mse_loss(model(rows), targets(rows))


def branched_loss(model: Module, rows: Tensor, index: int) -> Tensor:
    return nn.functional.mse_loss(model(rows, index), targets(rows))


# --- a setting, and what a run of it leaves


@dataclass(frozen=True)
class Job:
    """What one rank trains: how its step goes through the model, and how its weights are put together.

    Attributes:
        model: what is given to ``watch``.
        optimizer: the optimizer of this rank.
        backward: computes the gradients of one step.
        whole: returns {name in the reference: the whole weight}, of those that this rank has a part of.
    """

    model: Module
    optimizer: Optimizer
    backward: Callable[[int], None]
    whole: Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class Setting:
    """One way to train.

    Attributes:
        make: makes the job of this rank.
        parts: how many parts the global batch has.
        network: the network, whole and in one process.
        loss: the loss of a part.
        factor: what the setting multiplies the mean gradient by.
        world: the number of ranks.
        names: {name on this rank: name in the reference}; empty if the names are those of the reference.
        per_layer: False if layers are known by other names than their own (a flat parameter).
        own: True if a rank shows its own layers, and maybe others.
        bare: True if the reference is the same loop on the same ranks without gradwatch, since it rounds.
        whole: True if each rank holds whole tensors, so that "auto" goes by the weights.
        policies: which ways of clipping are tried.
    """

    make: Callable[[], Job]
    parts: int = 2
    network: Callable[[], Module] = net
    loss: Callable[[Module, Tensor, int], Tensor] = loss_of
    factor: float = 1.0
    world: int = 2
    names: Callable[[int], dict[str, str]] = lambda rank: {}
    per_layer: bool = True
    own: bool = False
    bare: bool = False
    whole: bool = False
    policies: Sequence[str] = tuple(POLICIES)


def sgd(model: Module) -> SGD:
    return SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)


def full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def weights_of(model: Module) -> dict[str, Tensor]:
    return {name: full(p.detach()).clone() for name, p in model.named_parameters()}


def train(setting: Setting, policy: str) -> dict[str, Any]:
    """Train the job of this rank, watched, and return figures, findings and whole weights as plain values."""
    job = setting.make()
    with gradwatch.watch(job.model, job.optimizer, clip=POLICIES[policy]) as watcher:
        for step in range(STEPS):
            job.backward(step)
            job.optimizer.step()
            job.optimizer.zero_grad()
    return {**shown(watcher), "weights": {name: tensor.tolist() for name, tensor in job.whole().items()}}


def shown(watcher: gradwatch.Watcher) -> dict[str, Any]:
    history = watcher.history
    return {
        "layers": list(history.layers),
        "findings": [finding.as_dict() for finding in watcher.findings],
        **{figure: history[figure].tolist() for figure in FIGURES},
    }


# --- the reference


def expected(setting: Setting, policy: str) -> dict[str, Any]:
    """Train the whole network in this process in float64, clip with torch, and return the same figures by layer."""
    model = setting.network()

    def backward(step: int) -> None:
        losses = [setting.loss(model, batch(step, (i, setting.parts)), i) for i in range(setting.parts)]
        (setting.factor * sum(losses) / setting.parts).backward()

    return train_bare(Job(model, sgd(model), backward, lambda: weights_of(model)), policy, whole=setting.whole)


def train_bare(job: Job, policy: str, *, whole: bool = False) -> dict[str, Any]:
    """Train without gradwatch. Figures are those of whole gradients in float64, whose parts torch puts together."""
    model, auto = job.model, reference.Auto()
    reach = None
    rows: dict[str, list[Any]] = {figure: [] for figure in FIGURES}
    for step in range(STEPS):
        job.backward(step)
        gradients = gradients_of(model)
        rows["grad_norm"].append([math.nan if g is None else g.norm().item() for g in gradients])
        rows["nonfinite"].append([0 if g is None else int((~g.isfinite()).sum()) for g in gradients])
        rows["grad_norm_total"].append(total_of(model))
        if whole and reach is None:
            reach = 0.16 * (1 - MOMENTUM) * weight_norm_of(model) / LEARNING_RATE
        clip_by_torch(model, policy, auto, reach)
        rows["grad_norm_clipped_total"].append(total_of(model))
        before = [weight.double() for weight in weights_of(model).values()]
        job.optimizer.step()
        after = weights_of(model).values()
        rows["update_ratio"].append([((a - b).norm() / b.norm()).item() for a, b in zip(after, before, strict=True)])
        rows["skipped"].append(False)
        job.optimizer.zero_grad()
    weights = {name: tensor.tolist() for name, tensor in job.whole().items()}
    return {**rows, "layers": [name for name, _ in model.named_parameters()], "findings": [], "weights": weights}


def gradients_of(model: Module) -> list[Tensor | None]:
    return [None if p.grad is None else full(p.grad).double() for p in model.parameters()]


def total_of(model: Module) -> float:
    norms = [gradient.norm() for gradient in gradients_of(model) if gradient is not None]
    return torch.stack(norms).norm().item()


def weight_norm_of(model: Module) -> float:
    return (
        torch.stack([full(p.detach()).double().norm() for p in model.parameters() if p.grad is not None]).norm().item()
    )


def clip_by_torch(model: Module, policy: str, auto: reference.Auto, reach: float | None) -> None:
    """Clip as ``policy`` does; ``reach`` is the limit of "auto" under SGD where a rank holds whole tensors."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    if policy == "norm":
        nn.utils.clip_grad_norm_(parameters, NORM)
    elif policy == "value":
        nn.utils.clip_grad_value_(parameters, VALUE)
    elif policy == "layer norm":
        for parameter in parameters:
            nn.utils.clip_grad_norm_([parameter], LAYER_NORM)
    elif policy == "auto":
        total = total_of(model)
        limit = auto.clip(total) if reach is None else reach
        for parameter in parameters:  # torch's own clipping makes each norm smaller by 1e-6, whatever the limit
            parameter.grad *= min(1.0, limit / total)


# --- data parallel: every rank has the whole network and a part of the batch


def rank_part() -> Part:
    return dist.get_rank(), dist.get_world_size()


def plain_job(model: Module, optimizer: Optimizer, part: Part, loss: Any = loss_of, names: Any = None) -> Job:
    def backward(step: int) -> None:
        loss(model, batch(step, part), part[0]).backward()

    return Job(model, optimizer, backward, names or (lambda: weights_of(getattr(model, "module", model))))


def ddp(**options: Any) -> Callable[[], Job]:
    def make() -> Job:
        model = DistributedDataParallel(net(), **options)
        return plain_job(model, sgd(model), rank_part())

    return make


def ddp_accumulating() -> Job:
    model = DistributedDataParallel(net())

    def backward(step: int) -> None:
        for micro in range(2):
            with model.no_sync() if micro == 0 else nullcontext():
                (loss_of(model, batch(step, rank_part(), (micro, 2)), 0) / 2).backward()

    return Job(model, sgd(model), backward, lambda: weights_of(model.module))


def ddp_with_hook() -> Job:
    """Averages, and then halves: what a hook makes of gradients is what counts."""
    model = DistributedDataParallel(net())

    def halve(group, bucket):  # DDP refuses annotations that are strings
        return allreduce_hook(group, bucket).then(lambda future: future.value() / 2)

    model.register_comm_hook(None, halve)
    return plain_job(model, sgd(model), rank_part())


def ddp_branched() -> Job:
    torch.manual_seed(0)
    model = DistributedDataParallel(Branched(), find_unused_parameters=True)
    return plain_job(model, sgd(model), rank_part(), branched_loss)


def branched() -> Module:
    torch.manual_seed(0)
    return Branched()


def zero_redundancy() -> Job:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns of torch.jit where it is imported

    model = DistributedDataParallel(net())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), SGD, lr=LEARNING_RATE, momentum=MOMENTUM)
    return plain_job(model, optimizer, rank_part())


def watched_inside() -> Job:
    """The module within DDP is watched, not DDP itself."""
    model = DistributedDataParallel(net())
    return dataclasses.replace(plain_job(model, sgd(model), rank_part()), model=model.module)


# --- sharded: every rank has a part of each weight and a part of the batch


def shard(model: Module, **options: Any) -> Module:
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, **options)
    return fully_shard(model, **options)


def fsdp2(**options: Any) -> Callable[[], Job]:
    def make() -> Job:
        model = shard(net(), **options)
        return plain_job(model, sgd(model), rank_part())

    return make


def fsdp2_mixed() -> Job:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = shard(net().float(), mp_policy=policy)

    def loss(model: Module, rows: Tensor, index: int) -> Tensor:
        return nn.functional.mse_loss(model(rows).float(), targets(rows).float())

    return plain_job(model, sgd(model), rank_part(), loss)


def fsdp2_offloaded() -> Job:
    model = shard(net(), offload_policy=CPUOffloadPolicy(pin_memory=False))
    return plain_job(model, sgd(model), rank_part())


def fsdp2_accumulating() -> Job:
    model = shard(net())

    def backward(step: int) -> None:
        for micro in range(2):
            model.set_requires_gradient_sync(micro == 1)
            (loss_of(model, batch(step, rank_part(), (micro, 2)), 0) / 2).backward()

    return Job(model, sgd(model), backward, lambda: weights_of(model))


def hsdp() -> Job:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    model = shard(net(), mesh=mesh)
    return plain_job(model, sgd(model), rank_part())


def fsdp1(use_orig_params: bool, **options: Any) -> Callable[[], Job]:
    def make() -> Job:
        policy = ModuleWrapPolicy({nn.Linear})
        device = torch.device("cpu")
        model = FullyShardedDataParallel(
            net(), auto_wrap_policy=policy, device_id=device, use_orig_params=use_orig_params, **options
        )

        def whole() -> dict[str, Tensor]:
            with FullyShardedDataParallel.summon_full_params(model):
                named = [(name.replace("_fsdp_wrapped_module.", ""), p) for name, p in model.named_parameters()]
                return {name: p.detach().clone() for name, p in named if "_flat_param" not in name}

        return plain_job(model, sgd(model), rank_part(), names=whole)

    return make


# --- tensor parallel: every rank has a part of each weight and the whole batch


class Block(nn.Module):
    """Two pairs of layers to be divided by columns and by rows, with a norm along the sequence between them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, 8)
        self.norm = nn.LayerNorm(8)
        self.head_up, self.head = nn.Linear(8, 10), nn.Linear(10, 1)
        nn.init.normal_(self.norm.bias)

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.norm(self.down(nn.functional.gelu(self.up(rows))))
        return self.head(nn.functional.gelu(self.head_up(hidden)))


def block() -> Module:
    torch.manual_seed(0)
    return Block().double()


def block_loss(model: Module, rows: Tensor, index: int) -> Tensor:
    """As ``loss_of``; rows lie along a sequence, which sequence parallelism divides."""
    outputs = model(rows.unsqueeze(0)).squeeze(0)
    return nn.functional.mse_loss(outputs, targets(rows))


def plan(sequence: bool) -> dict[str, Any]:
    first = {"up": ColwiseParallel(), "head_up": ColwiseParallel(), "head": RowwiseParallel()}
    if not sequence:
        return {**first, "down": RowwiseParallel()}
    return {
        **first,
        "down": RowwiseParallel(output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "head_up": ColwiseParallel(input_layouts=Shard(1)),
    }


def tensor_parallel(sequence: bool = False) -> Callable[[], Job]:
    def make() -> Job:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        model = parallelize_module(block(), mesh, plan(sequence))
        return plain_job(model, sgd(model), (0, 1), block_loss)

    return make


def fsdp2_and_tensor_parallel() -> Job:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = parallelize_module(block(), mesh["tensor"], plan(sequence=True))
    for layer in model.children():
        fully_shard(layer, mesh=mesh["data"])
    fully_shard(model, mesh=mesh["data"])
    return plain_job(model, sgd(model), (mesh["data"].get_local_rank(), 2), block_loss)


def experts() -> Job:
    """A trunk sharded over all ranks, experts divided over a mesh of their own and replicated over the other one."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "expert"))
    model = Routed()
    divided = distribute_tensor(model.experts.detach(), mesh, [Replicate(), Shard(0)])
    model.experts = nn.Parameter(divided)
    shard(model.trunk)
    world = dist.get_world_size()
    part = rank_part()

    def backward(step: int) -> None:
        """Each rank scores the rows of all ranks with the experts that it holds, and its own with the trunk."""
        rows, everything = batch(step, part), batch(step)
        local = model.experts.to_local()
        partial = everything.tanh() @ local.T
        summed = SumOverRanks.apply(partial.sum(1, keepdim=True), mesh["expert"].get_group())
        outputs = model.trunk(rows) + summed.chunk(world)[part[0]]
        nn.functional.mse_loss(outputs, targets(rows)).backward()
        gradient = model.experts.grad.to_local()
        dist.all_reduce(gradient, group=mesh.get_group("data"))
        gradient /= world

    return Job(model, sgd(model), backward, lambda: weights_of(model))


class SumOverRanks(torch.autograd.Function):
    """The sum over the ranks of a group; the gradient of each rank's term is the sum over the ranks."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, group: Any) -> Tensor:
        context.group = group
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        dist.all_reduce(total, group=context.group)
        return total, None


# --- pipelines: every rank has some layers and the whole batch


CUT = 3  # the first stage has the layers before it
MICROBATCHES = 4


def stage_names(rank: int, repeated: bool) -> dict[str, str]:
    """Return {name on this rank: name in the reference} of the parameters of a stage."""
    names = [name for name, _ in net().named_parameters()]
    mine = [name for name in names if (int(name[0]) >= CUT) == bool(rank)]
    return {f"{int(name[0]) - CUT * rank}{name[1:]}" if repeated else name: name for name in mine}


def pipeline(schedule: Any, repeated: bool) -> Callable[[], Job]:
    def make() -> Job:
        rank = dist.get_rank()
        layers = list(net().named_children())[CUT * rank : CUT * (rank + 1)]
        named = OrderedDict((name if not repeated else str(i), layer) for i, (name, layer) in enumerate(layers))
        model = nn.Sequential(named)
        stage = PipelineStage(model, rank, 2, torch.device("cpu"))
        runner = schedule(stage, n_microbatches=MICROBATCHES, loss_fn=nn.functional.mse_loss)

        def backward(step: int) -> None:
            rows = batch(step)
            runner.step(rows) if rank == 0 else runner.step(target=targets(rows))

        names = stage_names(rank, repeated)
        return Job(model, sgd(model), backward, lambda: {names[n]: p.detach() for n, p in model.named_parameters()})

    return make


FEW = ("none", "norm", "value")
SETTINGS: dict[str, Setting] = {
    "DDP": Setting(ddp(), whole=True),
    "DDP, module watched": Setting(watched_inside, policies=FEW),
    "DDP, no_sync": Setting(ddp_accumulating, policies=FEW),
    "DDP, gradient_as_bucket_view": Setting(ddp(gradient_as_bucket_view=True), policies=FEW),
    "DDP, static_graph": Setting(ddp(static_graph=True), policies=FEW),
    "DDP, communication hook": Setting(ddp_with_hook, factor=0.5, policies=FEW),
    "DDP, unused parameters": Setting(ddp_branched, network=branched, loss=branched_loss, whole=True),
    "ZeroRedundancyOptimizer": Setting(zero_redundancy, policies=FEW),
    "FSDP2": Setting(fsdp2()),
    "FSDP2, not resharded": Setting(fsdp2(reshard_after_forward=False), policies=FEW),
    "FSDP2, mixed precision": Setting(fsdp2_mixed, bare=True, policies=FEW),
    "FSDP2, CPU offload": Setting(fsdp2_offloaded, policies=FEW),
    "FSDP2, accumulation": Setting(fsdp2_accumulating, policies=FEW),
    "FSDP1": Setting(fsdp1(use_orig_params=True)),
    "FSDP1, flat parameters": Setting(fsdp1(use_orig_params=False), per_layer=False, policies=FEW),
    "FSDP1, not sharded": Setting(
        fsdp1(use_orig_params=True, sharding_strategy=ShardingStrategy.NO_SHARD), policies=FEW
    ),
    "tensor parallel": Setting(tensor_parallel(), parts=1, network=block, loss=block_loss),
    "sequence parallel": Setting(
        tensor_parallel(sequence=True),
        parts=1,
        network=block,
        loss=block_loss,
        bare=not AFTER_TORCH_2_6,
        policies=tuple(POLICIES) if AFTER_TORCH_2_6 else ("none",),  # torch's own clipping departs there, too
    ),
    **{
        f"pipeline, {schedule.__name__}{', repeated names' if repeated else ''}": Setting(
            pipeline(schedule, repeated),
            parts=1,
            factor=1.0 if AFTER_TORCH_2_6 else MICROBATCHES,
            names=lambda rank, repeated=repeated: stage_names(rank, repeated),
            own=True,
            policies=FEW,
        )
        for schedule, repeated in ((ScheduleGPipe, False), (Schedule1F1B, False), (Schedule1F1B, True))
        if schedule is ScheduleGPipe or AFTER_TORCH_2_6
    },
    "HSDP": Setting(hsdp, parts=4, world=4),
    "FSDP2 and tensor parallel": Setting(fsdp2_and_tensor_parallel, network=block, loss=block_loss, world=4),
    "expert mesh": Setting(experts, parts=4, network=Routed, world=4),
}


def key(name: str, policy: str) -> str:
    return f"{name} | clip {policy}"


def program(setting: Setting, policy: str) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        watched = train(setting, policy)
        return {**watched, "bare": train_bare(setting.make(), policy)} if setting.bare else watched

    return run


CASES = [(name, policy) for name, setting in SETTINGS.items() for policy in setting.policies]
PROGRAMS = {key(name, policy): program(SETTINGS[name], policy) for name, policy in CASES}
