"""
A study and a metric of your own
================================

Which weights are zeroed together, and what D is the change of, are both yours to say.
"""

# sphinx_gallery_thumbnail_path = "_static/thumbnails/own_study_and_metric.png"

import torch

import weanalysis as wa
from weanalysis.ablation import Ablation, Part, Study

recipe = wa.Recipe.from_preset("digits", model="resnet20", image_size=8, epochs=3)
model = wa.load_model(str(wa.train(recipe, device="cpu").checkpoint))
data = wa.load_data("digits", model=model)

# %%
# The small half
# --------------
# How much of a layer's small weights can go? A study is a list of ablations, each a set of parts: channels of a
# layer's weight, or ranks of its sorted \|w\|, counted from 1. This one zeroes the smallest 30, 50 and 70 % of one
# layer at a time.

layers = [(name, module) for name, module in model.net.named_modules() if isinstance(module, torch.nn.Conv2d)]
ablations = []
for depth, (name, conv) in enumerate(layers):
    for share in (0.3, 0.5, 0.7):
        number = int(share * conv.weight.numel())
        ablations.append(
            Ablation((Part(name, ranks=(1, number)),), "smallest", number, layer=name, depth=depth, fraction=share)
        )
study = Study("smallest share", {}, tuple(ablations), layers=tuple(name for name, _ in layers))

# %%
# A proper score
# --------------
# A metric is a function from outputs and targets to one number an image. Brier's score is the squared distance of the
# probabilities from the truth: it falls when a network becomes less sure of what is right, long before it is wrong.


def brier(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    truth = torch.nn.functional.one_hot(targets, outputs.shape[1])
    return (outputs.softmax(1) - truth).square().sum(1)


table = wa.ablate(model, data, study, metric=wa.metric("brier", brier), jobs=1)
table.pivot_table(index=["depth", "layer"], columns="fraction", values="drop").round(4)

# %%
# Which of them can be told from 0, after correction for their number (Student's t over images):

print(f"{(table['q_value'] <= 0.05).sum()} of {len(table)} shares change the Brier score")
wa.figures.drop_by_layer(table)

# %%
# Everything that was measured for it is there in other metrics too, without measuring again: of the accuracy,

again = wa.ablate(model, data, study, jobs=1)
print(f"{(again['q_value'] <= 0.05).sum()} of {len(again)} shares change the accuracy")
wa.show(again)
