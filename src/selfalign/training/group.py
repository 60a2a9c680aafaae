"""The processes that train one model together: who does what, and what they tell each other."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

T = TypeVar("T")


class Group:
    """One process of those that train together; by default the only one."""

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        """Take the number of this process, counted from 0, how many there are, and where it computes."""
        self.rank = rank
        self.size = size
        self.device = device or torch.device("cpu")

    @classmethod
    def join(cls, meeting: Path, rank: int, size: int, device_type: str) -> Self:
        """Meet the others of this machine through a file that does not exist yet."""
        device = torch.device(device_type, rank) if device_type == "cuda" else torch.device(device_type)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, init_method=f"file://{meeting.absolute()}", rank=rank, world_size=size
        )
        return cls(rank, size, device)

    def shard(self, model: torch.nn.Module, layers: Sequence[str]) -> None:
        """Cut weights, gradients and optimizer state into one part a process, in place (FSDP2).

        Args:
            model: The same weights in every process.
            layers: Names of the classes whose modules are gathered one at a time.

        Source: PyTorch FSDP, 2304.11277; the way of `fully_shard`, a cut of every parameter.
        """
        if self.size == 1:
            return
        mesh = init_device_mesh(self.device.type, (self.size,))
        for module in [m for m in model.modules() if type(m).__name__ in layers]:
            fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def unshard(self, model: torch.nn.Module) -> None:
        """Put the trained weights together again: whole in the first process, gone in the others."""
        if self.size == 1:
            return
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        whole: dict[int, torch.nn.Parameter] = {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is None or not parameter.requires_grad:
                    continue
                if id(parameter) not in whole:
                    tensor = full(parameter.detach())
                    kept = tensor.cpu() if self.rank == 0 else tensor.new_empty(0)
                    whole[id(parameter)] = torch.nn.Parameter(kept)
                module._parameters[name] = whole[id(parameter)]

    def folder(self, scratch: Path) -> Path:
        """Return where this process keeps its part of what training saves on its way."""
        return scratch if self.size == 1 else scratch / f"process-{self.rank + 1}-of-{self.size}"

    def share(self, batches: Sequence[T]) -> list[tuple[T, float]]:
        """Return the batches of this process and what each counts.

        Every process has as many, since all of them work on every pass: one that would have fewer computes
        one of the others' again, which counts 0.
        """
        own = list(batches[self.rank :: self.size])
        missing = math.ceil(len(batches) / self.size) - len(own)
        return [(batch, 1.0) for batch in own] + [(batches[0], 0.0)] * missing

    def sums(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the sums over all processes, which have to name the same values."""
        names = sorted(values)
        return dict(zip(names, self._reduced([values[n] for n in names], dist.ReduceOp.SUM), strict=True))

    def any(self, flag: bool) -> bool:
        """Return whether it is true of any process."""
        return self._reduced([float(flag)], dist.ReduceOp.MAX)[0] > 0

    def least(self, number: int) -> int:
        """Return the least number of any process."""
        return int(self._reduced([float(number)], dist.ReduceOp.MIN)[0])

    def _reduced(self, values: Sequence[float], how: Any) -> list[float]:
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, how)
        reduced: list[float] = tensor.tolist()
        return reduced


ALONE = Group()
"""One process, on its own."""


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds; all of it where nothing is cut."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """Return a tensor with the parts of all processes, which all have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
