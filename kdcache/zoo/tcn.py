"""A temporal convolutional network (Bai et al. 2018) that forecasts, or rebuilds, a window of a series.

Residual blocks of two causal convolutions each, the distance between the values that a convolution sees doubling from
block to block; the outputs are a linear map of the features at the last time, which see
1 + 2 (kernel - 1) (2^depth - 1) values back.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad, relu

from kdcache.errors import UsageError
from kdcache.zoo.arguments import share, whole_number

__all__ = ["TCN", "tcn"]


class Block(nn.Module):
    """relu(shortcut(x) + drop(relu(conv(drop(relu(conv(x))))))), [B, D, W] → [B, D', W], no value seeing later ones."""

    def __init__(self, before: int, after: int, kernel: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.past = (kernel - 1) * dilation
        self.conv1 = nn.Conv1d(before, after, kernel, dilation=dilation)
        self.conv2 = nn.Conv1d(after, after, kernel, dilation=dilation)
        self.shortcut = nn.Conv1d(before, after, 1) if before != after else nn.Identity()
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(relu(self.conv1(pad(x, (self.past, 0)))))
        y = self.drop(relu(self.conv2(pad(y, (self.past, 0)))))
        return relu(self.shortcut(x) + y)


class TCN(nn.Module):
    """[B, W] or [B, S, W] of S series → [B, H] values. Taps: `blocks.i` [B, D, W], `pooled` [B, D], the last time's."""

    def __init__(self, series: int, width: int, depth: int, kernel: int, dropout: float, outputs: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(width if number else series, width, kernel, 2**number, dropout) for number in range(depth)
        )
        self.pooled = nn.Identity()
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1) if x.dim() == 2 else x
        for block in self.blocks:
            x = block(x)
        values: Tensor = self.head(self.pooled(x[:, :, -1]))
        return values


def tcn(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: int = 32,
    depth: int = 4,
    kernel: int = 3,
    dropout: float = 0.0,
) -> TCN:
    """`depth` blocks of `width` channels; `num_classes` is the number of values H that are forecast or rebuilt.

    For one series and eight values the defaults have 22,184 parameters and see 61 values back.
    """
    if len(input_shape) not in (1, 2):
        raise UsageError(f"zoo:tcn takes windows [W], or [S, W] of S series; this input has shape {list(input_shape)}")
    for name, value in {"width": width, "depth": depth, "kernel": kernel}.items():
        whole_number("zoo:tcn", name, value)
    if depth > 20:
        raise UsageError(f"zoo:tcn: depth = {depth} would see 2^{depth} values back; at most 20")
    series = 1 if len(input_shape) == 1 else input_shape[0]
    return TCN(series, width, depth, kernel, share("zoo:tcn", "dropout", dropout), num_classes)
