"""From raw weights to excited ones."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from weanalysis.excitation._functions import DEVIATION_FLOOR, VARIANCE_FLOOR
from weanalysis.excitation.kernels.layout import (
    C_BIAS1,
    C_BIAS2,
    C_EXCITED,
    C_EXCITED_IN,
    C_EXCITED_POSITION,
    C_FC1,
    C_FC2,
    C_FIRST_HIDDEN,
    C_FIRST_KERNEL,
    C_FIRST_ROW,
    C_NORMALIZED,
    C_NUM_HIDDEN,
    C_NUM_IN,
    C_NUM_OUT,
    C_NUM_POSITIONS,
    C_WEIGHT,
    C_WEIGHT_IN,
    C_WEIGHT_POSITION,
    address,
    artanh,
    entry,
    limit_of,
    product,
)

_VARIANCE_FLOOR, _DEVIATION_FLOOR = tl.constexpr(VARIANCE_FLOOR), tl.constexpr(DEVIATION_FLOOR)


@triton.jit
def statistics(
    table,
    rows,
    means,
    scales,
    slopes,
    averages,
    largest,
    WEIGHT: tl.constexpr,
    UNBIASED: tl.constexpr,
    LOCATE: tl.constexpr,
    MAGNIFY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of each output channel mean and scale, and what its gradient needs of them; with LWE its kernels' averages.

    The list has (layer, output channel) of each program. With MWE alone, also the largest |z scale| of the channel.
    """
    program = tl.program_id(0)
    layer, out = tl.load(rows + 2 * program), tl.load(rows + 2 * program + 1)
    num_in, num_positions = entry(table, layer, C_NUM_IN), entry(table, layer, C_NUM_POSITIONS)
    size, lanes = num_in * num_positions, tl.arange(0, BLOCK)
    weight = address(table, layer, C_WEIGHT, WEIGHT) + out * size
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, size, BLOCK):
        total += tl.load(weight + first + lanes, mask=first + lanes < size, other=0.0).to(tl.float32)
    mean = tl.sum(total) / size
    squares = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, size, BLOCK):
        inside = first + lanes < size
        z = tl.load(weight + first + lanes, mask=inside, other=0.0).to(tl.float32) - mean
        squares += tl.where(inside, z * z, 0.0)
    square = tl.sum(squares)
    if UNBIASED:
        freedom = tl.maximum(size - 1, 1).to(tl.float32)
        deviation = tl.sqrt(square / freedom)
        scale = 1 / (deviation + _DEVIATION_FLOOR)
        slope = tl.where(deviation > 0, scale * scale / (tl.where(deviation > 0, deviation, 1.0) * freedom), 0.0)
    else:
        scale = 1 / tl.sqrt(square / size + _VARIANCE_FLOOR)
        slope = scale * scale * scale / size
    normalized = entry(table, layer, C_NORMALIZED) != 0
    mean, scale, slope = (
        tl.where(normalized, mean, 0.0),
        tl.where(normalized, scale, 1.0),
        tl.where(normalized, slope, 0.0),
    )
    row = entry(table, layer, C_FIRST_ROW) + out
    tl.store(means + row, mean)
    tl.store(scales + row, scale)
    tl.store(slopes + row, slope)
    if LOCATE:
        step_in, step_position = entry(table, layer, C_WEIGHT_IN), entry(table, layer, C_WEIGHT_POSITION)
        averages += entry(table, layer, C_FIRST_KERNEL) + out * num_in
        for first in range(0, num_in, BLOCK):
            inside = first + lanes < num_in
            total = tl.zeros((BLOCK,), tl.float32)
            for position in range(0, num_positions):
                place = (first + lanes) * step_in + position * step_position
                total += tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
            tl.store(averages + first + lanes, (total / num_positions - mean) * scale, mask=inside)
    elif MAGNIFY:
        most = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, size, BLOCK):
            inside = first + lanes < size
            z = tl.load(weight + first + lanes, mask=inside, other=0.0).to(tl.float32) - mean
            most = tl.maximum(most, tl.where(inside, tl.abs(z) * scale, 0.0))
        tl.store(largest + row, tl.max(most))


@triton.jit
def hidden_units(table, tiles, averages, hiddens, FC: tl.constexpr, TILE: tl.constexpr):
    """ReLU(FC1(average)); the list has (layer, first output channel, first hidden unit) of each program."""
    program = tl.program_id(0)
    layer = tl.load(tiles + 3 * program)
    out = tl.load(tiles + 3 * program + 1) + tl.arange(0, TILE)
    unit = tl.load(tiles + 3 * program + 2) + tl.arange(0, TILE)
    num_in, num_out, num_hidden = (
        entry(table, layer, C_NUM_IN),
        entry(table, layer, C_NUM_OUT),
        entry(table, layer, C_NUM_HIDDEN),
    )
    averages += entry(table, layer, C_FIRST_KERNEL)
    fc1 = address(table, layer, C_FC1, FC)
    result = product(averages, num_in, 1, fc1, 1, num_in, (out, num_out), (unit, num_hidden), num_in, TILE)
    bias = tl.load(address(table, layer, C_BIAS1, FC) + unit, mask=unit < num_hidden, other=0.0).to(tl.float32)
    hiddens += entry(table, layer, C_FIRST_HIDDEN)
    inside = (out[:, None] < num_out) & (unit[None, :] < num_hidden)
    place = out[:, None] * num_hidden + unit[None, :]
    tl.store(hiddens + place, tl.maximum(result + bias[None, :], 0.0), mask=inside)


@triton.jit
def multipliers(
    table,
    tiles,
    means,
    scales,
    hiddens,
    factors,
    largest,
    WEIGHT: tl.constexpr,
    EXCITED: tl.constexpr,
    FC: tl.constexpr,
    MAGNIFY: tl.constexpr,
    TILE: tl.constexpr,
):
    """The multiplier, and u: the excited weight, or where MWE follows the largest |u| of the tile.

    The list has (layer, first output channel, first input channel) of each program.
    """
    program = tl.program_id(0)
    layer = tl.load(tiles + 3 * program)
    out = tl.load(tiles + 3 * program + 1) + tl.arange(0, TILE)
    channel = tl.load(tiles + 3 * program + 2) + tl.arange(0, TILE)
    num_in, num_out, num_hidden = (
        entry(table, layer, C_NUM_IN),
        entry(table, layer, C_NUM_OUT),
        entry(table, layer, C_NUM_HIDDEN),
    )
    hiddens += entry(table, layer, C_FIRST_HIDDEN)
    fc2 = address(table, layer, C_FC2, FC)
    result = product(hiddens, num_hidden, 1, fc2, 1, num_hidden, (out, num_out), (channel, num_in), num_hidden, TILE)
    bias = tl.load(address(table, layer, C_BIAS2, FC) + channel, mask=channel < num_in, other=0.0).to(tl.float32)
    factor = 1 / (1 + tl.exp(-(result + bias[None, :])))
    inside = (out[:, None] < num_out) & (channel[None, :] < num_in)
    place = out[:, None] * num_in + channel[None, :]
    tl.store(factors + entry(table, layer, C_FIRST_KERNEL) + place, factor, mask=inside)
    row = entry(table, layer, C_FIRST_ROW) + out
    mean = tl.load(means + row, mask=out < num_out, other=0.0)
    factor *= tl.load(scales + row, mask=out < num_out, other=0.0)[:, None]
    num_positions = entry(table, layer, C_NUM_POSITIONS)
    size = num_in * num_positions
    weight, excited = address(table, layer, C_WEIGHT, WEIGHT), address(table, layer, C_EXCITED, EXCITED)
    place = out[:, None] * size + channel[None, :] * entry(table, layer, C_WEIGHT_IN)
    place_excited = out[:, None] * size + channel[None, :] * entry(table, layer, C_EXCITED_IN)
    step, step_excited = entry(table, layer, C_WEIGHT_POSITION), entry(table, layer, C_EXCITED_POSITION)
    most = tl.zeros((TILE, TILE), tl.float32)
    for position in range(0, num_positions):
        w = tl.load(weight + place + position * step, mask=inside, other=0.0).to(tl.float32)
        u = (w - mean[:, None]) * factor
        if MAGNIFY:
            most = tl.maximum(most, tl.where(inside, tl.abs(u), 0.0))
        else:
            tl.store(excited + place_excited + position * step_excited, u.to(EXCITED), mask=inside)
    if MAGNIFY:
        tl.store(largest + program, tl.max(most))


@triton.jit
def finish(
    table,
    rows,
    means,
    scales,
    factors,
    largest,
    eps,
    WEIGHT: tl.constexpr,
    EXCITED: tl.constexpr,
    LOCATE: tl.constexpr,
    MAGNIFY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The excited weight from u. The list has (layer, output channel) of each program."""
    program = tl.program_id(0)
    layer, out = tl.load(rows + 2 * program), tl.load(rows + 2 * program + 1)
    num_in, num_positions = entry(table, layer, C_NUM_IN), entry(table, layer, C_NUM_POSITIONS)
    lanes, row = tl.arange(0, BLOCK), entry(table, layer, C_FIRST_ROW) + out
    mean, scale = tl.load(means + row), tl.load(scales + row)
    weight = address(table, layer, C_WEIGHT, WEIGHT) + out * num_in * num_positions
    excited = address(table, layer, C_EXCITED, EXCITED) + out * num_in * num_positions
    step_in, step = entry(table, layer, C_WEIGHT_IN), entry(table, layer, C_WEIGHT_POSITION)
    excited_in, excited_step = entry(table, layer, C_EXCITED_IN), entry(table, layer, C_EXCITED_POSITION)
    factors += entry(table, layer, C_FIRST_KERNEL) + out * num_in
    if MAGNIFY:
        limit = limit_of(table, layer, largest, eps, BLOCK)
    for first in range(0, num_in, BLOCK):
        channel = first + lanes
        inside = channel < num_in
        factor = tl.full((BLOCK,), 1.0, tl.float32) * scale
        if LOCATE:
            factor *= tl.load(factors + channel, mask=inside, other=0.0)
        for position in range(0, num_positions):
            w = tl.load(weight + channel * step_in + position * step, mask=inside, other=0.0).to(tl.float32)
            u = (w - mean) * factor
            if MAGNIFY:
                u = limit * artanh(tl.where(inside, u / limit, 0.0))
            tl.store(excited + channel * excited_in + position * excited_step, u.to(EXCITED), mask=inside)
