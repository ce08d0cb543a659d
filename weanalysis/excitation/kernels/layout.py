"""What kernels read of the layers, and what they have in common."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

# The columns of the table of layers, int64: addresses, sizes, strides in elements, and offsets into what layers share.
C_WEIGHT = tl.constexpr(0)
C_EXCITED = tl.constexpr(1)
C_GRAD = tl.constexpr(2)
C_FC1 = tl.constexpr(3)
C_BIAS1 = tl.constexpr(4)
C_FC2 = tl.constexpr(5)
C_BIAS2 = tl.constexpr(6)
C_NUM_IN = tl.constexpr(7)
C_NUM_POSITIONS = tl.constexpr(8)
C_NUM_OUT = tl.constexpr(9)
C_NUM_HIDDEN = tl.constexpr(10)
C_NORMALIZED = tl.constexpr(11)
C_WEIGHT_IN = tl.constexpr(12)
C_WEIGHT_POSITION = tl.constexpr(13)
C_EXCITED_IN = tl.constexpr(14)
C_EXCITED_POSITION = tl.constexpr(15)
C_GRAD_OUT = tl.constexpr(16)
C_GRAD_IN = tl.constexpr(17)
C_GRAD_POSITION = tl.constexpr(18)
C_FIRST_ROW = tl.constexpr(19)
C_FIRST_KERNEL = tl.constexpr(20)
C_FIRST_HIDDEN = tl.constexpr(21)
C_FIRST_LARGEST = tl.constexpr(22)
C_NUM_LARGEST = tl.constexpr(23)
C_FIRST_WEIGHT = tl.constexpr(24)
C_D_FC1 = tl.constexpr(25)
C_D_BIAS1 = tl.constexpr(26)
C_D_FC2 = tl.constexpr(27)
C_D_BIAS2 = tl.constexpr(28)

COLUMNS = tuple(name.removeprefix("C_").lower() for name in list(globals()) if name.startswith("C_"))
_WIDTH = tl.constexpr(len(COLUMNS))

# Sides of the tiles that matrices are multiplied in, and weights of a row that a program takes at a time.
TILE = 32
BLOCK = 256

_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def dtype_of(dtype: torch.dtype) -> Any:
    """What Triton calls a dtype."""
    return _DTYPES[dtype]


@triton.jit
def entry(table, layer, column):
    return tl.load(table + layer * _WIDTH + column)


@triton.jit
def address(table, layer, column, dtype: tl.constexpr):
    return tl.load(table + layer * _WIDTH + column).to(tl.pointer_type(dtype))


@triton.jit
def artanh(ratio):
    # The logarithm loses what is small to rounding; up to 0.1 the series is exact in float32.
    square = ratio * ratio
    series = ratio * (1 + square * (1 / 3 + square * (1 / 5 + square * (1 / 7 + square / 9))))
    bounded = tl.where(tl.abs(ratio) < 0.1, 0.0, ratio)
    return tl.where(tl.abs(ratio) < 0.1, series, 0.5 * tl.log((1 + bounded) / (1 - bounded)))


@triton.jit
def product(left, left_row, left_column, right, right_row, right_column, rows, columns, length, TILE: tl.constexpr):
    """A tile of the product of two matrices; `rows` and `columns` are its places, and where the matrices end."""
    inner = tl.arange(0, TILE)
    row, num_rows = rows
    column, num_columns = columns
    result = tl.zeros((TILE, TILE), tl.float32)
    for first in range(0, length, TILE):
        place = first + inner
        one = tl.load(
            left + row[:, None] * left_row + place[None, :] * left_column,
            mask=(row[:, None] < num_rows) & (place[None, :] < length),
            other=0.0,
        ).to(tl.float32)
        other = tl.load(
            right + place[:, None] * right_row + column[None, :] * right_column,
            mask=(place[:, None] < length) & (column[None, :] < num_columns),
            other=0.0,
        ).to(tl.float32)
        result = tl.dot(one, other, result, input_precision="ieee")
    return result


@triton.jit
def limit_of(table, layer, largest, eps, BLOCK: tl.constexpr):
    """(1 + eps) times the largest |u| of a layer; 1 for a tensor of zeros."""
    lanes, num_largest = tl.arange(0, BLOCK), entry(table, layer, C_NUM_LARGEST)
    largest += entry(table, layer, C_FIRST_LARGEST)
    most = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, num_largest, BLOCK):
        most = tl.maximum(most, tl.load(largest + first + lanes, mask=first + lanes < num_largest, other=0.0))
    limit = (1 + eps) * tl.max(most)
    return tl.where(limit > 0, limit, 1.0)
