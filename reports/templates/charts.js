"use strict";
// Draws every chart of the page from the data beside it. `ast` makes Vega interpret its expressions, so that the
// page's content security policy need not allow code made from text.
for (const source of document.querySelectorAll("script[data-chart]")) {
  const place = document.getElementById(source.dataset.chart);
  const dark = window.matchMedia("(prefers-color-scheme: dark)").matches;
  const options = { actions: false, renderer: "svg", ast: true, tooltip: { theme: dark ? "dark" : "light" } };
  window.vegaEmbed(place, JSON.parse(source.textContent), options).catch((error) => {
    place.textContent = "This chart could not be drawn; the tables hold the same figures.";
    console.error(error);
  });
}
