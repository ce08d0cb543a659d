"""Hooks."""

from __future__ import annotations

import torch
from torch import nn

from odd_networks.base import NUM_CLASSES, Base, conv, norm, odd


@odd("a hook that edits the output")
def _():
    net = Base()
    net.b.register_forward_hook(lambda module, args, output: output.tanh() * 2)
    return net


@odd("a hook that needs all channels")
def _():
    net = Base()
    scale = torch.tensor([0.5, 1, 2, 1])[:, None, None]
    net.b.register_forward_hook(lambda module, args, output: output * scale)
    return net


@odd("a hook that mixes all channels")
def _():
    net = Base()
    net.b.register_forward_hook(lambda module, args, output: output - 2 * output.mean(1, keepdim=True))
    return net


@odd("a hook that asks for the channels' number")
def _():
    def check(module, args, output):
        if output.shape[1] != module.out_channels or module.out_channels != 4:
            raise LookupError("four channels\nare wanted")

    net = Base()
    net.b.register_forward_hook(check)
    return net


@odd("a hook that edits the input")
def _():
    net = Base()
    net.b.register_forward_pre_hook(lambda module, args: (args[0].abs() - 0.5,))
    return net


@odd("a hook on a batch norm behind a convolution")
def _():
    net = nn.Sequential()
    net.a, net.norm = conv(3, 4), norm(4)
    net.rest = nn.Sequential(nn.ReLU(), conv(4, 4), norm(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.head = nn.Linear(4, NUM_CLASSES)
    net.norm.register_forward_hook(lambda module, args, output: output.roll(1, 1))
    net.rest[1].register_forward_hook(lambda module, args, output: output.abs())
    return net


@odd("a hook on the network that edits the logits")
def _():
    net = Base()
    net.register_forward_hook(lambda module, args, output: output.roll(2, 1))
    return net


@odd("a hook on the network that edits some images' logits")
def _():
    def flip(module, args, output):
        return torch.where(args[0][:, 1, 0, :1] > 2, output.flip(1), output)

    net = Base()
    net.register_forward_hook(flip)
    return net


@odd("a hook on the network that edits the images")
def _():
    net = Base()
    net.register_forward_pre_hook(lambda module, args: (args[0].flip(1).abs(),))
    return net


@odd("a hook that counts")
def _():
    def count(module, args, output):
        module.seen = getattr(module, "seen", 0) + len(output)

    net = Base()
    net.b.register_forward_hook(count)
    return net


@odd("a hook that keeps the activation")
def _():
    def keep(module, args, output):
        module.kept = output

    net = Base()
    net.b.register_forward_hook(keep)
    return net


@odd("a backward hook")
def _():
    def count(module, grad_input, grad_output):
        module.seen = getattr(module, "seen", 0) + 1

    net = Base()
    net.b.register_full_backward_hook(count)
    return net


@odd("a backward hook that changes the gradient")
def _():
    net = Base()
    net.b.register_full_backward_hook(lambda module, grad_input, grad_output: tuple(-g for g in grad_input))
    net.b.weight.register_hook(lambda gradient: gradient * 0)
    return net
