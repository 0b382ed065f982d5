"""Which of the processes that train one model this is, and what is its share of the examples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from flattrain.ranges import Refused


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `world`. Alone, everything is its own and nothing is sent."""

    rank: int = 0
    world: int = 1

    @property
    def several(self) -> bool:
        return self.world > 1

    def share(self, examples: int) -> slice:
        """Which of `examples` in a row are this process's: sizes differ by one at most."""
        return slice(examples * self.rank // self.world, examples * (self.rank + 1) // self.world)

    def need(self, examples: int) -> None:
        """Refuse a batch of which some process would have nothing."""
        if examples < self.world:
            raise Refused(
                f"train.batch_size: a batch of {examples} cannot be shared by {self.world} processes; take a "
                f"batch of at least {self.world}, or fewer processes"
            )

    def same(self, tensor: Tensor) -> Tensor:
        """What process 0 has."""
        if not self.several:
            return tensor
        sent = tensor.detach().clone().contiguous()
        distributed.broadcast(sent, 0)
        return sent

    def same_bytes(self, content: bytes) -> bytes:
        """What process 0 has, of any length; nothing is unpickled."""
        if not self.several:
            return content
        length = int(self.same(torch.tensor(len(content))))
        mine = torch.zeros(length, dtype=torch.uint8)
        if self.rank == 0 and length:
            mine = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return bytes(self.same(mine).numpy())


ALONE = Ranks()


def joined() -> Ranks:
    """This process among those of torch.distributed, or alone."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return ALONE
    return Ranks(distributed.get_rank(), distributed.get_world_size())
