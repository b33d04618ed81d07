"use strict";
// Draws every plot of the page from the data beside it. `ast` makes Vega interpret its expressions, and its styles
// come from the page's own sheet, so that the content security policy allows neither code nor styles made from text.
for (const source of document.querySelectorAll("script[data-chart]")) {
  const place = document.getElementById(source.dataset.chart);
  const options = { actions: false, renderer: "svg", ast: true, defaultStyle: false, tooltip: { disableDefaultStyle: true } };
  window.vegaEmbed(place, JSON.parse(source.textContent), options).catch((error) => {
    place.textContent = "This plot could not be drawn; the tables hold the same figures.";
    console.error(error);
  });
}
