"""Networks to export: one in the way of Cosmos DI, small and random, and some that are not fit. Nothing of ours is imported here.

Shapes: B images, h and w sides of the grid.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = (8, 8, 8, 5, 5, 5)


class CosmosEncoder(nn.Module):
    """Pixels from -1 to 1 to (ids [B, h, w] int32, codes [B, 6, h, w], a loss), as its quantiser returns them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8, stride=8)
        self.register_buffer("levels", torch.tensor(LEVELS), persistent=False)
        self.register_buffer("basis", torch.tensor([1, 8, 64, 512, 2560, 12800]), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.conv(x).permute(0, 2, 3, 1) * 3
        half = (self.levels - 1) * 1.001 / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        bounded = (z + (offset / half).atanh()).tanh() * half - offset
        codes = bounded.round() / (self.levels // 2)
        ids = ((codes * (self.levels // 2) + self.levels // 2).float() * self.basis).sum(dim=-1).to(torch.int32)
        return ids, codes.permute(0, 3, 1, 2).to(x.dtype), torch.zeros(len(x), 1, 1, 1)


class CosmosDecoder(nn.Module):
    """Ids [B, h, w] to pixels, in its own dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(6, 3, 8, stride=8)
        self.register_buffer("levels", torch.tensor(LEVELS), persistent=False)
        self.register_buffer("basis", torch.tensor([1, 8, 64, 512, 2560, 12800]), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        codes = ((ids[..., None] // self.basis) % self.levels - self.levels // 2) / (self.levels // 2)
        return self.conv(codes.permute(0, 3, 1, 2).to(self.conv.weight.dtype) * 3).tanh()


@cache
def cosmos(dtype: torch.dtype = torch.bfloat16) -> tuple[CosmosEncoder, CosmosDecoder]:
    torch.manual_seed(0)
    encoder, decoder = CosmosEncoder(), CosmosDecoder()
    return encoder.to(dtype).eval(), decoder.to(dtype).eval()


def traced(module: nn.Module | Callable[..., object], example: Tensor, *, freeze: bool = False, script: bool = False) -> bytes:
    """A file of torch.jit.save."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # torch.jit is deprecated, and tracing warns of what it fixes
        warnings.simplefilter("ignore")
        program = torch.jit.script(module) if script else torch.jit.trace(module, example, check_trace=False)
        torch.jit.save(torch.jit.freeze(program.eval()) if freeze else program, buffer)
    return buffer.getvalue()


@cache
def cosmos_files(dtype: torch.dtype = torch.bfloat16, size: int = 32) -> tuple[bytes, bytes]:
    """Traced with a batch of 1, as the published ones are."""
    encoder, decoder = cosmos(dtype)
    return traced(encoder, torch.zeros(1, 3, size, size, dtype=dtype)), traced(
        decoder, torch.zeros(1, size // 8, size // 8, dtype=torch.int32)
    )


class Brightness(nn.Module):
    """The mean of 8 x 8 pixels from 0 to 1 as one of 256 ids, [B, h, w] int64, or laid out as `form` says."""

    def __init__(self, form: str = "grid", batch: int = 0) -> None:
        super().__init__()
        self.form, self.batch = form, batch

    def forward(self, x: Tensor) -> Tensor:
        if self.batch and self.form != "flat":
            x = x.reshape(self.batch, 3, *x.shape[2:])  # as a network that was traced with one batch and kept it
        ids = (F.avg_pool2d(x, 8).mean(dim=1) * 255).round().long()
        if self.form == "flat":
            return ids.reshape(self.batch, -1)  # a batch of another size goes through, and comes out in rows of several images
        if self.form == "sequence":
            return ids.flatten(1)
        if self.form == "levels":
            return torch.stack([ids // 16, ids % 16], dim=-1).flatten(1, 2)
        if self.form == "video":
            return torch.stack([ids, ids], dim=1)
        if self.form == "one frame":
            return ids[:, None]
        if self.form == "beside":
            return ids + ids.sum(dim=0) % 7
        if self.form == "random":
            return ids + torch.randint(0, 9, ids.shape)
        if self.form == "vectors":
            return F.avg_pool2d(x, 8)
        if self.form == "mask":
            return ids > 100
        return ids
