"use strict";
// Sorting and filtering by DataTables. Every text it is given is escaped already, as it stands in the page or its data.
(() => {
  const worded = { search: "Find:", emptyTable: "No rows.", zeroRecords: "No rows match." };

  for (const table of document.querySelectorAll("table.sortable")) {
    const rows = table.tBodies[0].rows.length;
    if (rows < 2) continue;
    new DataTable(table, { paging: false, info: false, searching: rows > 8, order: [], autoWidth: false, language: worded });
  }

  const plain = (text) => new DOMParser().parseFromString(text, "text/html").body.textContent;

  for (const place of document.querySelectorAll("[data-explorer]")) {
    const { columns, filters, strings, rows } = JSON.parse(document.getElementById(place.dataset.explorer + "-data").textContent);
    const shown = (entry) => (Array.isArray(entry) ? entry[0] : entry);
    const table = document.createElement("table");
    table.createCaption().textContent = place.dataset.caption;
    const scroll = document.createElement("div");
    const choices = document.createElement("div");
    scroll.className = "scroll";
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", place.dataset.caption);
    choices.className = "choices";
    scroll.append(table);
    place.append(choices, scroll);

    // A missing figure sorts below every other.
    const lowest = -Number.MAX_VALUE;
    const options = {
      data: rows,
      columns: columns.map((column, index) => ({
        title: column.title,
        type: column.figure ? "num" : "string",
        className: column.figure ? "figure" : "name",
        render: (value, kind, row) => {
          const entry = strings[row[index]];
          if (kind !== "sort" && kind !== "type") return shown(entry);
          return column.figure ? (Array.isArray(entry) && entry[1] !== null ? entry[1] : lowest) : shown(entry);
        },
        data: index,
        cellType: index === 0 ? "th" : "td",
        createdCell: index === 0 ? (cell) => cell.setAttribute("scope", "row") : undefined,
      })),
      deferRender: true,
      autoWidth: false,
      order: [],
      pageLength: 50,
      lengthMenu: [25, 50, 100, 500],
      language: { ...worded, info: "Rows _START_ to _END_ of _TOTAL_", infoEmpty: "No rows", infoFiltered: "(of _MAX_)", lengthMenu: "_MENU_ rows a page" },
    };
    const drawn = new DataTable(table, options);

    for (const index of filters) {
      const found = [...new Set(rows.map((row) => row[index]))];
      if (found.length < 2) continue;
      const label = document.createElement("label");
      const select = document.createElement("select");
      const named = found.map((value) => [plain(shown(strings[value])), value]).sort((a, b) => a[0].localeCompare(b[0], "en", { numeric: true }));
      select.add(new Option("all", ""));
      for (const [text, value] of named.slice(0, 2000)) select.add(new Option(text, value));
      select.addEventListener("change", () => {
        const wanted = select.value === "" ? null : Number(select.value);
        drawn.search.fixed("column-" + index, wanted === null ? null : (text, row) => row[index] === wanted).draw();
      });
      label.append(plain(columns[index].title) + " ", select);
      choices.append(label);
    }
    place.dataset.ready = "true";
  }
})();
