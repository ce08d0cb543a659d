// A figure is drawn before the columns beside it are laid out: give it the width that it then has.
window.addEventListener("load", () => {
  document.querySelectorAll(".js-plotly-plot").forEach((figure) => Plotly.Plots.resize(figure));
});
