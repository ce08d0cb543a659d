"""
LWE against a baseline, over seeds
==================================

Two runs with one seed each say nothing of a way of training: three of each, and intervals over them.
"""

# sphinx_gallery_thumbnail_path = "_static/thumbnails/lwe_over_seeds.png"

import pandas as pd

import weanalysis as wa
from weanalysis.training import read_metrics

runs = {
    excitation: [
        wa.train(
            wa.Recipe.from_preset("digits", model="resnet20", image_size=8, epochs=3, excitation=excitation, seed=seed),
            device="cpu",
        )
        for seed in (0, 1, 2)
    ]
    for excitation in ("none", "lwe")
}
accuracies = pd.DataFrame({excitation: [run.result["top1"] for run in group] for excitation, group in runs.items()})
accuracies.rename_axis("seed").round(2)

# %%
# The difference is the second minus the first, its interval over seeds (Welch's t): with three of each, and three
# epochs, it is wide, and that is what can be said.

comparison = wa.compare(runs["none"], runs["lwe"], device="cpu")
print(
    f"LWE minus baseline: {comparison.difference:+.2f} points "
    f"[{comparison.difference_low:+.2f}, {comparison.difference_high:+.2f}]"
)

# %%
# The curves of all runs, as mean and range:

curves = {
    f"{excitation} {place}": read_metrics(run) for excitation, group in runs.items() for place, run in enumerate(group)
}
groups = {f"{excitation} {place}": excitation for excitation, group in runs.items() for place in range(3)}
wa.figures.training_curves(curves, "val_top1", groups=groups)

# %%
# Are the channels with high multipliers the ones that are needed?
# ----------------------------------------------------------------
# The study ``multiplier`` zeroes the input channel with the lowest (D_L) or highest (D_H) multiplier, in every layer
# at once, and random ones beside it. In each LWE network:

rows = []
for seed, run in enumerate(runs["lwe"]):
    model = wa.load_model(str(run.checkpoint))
    data = wa.load_data("digits", model=model, num_images=250)
    table = wa.ablate(model, data, "multiplier", draws=2, jobs=1)
    whole = table[table["layer"].isna() & table["fraction"].isna()]
    rows.append(whole.groupby("selection")["drop"].mean().rename(seed))
pd.DataFrame(rows).rename_axis("seed")[["lowest", "random", "highest"]].round(2)

# %%
# Layer by layer, in the last of them:

wa.show(table)

# %%
# Folded, the network is a plain one: same classes, same names, same outputs.

plain = wa.excitation.fold(model.net)
print(type(plain.conv1), "excitation" in str(plain).lower())
