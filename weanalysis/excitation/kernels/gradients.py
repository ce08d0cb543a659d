"""From gradients of excited weights to those of raw weights and of the layers of LWE."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from weanalysis.excitation.kernels.layout import (
    C_D_BIAS1,
    C_D_BIAS2,
    C_D_FC1,
    C_D_FC2,
    C_FC1,
    C_FC2,
    C_FIRST_HIDDEN,
    C_FIRST_KERNEL,
    C_FIRST_ROW,
    C_FIRST_WEIGHT,
    C_GRAD,
    C_GRAD_IN,
    C_GRAD_OUT,
    C_GRAD_POSITION,
    C_NORMALIZED,
    C_NUM_HIDDEN,
    C_NUM_IN,
    C_NUM_OUT,
    C_NUM_POSITIONS,
    C_WEIGHT,
    C_WEIGHT_IN,
    C_WEIGHT_POSITION,
    address,
    entry,
    limit_of,
    product,
)


@triton.jit
def of_multiplier(
    table,
    rows,
    means,
    scales,
    factors,
    largest,
    outputs,
    eps,
    WEIGHT: tl.constexpr,
    GRAD: tl.constexpr,
    MAGNIFY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient of what FC2 gives, before the sigmoid. The list has (layer, output channel) of each program."""
    program = tl.program_id(0)
    layer, out = tl.load(rows + 2 * program), tl.load(rows + 2 * program + 1)
    num_in, num_positions = entry(table, layer, C_NUM_IN), entry(table, layer, C_NUM_POSITIONS)
    lanes, row = tl.arange(0, BLOCK), entry(table, layer, C_FIRST_ROW) + out
    mean, scale = tl.load(means + row), tl.load(scales + row)
    weight = address(table, layer, C_WEIGHT, WEIGHT) + out * num_in * num_positions
    grad = address(table, layer, C_GRAD, GRAD) + out * entry(table, layer, C_GRAD_OUT)
    step_in, step = entry(table, layer, C_WEIGHT_IN), entry(table, layer, C_WEIGHT_POSITION)
    grad_in, grad_step = entry(table, layer, C_GRAD_IN), entry(table, layer, C_GRAD_POSITION)
    kernels = entry(table, layer, C_FIRST_KERNEL) + out * num_in
    if MAGNIFY:
        limit = limit_of(table, layer, largest, eps, BLOCK)
    for first in range(0, num_in, BLOCK):
        channel = first + lanes
        inside = channel < num_in
        factor = tl.load(factors + kernels + channel, mask=inside, other=0.0)
        total = tl.zeros((BLOCK,), tl.float32)
        for position in range(0, num_positions):
            w = tl.load(weight + channel * step_in + position * step, mask=inside, other=0.0).to(tl.float32)
            g = tl.load(grad + channel * grad_in + position * grad_step, mask=inside, other=0.0).to(tl.float32)
            normal = (w - mean) * scale
            if MAGNIFY:
                ratio = tl.where(inside, normal * factor / limit, 0.0)
                g = g / (1 - ratio * ratio)
            total += g * normal
        tl.store(outputs + kernels + channel, total * factor * (1 - factor), mask=inside)


@triton.jit
def of_hidden(table, tiles, outputs, hiddens, d_hiddens, FC: tl.constexpr, TILE: tl.constexpr):
    """The gradient of the hidden units before the ReLU; the list is that of `hidden_units`."""
    program = tl.program_id(0)
    layer = tl.load(tiles + 3 * program)
    out = tl.load(tiles + 3 * program + 1) + tl.arange(0, TILE)
    unit = tl.load(tiles + 3 * program + 2) + tl.arange(0, TILE)
    num_in, num_out, num_hidden = (
        entry(table, layer, C_NUM_IN),
        entry(table, layer, C_NUM_OUT),
        entry(table, layer, C_NUM_HIDDEN),
    )
    outputs += entry(table, layer, C_FIRST_KERNEL)
    fc2 = address(table, layer, C_FC2, FC)
    result = product(outputs, num_in, 1, fc2, num_hidden, 1, (out, num_out), (unit, num_hidden), num_in, TILE)
    inside = (out[:, None] < num_out) & (unit[None, :] < num_hidden)
    place = entry(table, layer, C_FIRST_HIDDEN) + out[:, None] * num_hidden + unit[None, :]
    is_on = tl.load(hiddens + place, mask=inside, other=0.0) > 0
    tl.store(d_hiddens + place, tl.where(is_on, result, 0.0), mask=inside)


@triton.jit
def of_layers(table, tiles, averages, hiddens, outputs, d_hiddens, grads, FC: tl.constexpr, TILE: tl.constexpr):
    """The gradients of FC1 and FC2; the list has (layer, first hidden unit, first input channel) of each program."""
    program = tl.program_id(0)
    layer = tl.load(tiles + 3 * program)
    first_unit, first_channel = tl.load(tiles + 3 * program + 1), tl.load(tiles + 3 * program + 2)
    unit, channel = first_unit + tl.arange(0, TILE), first_channel + tl.arange(0, TILE)
    num_in, num_out, num_hidden = (
        entry(table, layer, C_NUM_IN),
        entry(table, layer, C_NUM_OUT),
        entry(table, layer, C_NUM_HIDDEN),
    )
    averages += entry(table, layer, C_FIRST_KERNEL)
    outputs += entry(table, layer, C_FIRST_KERNEL)
    hiddens += entry(table, layer, C_FIRST_HIDDEN)
    d_hiddens += entry(table, layer, C_FIRST_HIDDEN)
    units, channels = (unit, num_hidden), (channel, num_in)
    inside = (unit[:, None] < num_hidden) & (channel[None, :] < num_in)
    result = product(d_hiddens, 1, num_hidden, averages, num_in, 1, units, channels, num_out, TILE)
    place = entry(table, layer, C_D_FC1) + unit[:, None] * num_in + channel[None, :]
    tl.store(grads + place, result.to(FC), mask=inside)
    result = product(hiddens, 1, num_hidden, outputs, num_in, 1, units, channels, num_out, TILE)
    place = entry(table, layer, C_D_FC2) + channel[None, :] * num_hidden + unit[:, None]
    tl.store(grads + place, result.to(FC), mask=inside)
    # Each bias is the work of the programs at one edge.
    if first_channel == 0:
        _sum_of_rows(d_hiddens, num_out, num_hidden, unit, grads + entry(table, layer, C_D_BIAS1), FC, TILE)
    if first_unit == 0:
        _sum_of_rows(outputs, num_out, num_in, channel, grads + entry(table, layer, C_D_BIAS2), FC, TILE)


@triton.jit
def _sum_of_rows(matrix, num_rows, num_columns, column, result, FC: tl.constexpr, TILE: tl.constexpr):
    total = tl.zeros((TILE,), tl.float32)
    for first in range(0, num_rows, TILE):
        row = first + tl.arange(0, TILE)
        inside = (row[:, None] < num_rows) & (column[None, :] < num_columns)
        total += tl.sum(tl.load(matrix + row[:, None] * num_columns + column[None, :], mask=inside, other=0.0), 0)
    tl.store(result + column, total.to(FC), mask=column < num_columns)


@triton.jit
def of_average(table, tiles, d_hiddens, d_averages, FC: tl.constexpr, TILE: tl.constexpr):
    """The gradient of the kernels' averages; the list is that of `multipliers`."""
    program = tl.program_id(0)
    layer = tl.load(tiles + 3 * program)
    out = tl.load(tiles + 3 * program + 1) + tl.arange(0, TILE)
    channel = tl.load(tiles + 3 * program + 2) + tl.arange(0, TILE)
    num_in, num_out, num_hidden = (
        entry(table, layer, C_NUM_IN),
        entry(table, layer, C_NUM_OUT),
        entry(table, layer, C_NUM_HIDDEN),
    )
    d_hiddens += entry(table, layer, C_FIRST_HIDDEN)
    fc1 = address(table, layer, C_FC1, FC)
    result = product(d_hiddens, num_hidden, 1, fc1, num_in, 1, (out, num_out), (channel, num_in), num_hidden, TILE)
    place = entry(table, layer, C_FIRST_KERNEL) + out[:, None] * num_in + channel[None, :]
    tl.store(d_averages + place, result, mask=(out[:, None] < num_out) & (channel[None, :] < num_in))


@triton.jit
def of_weight(
    table,
    rows,
    means,
    scales,
    slopes,
    factors,
    largest,
    d_averages,
    grads,
    eps,
    WEIGHT: tl.constexpr,
    GRAD: tl.constexpr,
    LOCATE: tl.constexpr,
    MAGNIFY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gradient of the raw weight; the list has (layer, output channel) of each program.

    With y that of z scale: scale (y - mean(y)) - z slope sum(y z), where the slope follows from the kind of deviation.
    """
    program = tl.program_id(0)
    layer, out = tl.load(rows + 2 * program), tl.load(rows + 2 * program + 1)
    num_in, num_positions = entry(table, layer, C_NUM_IN), entry(table, layer, C_NUM_POSITIONS)
    lanes, row = tl.arange(0, BLOCK), entry(table, layer, C_FIRST_ROW) + out
    mean, scale, slope = tl.load(means + row), tl.load(scales + row), tl.load(slopes + row)
    size = num_in * num_positions
    weight = address(table, layer, C_WEIGHT, WEIGHT) + out * size
    grad = address(table, layer, C_GRAD, GRAD) + out * entry(table, layer, C_GRAD_OUT)
    step_in, step = entry(table, layer, C_WEIGHT_IN), entry(table, layer, C_WEIGHT_POSITION)
    grad_in, grad_step = entry(table, layer, C_GRAD_IN), entry(table, layer, C_GRAD_POSITION)
    kernels = entry(table, layer, C_FIRST_KERNEL) + out * num_in
    grads += entry(table, layer, C_FIRST_WEIGHT) + out * size
    limit = 1.0
    if MAGNIFY:
        limit = limit_of(table, layer, largest, eps, BLOCK)
    total, along = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for turn in range(0, 2):  # first the sums, then what they are needed for
        shift = tl.where(entry(table, layer, C_NORMALIZED) != 0, tl.sum(total) / size, 0.0)
        incline = tl.sum(along) * slope
        for first in range(0, num_in, BLOCK):
            channel = first + lanes
            inside = channel < num_in
            factor = tl.full((BLOCK,), 1.0, tl.float32)
            own = tl.zeros((BLOCK,), tl.float32)
            if LOCATE:
                factor = tl.load(factors + kernels + channel, mask=inside, other=0.0)
                own = tl.load(d_averages + kernels + channel, mask=inside, other=0.0) / num_positions
            for position in range(0, num_positions):
                w = tl.load(weight + channel * step_in + position * step, mask=inside, other=0.0).to(tl.float32)
                g = tl.load(grad + channel * grad_in + position * grad_step, mask=inside, other=0.0).to(tl.float32)
                z = w - mean
                if MAGNIFY:
                    ratio = tl.where(inside, z * scale * factor / limit, 0.0)
                    g = g / (1 - ratio * ratio)
                y = tl.where(inside, g * factor + own, 0.0)
                if turn == 0:
                    total += y
                    along += y * z
                else:
                    pulled = scale * (y - shift) - z * incline
                    tl.store(grads + channel * step_in + position * step, pulled.to(WEIGHT), mask=inside)
