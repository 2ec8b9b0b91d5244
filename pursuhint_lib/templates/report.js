"use strict";
(() => {
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  document.documentElement.classList.add("script");

  // ---- contents: a menu on narrow screens; what a link leads to is unfolded

  const menu = one("#menu");
  const unfold = (open) => menu.setAttribute("aria-expanded", String(open));
  menu.addEventListener("click", () => unfold(menu.getAttribute("aria-expanded") === "false"));
  one("#contents").addEventListener("click", (event) => event.target.closest("a") && unfold(false));

  function reveal() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let outer = target.closest("details"); outer; outer = outer.parentElement.closest("details")) outer.open = true;
    target.scrollIntoView();
  }
  window.addEventListener("hashchange", reveal);

  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = all("details.part:not([open])");
    folded.forEach((part) => { part.open = true; });
  });
  window.addEventListener("afterprint", () => folded.forEach((part) => { part.open = false; }));

  // ---- tables: a click on a column's name sorts, a second one turns the order round

  const EMPTY = new Set(["", "–", "nan"]);
  const digits = (cell) => (cell.title || cell.textContent).trim().replace("−", "-");

  function sort(table, column) {
    const heads = [...table.tHead.rows[0].cells];
    const head = heads[column];
    const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    heads.forEach((other) => other.setAttribute("aria-sort", other === head ? order : "none"));
    const sign = order === "ascending" ? 1 : -1;
    const compare = head.classList.contains("number")
      ? (a, b) => parseFloat(a) - parseFloat(b)
      : (a, b) => a.localeCompare(b, "en", { numeric: true });
    const keyed = [...table.tBodies[0].rows].map((row) => [digits(row.cells[column]), row]);
    keyed.sort(([a], [b]) => {
      // What is missing stands last in either order.
      if (EMPTY.has(a) || EMPTY.has(b)) return Number(EMPTY.has(a)) - Number(EMPTY.has(b));
      return sign * compare(a, b);
    });
    table.tBodies[0].append(...keyed.map(([, row]) => row));
  }

  for (const table of all("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, column));
      head.append(button);
      head.setAttribute("aria-sort", "none");
    });
  }

  // ---- the list of all runs: all, those of a pair, method or arm, or those behind a row of another table

  const KEYS = ["pair", "method", "arm"];
  const HASH = 5;
  const filter = one("#run-filter");

  function show(wanted, why = "") {
    const rows = [...one("#runs").tBodies[0].rows];
    rows.forEach((row) => { row.hidden = !wanted([...row.cells].map((cell) => cell.textContent)); });
    const shown = rows.filter((row) => !row.hidden);
    const runs = new Set(shown.map((row) => row.cells[HASH].textContent)).size;
    one("#run-count").textContent = `${runs} runs are shown, in ${shown.length} of ${rows.length} rows${why}.`;
  }

  if (filter) {
    KEYS.forEach((key, column) => {
      const values = new Set([...one("#runs").tBodies[0].rows].map((row) => row.cells[column].textContent));
      filter.elements[key].append(new Option("all", ""), ...[...values].map((value) => new Option(value, value)));
    });
    const chosen = (cells) => KEYS.every((key, column) => ["", cells[column]].includes(filter.elements[key].value));
    filter.hidden = false;
    filter.addEventListener("change", () => show(chosen));
    filter.addEventListener("reset", () => show(() => true));
    show(() => true);
  }

  // ---- the records that a row was made from: links, or that part of the list of all runs

  const MANY = 60;
  const grid = new Set(all("#runs tbody tr").map((row) => row.cells[HASH].textContent));
  const accuracies = JSON.parse(one("#accuracies").textContent);

  function link(address, text, title) {
    const made = document.createElement("a");
    Object.assign(made, { href: address, textContent: text, title });
    return made;
  }

  function listed(hashes, row) {
    const made = link("#all-runs", "in the list of all runs", "Show these runs");
    made.addEventListener("click", () => {
      filter.querySelectorAll("select").forEach((select) => { select.value = ""; });
      show((cells) => hashes.includes(cells[HASH]), `: those behind “${row}”`);
    });
    return made;
  }

  for (const records of all(".records")) {
    const hashes = records.dataset.runs.split(" ");
    records.addEventListener("toggle", () => {
      const text = document.createElement("p");
      const several = hashes.length > MANY ? [] : hashes.filter((hash) => hash in accuracies);
      text.append(...several.flatMap((hash) => {
        const [name, accuracy] = accuracies[hash];
        return [link(`records/${encodeURIComponent(name)}.json`, accuracy, name), " "];
      }));
      if (hashes.some((hash) => grid.has(hash))) text.append(listed(hashes, records.closest("tr").cells[0].textContent));
      records.append(text);
    }, { once: true });
  }

  // ---- figures: large, in a window of their own

  const viewer = one("#viewer");
  const view = one(".scroll", viewer);

  function enlarge(picture) {
    const image = one("img", picture).cloneNode();
    // The caption below the image says the same.
    image.alt = "";
    view.replaceChildren(image);
    one("#viewer-caption").textContent = one("img", picture).alt;
    viewer.showModal();
    image.style.width = `${Math.max(image.width, view.clientWidth)}px`;
    view.scrollTo(0, 0);
    view.focus();
  }

  for (const picture of all(".picture")) {
    one(".enlarge", picture).addEventListener("click", (event) => {
      event.preventDefault();
      enlarge(picture);
    });
  }
  for (const button of all("button[type=button]", viewer)) {
    button.addEventListener("click", () => {
      const image = one("img", view);
      const shape = image.naturalWidth / image.naturalHeight;
      const fit = Math.min(view.clientWidth, view.clientHeight * shape);
      image.style.width = `${Number(button.value) ? image.clientWidth * Number(button.value) : fit}px`;
    });
  }
  viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());
  viewer.addEventListener("close", () => view.replaceChildren());

  // ---- the layer map

  const controls = one("#layer-map-controls");

  function drawClusters(part, teacher, clusters, colours) {
    const width = Math.max(0.6, 0.045 * teacher.layers);
    const rows = clusters.map((_, row) => row + 1);
    const starts = rows.filter((row) => row === 1 || clusters[row - 1] !== clusters[row - 2]);
    const ends = starts.map((_, place) => (starts[place + 1] ?? teacher.layers + 1) - 0.5);
    part("band").data = { x: rows.map(() => 0.4 - width / 2), y: rows, width: rows.map(() => width), colour: clusters.map((label) => colours[label - 1]) };
    part("frames").data = { left: starts.map((row) => row - 0.5), right: ends, top: starts.map((row) => row - 0.5), bottom: ends };
    return 0.3 - width;
  }

  function drawMap(part, map) {
    const teacher = map.teachers[controls.elements.teacher.selectedIndex];
    const { metric, k, selector } = Object.fromEntries(new FormData(controls));
    const needed = map.selectors.find((one) => one.name === selector).metric;
    const choice = teacher.choices[selector][needed ? metric : ""][teacher.ks.indexOf(Number(k))];
    const cells = teacher.similarity[metric];
    const named = (index) => `${index + 1} (${teacher.blocks[index]})`;
    const row = cells.map((_, cell) => Math.floor(cell / teacher.layers));
    const column = cells.map((_, cell) => cell % teacher.layers);
    part("cells").data = { x: column.map((c) => c + 1), y: row.map((r) => r + 1), value: cells, row: row.map(named), column: column.map(named) };
    const left = drawClusters(part, teacher, choice.clusters, map.colours);
    part("ends").data = { place: teacher.ends.slice(0, -1).map((end) => end + 0.5) };
    // With many sub-blocks the dots are too small for a number.
    const small = teacher.layers > 30;
    part("points").data = { place: choice.points, number: choice.points.map((n) => (small ? "" : String(n))), size: choice.points.map(() => (small ? 11 : 20)) };
    const step = Math.ceil(teacher.layers / 12);
    part("numbers").ticks = Array.from({ length: Math.ceil(teacher.layers / step) }, (_, place) => 1 + place * step);
    part("layer map").x_range.setv({ start: left, end: teacher.layers + 0.5 });
    part("layer map").y_range.setv({ start: teacher.layers + 0.5, end: 0.5 });
    one("#layer-map-text").textContent = `${teacher.name}, ${metric}, K = ${k}. ${choice.text}`;
  }

  function offerNumbers(teacher, wanted) {
    const numbers = controls.elements.k;
    numbers.replaceChildren(...teacher.ks.map((k) => new Option(k, k)));
    numbers.value = teacher.ks.includes(wanted) ? wanted : teacher.ks[0];
  }

  async function startMap() {
    const map = JSON.parse(one("#layer-map-data").textContent);
    await Bokeh.embed.embed_item(JSON.parse(one("#layer-map-drawing").textContent));
    const drawing = Bokeh.documents.at(-1);
    const part = (name) => drawing.get_model_by_name(name);
    controls.elements.metric.value = map.start.metric;
    controls.elements.selector.value = map.start.selector;
    offerNumbers(map.teachers[0], map.start.k);
    controls.addEventListener("change", (event) => {
      if (event.target.name === "teacher") offerNumbers(map.teachers[event.target.selectedIndex], Number(controls.elements.k.value));
      drawMap(part, map);
    });
    drawMap(part, map);
  }

  if (controls) startMap();
  reveal();
})();
