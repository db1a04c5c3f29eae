"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const form = document.getElementById("filters");
  const off = {};
  const config = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d"] };

  // plotly.js is packed; what cannot unpack it still has all tables.
  async function unpack() {
    const element = document.getElementById("plotly");
    const packed = Uint8Array.from(atob(element.textContent), (letter) => letter.charCodeAt(0));
    element.remove();
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  const hiddenNow = (name, value) => value !== undefined && Boolean(off[name] && off[name].has(value));

  // The front goes with any of its defenses: without one of them it would be another.
  const hides = (trace) => Boolean(trace.meta) && [trace.meta.defense].flat().some((each) => hiddenNow("defense", each));

  function draw(place) {
    const chart = charts[place.dataset.chart];
    const data = chart.data.map((trace) => (hides(trace) ? { ...trace, visible: false } : trace));
    window.Plotly.react(place, data, { ...chart.layout, width: null }, config);
    place.dataset.drawn = place.dataset.chart;
  }

  function filter() {
    for (const box of form.querySelectorAll("input")) {
      const name = box.closest("fieldset").dataset.filter;
      off[name] = off[name] || new Set();
      off[name][box.checked ? "delete" : "add"](box.value);
    }
    for (const row of document.querySelectorAll("[data-defense]")) {
      row.hidden = Object.keys(off).some((name) => hiddenNow(name, row.dataset[name]));
    }
    const rows = [...document.querySelectorAll("#lines tbody tr")];
    const shown = rows.filter((row) => !row.hidden).length;
    document.getElementById("shown").textContent = `${shown} of ${rows.length} lines shown`;
    document.querySelectorAll(".drawing[data-drawn]").forEach(draw);
  }

  if (form) {
    form.addEventListener("change", filter);
    form.addEventListener("reset", () => setTimeout(filter));
    filter();
  }

  for (const chooser of document.querySelectorAll(".chooser")) {
    chooser.addEventListener("change", () => {
      const figure = chooser.closest("figure");
      const place = figure.querySelector(".drawing");
      const chart = charts[chooser.value];
      place.dataset.chart = chooser.value;
      place.setAttribute("aria-label", chart.alternative);
      figure.querySelector("figcaption").textContent = chart.alternative;
      if (window.Plotly) draw(place);
    });
  }

  // A figure is drawn when it comes near; a page may have dozens.
  unpack().then(() => {
    const near = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) {
          near.unobserve(entry.target);
          draw(entry.target);
        }
      }
    }, { rootMargin: "600px" });
    document.querySelectorAll(".drawing").forEach((place) => near.observe(place));
  }).catch(() => { document.getElementById("undrawn").hidden = false; });
})();
