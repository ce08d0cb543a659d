"""Excitation (paper, Fig. 3b): what MWE does to weights and to their gradients."""

from __future__ import annotations

import choosing
import numpy as np
import pandas as pd
import reading
import shared
import streamlit as st

from weanalysis import figures


def standardized(weight: np.ndarray) -> np.ndarray:
    """Give each output channel mean 0 and variance 1; one with a single weight stays as it is."""
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    if rows.shape[1] == 1:
        return weight
    spread = rows.std(axis=1, keepdims=True)
    return ((rows - rows.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)).reshape(weight.shape)


st.title("Excitation")
st.caption(
    "Magnitude-based excitation (MWE) bends each weight so that large ones receive larger gradients.",
    help="f_A(w) = M_A · ½ ln((1 + w/M_A) / (1 − w/M_A)) with M_A = (1 + ε) M, M being the layer's largest |w| "
    "(equation 2). Its gradient is M_A² / (M_A² − w²) (equation 3). Paper, section 3.3, Fig. 3b.",
)

eps = st.slider(
    "ε",
    0.01,
    0.5,
    0.1,
    0.01,
    key="eps",
    bind="query-params",
    width=420,
    help="The smaller ε, the stronger the excitation. The paper uses 0.1.",
)
with st.container(horizontal=True):
    st.metric("Largest gain", f"{float(figures.gain(1.0, eps, 1.0)):.2f}", help="At the layer's largest weight.")
    st.metric("Largest stretch", f"{float(figures.excited(1.0, eps, 1.0)):.2f}", help="f_A(M) / M.")
at = np.linspace(-1, 1, 401)
shared.show(
    figures.excitation_curves(eps, theme=shared.theme()),
    key="curves",
    data=pd.DataFrame({"w": at, "f_A": figures.excited(at, eps, 1.0), "gain": figures.gain(at, eps, 1.0)}),
    name=f"mwe-{eps:g}",
    alt=f"f_A and the gain of the gradient for ε = {eps:g}",
)

st.header("On the weights of a layer")
studies = reading.studies()
with_weights = [bool(reading.layers_with_weights(study)) for _, study in studies.iterrows()]
if not any(with_weights):
    st.caption("Run a study: the weights of its network appear here.")
    st.code("weanalysis ablate --model resnet20", language="bash")
    st.stop()
with st.container(horizontal=True):
    study = choosing.choose_among("Weights of", studies[with_weights], "study")
    layer = choosing.choose_layer(reading.layers_with_weights(study))
weight = reading.weight(study, layer)
if weight is None:
    st.caption("The weights of this study are no longer in the cache.")
    st.stop()
if st.toggle(
    "Standardize each filter first",
    value=True,
    key="standardize",
    bind="query-params",
    help="As training does, except for depthwise convolutions: each output channel gets mean 0 and variance 1 "
    "(paper, end of section 3.3).",
):
    weight = standardized(weight)
gains = figures.gain(weight, eps)
st.caption(
    f"{(gains > 2).mean():.1%} of the {weight.size:,} weights of {shared.plain(layer)} would get more than twice their "
    f"gradient, {(gains < 1.1).mean():.1%} less than 1.1 times."
)
shared.show(
    figures.excitation_of_layer(weight, eps, theme=shared.theme()),
    key="layer-weights",
    data=pd.DataFrame({"weight": weight.ravel(), "f_A": figures.excited(weight, eps).ravel(), "gain": gains.ravel()}),
    name=f"mwe-{layer}-{eps:g}",
    alt=f"Weights of {layer} before and after MWE, with the gain of the gradient",
)

st.markdown(
    f"### LWE on {shared.plain(layer)}",
    help="LWE multiplies each kernel by a learned m between 0 and 1, one for all of its weights (equation 1). "
    "Paper, section 3.2.",
)
found_by_layer = reading.multipliers(study)
if layer in found_by_layer:
    learned = found_by_layer[layer]
    shared.show(
        figures.multiplier_map(learned, layer, theme=shared.theme()),
        key="lwe-map",
        data=pd.DataFrame(learned),
        name=f"lwe-{layer}",
        alt=f"LWE's multipliers of {layer}",
    )
else:
    st.caption(
        "This layer had no LWE in training, or the study kept no multipliers."
        if found_by_layer
        else "The network of this study was not trained with LWE; choose a study of one that was:"
    )
    if not found_by_layer:
        st.code("weanalysis train --model resnet20 --data digits --excitation lwe", language="bash")
