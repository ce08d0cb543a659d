"""
Digits, end to end
==================

Train a ResNet-20 on scikit-learn's handwritten digits, measure which of its kernels matter, and look.
"""

# sphinx_gallery_thumbnail_path = "_static/thumbnails/digits.png"

import tempfile
from pathlib import Path

import weanalysis as wa
from weanalysis.results.statistics import selected_intervals
from weanalysis.training import read_metrics

# %%
# Images of 8x8 pixels and four epochs take seconds. Without ``image_size`` and ``epochs`` this is what
# ``weanalysis train --model resnet20 --data digits`` does. A run that is in the cache is not trained again.

recipe = wa.Recipe.from_preset("digits", model="resnet20", image_size=8, epochs=4)
run = wa.train(recipe, device="cpu")
print(f"{run.name}: top-1 {run.result['top1']:.2f} %")

# %%
# How the accuracy on the test images grew:

wa.figures.training_curves({"baseline": read_metrics(run)}, "val_top1")

# %%
# Where are the kernels that matter?
# ----------------------------------
# The study ``location`` zeroes one kernel at a time, on a grid of channels in every 3x3 layer. ``screened`` computes
# only the images whose answer could change, and bounds what it may have missed.

model = wa.load_model(str(run.checkpoint))
data = wa.load_data("digits", model=model)
table = wa.ablate(model, data, wa.studies.location(model.net, grid=(4, 4)), evaluate="screened", jobs=1)
wa.show(table)

# %%
# The largest decreases in accuracy, in percentage points. Their intervals are those of single rows; ``q_value`` says
# which differ from 0 after correction for their number.

columns = ["layer", "out_channel", "in_channel", "drop", "drop_low", "drop_high", "q_value", "num_flipped"]
table.nlargest(5, "drop")[columns].round(3)

# %%
# With hundreds of noisy values the largest are flattered: rows that are shown because they are large have wider
# intervals, of which 5 % of those shown miss at most.

chosen = selected_intervals(table.nlargest(5, "drop"), len(table))
chosen[["layer", "out_channel", "in_channel", "drop", "selected_low", "selected_high"]].round(2)

# %%
# Do large weights matter more?
# -----------------------------
# The study ``magnitude`` zeroes the weight at a percentile of \|w\|; here all weights of a bin of ten percentiles, in
# every layer at once.

bins = wa.studies.magnitude(model.net, percentiles=range(10, 101, 10), percentile_width=10)
wa.show(wa.ablate(model, data, bins, jobs=1))

# %%
# Pass it on
# ----------
# Everything is in the cache; the report is one page that needs no network.

with tempfile.TemporaryDirectory() as folder:
    written = wa.write_report(["1", "2"], Path(folder) / "report.html")
    print(f"{written.path.name}: {written.path.stat().st_size / 2**20:.1f} MiB")
