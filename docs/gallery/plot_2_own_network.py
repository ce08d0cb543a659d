"""
Your own network
================

Any ``torch.nn.Module`` with logits, any dataset of (image, class index) pairs, and a training loop that knows nothing
of ``weanalysis``.
"""

# sphinx_gallery_thumbnail_path = "_static/thumbnails/own_network.png"

import torch
from sklearn.datasets import load_digits
from torch import nn

import weanalysis as wa

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
targets = torch.tensor(digits.target)


class Own(nn.Module):
    """Two convolutions, one of them with a normalized weight, and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.utils.parametrizations.weight_norm(nn.Conv2d(16, 16, 3, padding=1))
        self.out = nn.Linear(16 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(x + self.second(x))
        return self.out(nn.functional.max_pool2d(x, 2).flatten(1))


net = Own()
optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
for _ in range(15):
    for places in torch.randperm(1000).split(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[places]), targets[places]).backward()
        optimizer.step()
net.eval()

# %%
# The test images are a dataset of pairs. Every item is checked before anything is measured.

test = torch.utils.data.TensorDataset(images[1000:], targets[1000:])
pairs = [(image, int(target)) for image, target in test]
before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

table = wa.ablate(net, pairs, "location", grid="all", jobs=1)
print(f"{len(table)} kernels, intact top-1 {table['intact'][0]:.2f} % on {len(pairs)} images")
wa.show(table)

# %%
# The weight of ``second`` is computed from others: what the forward pass uses is folded, zeroed and named, in a copy.
# The network itself is as it was, bit for bit.

print(all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items()))

# %%
# Whole filters, and the loss instead of the accuracy: it changes with nearly every weight.

filters = wa.ablate(net, pairs, "channel", metric="loss", jobs=1)
filters.nlargest(5, "drop")[["layer", "out_channel", "in_channel", "drop", "drop_low", "drop_high", "p_value"]].round(4)

# %%
# Cheap criteria for every kernel, channel and weight come from one pass over the images. How well does each tell
# which kernels are needed? Rank correlations with the measured D:

scores = wa.saliency_maps(net, pairs, "taylor,fisher,l2").maps.table(["kernel"])
both = table.merge(scores, on=["layer", "out_channel", "in_channel"])
both[["drop", "taylor", "fisher", "l2"]].corr("spearman")[["drop"]].round(2)
