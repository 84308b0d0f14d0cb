"""Several processes at one cell: who takes which batches, and what all have seen together."""

import atexit
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process among those that work at the same cell.

    Attributes:
        rank: Which of them this is, from 0.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def takes(self, batch: int) -> bool:
        """Say whether a batch, counted from 0, is this process's to run."""
        return batch % self.count == self.rank

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes; each must call this."""
        if self.count == 1:
            return values
        total = _for_backend(values.clone())
        dist.all_reduce(total)
        return total.to(values.device)

    def gather(self, values: Tensor) -> list[Tensor]:
        """Return the tensors of all processes by rank; each must call this, with the same shape."""
        if self.count == 1:
            return [values]
        sent = _for_backend(values)
        gathered = [torch.empty_like(sent) for _ in range(self.count)]
        dist.all_gather(gathered, sent)
        return [found.to(values.device) for found in gathered]

    def any(self, flag: bool) -> bool:
        """Say whether any process says so; each must call this."""
        return bool(self.sum(torch.tensor(int(flag))))

    def wait(self) -> None:
        """Wait until all have come here."""
        if self.count > 1:
            dist.barrier()


ALONE = Processes()


def join() -> Processes:
    """Join the processes that torchrun has started, until the program ends; without torchrun this is the only one.

    To be called once: the processes cannot meet a second time.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # The others wait while the first one evaluates; one that dies is noticed by torchrun, not by the time.
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(days=7))
    atexit.register(dist.destroy_process_group)
    return Processes(dist.get_rank(), count)


def _for_backend(values: Tensor) -> Tensor:
    """Put a tensor where the processes exchange them: nccl does so between GPUs only, gloo on the CPU."""
    return values.cuda() if dist.get_backend() == "nccl" else values.cpu()
