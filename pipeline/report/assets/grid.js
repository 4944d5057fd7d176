"use strict";

// Cells to rows and columns, and these to elements. All text is set as text: nothing a user wrote is read as markup.
const grid = (() => {
  const { catalogue } = darkroom;
  const WORDS = {
    prompt: "prompt",
    seed: "seed",
    guidance_scale: "guidance",
    num_inference_steps: "steps",
    scheduler: "scheduler",
    size: "size",
  };
  const FEW = 64; // an axis with more values is not one that prompts share: each then has a first, a second, …
  const ROWS = 40;
  const COLUMNS = 24;
  const TILES = 200;
  const LARGEST_PX = 208;
  const SMALLEST_PX = 110; // that pictures are made for the sake of rows
  const box = document.getElementById("grid");
  let slots = []; // buttons as they stand in rows, null where nothing was asked for
  let drawn = { columns: 1, flow: true };

  /** An element with properties, attributes behind "aria" and "role", and children; texts stay texts. */
  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name === "role" || name === "scope" || name.startsWith("aria-")) element.setAttribute(name, value);
      else element[name] = value;
    }
    element.append(...children);
    return element;
  }

  const valueOf = (cell, axis) => (axis === "prompt" ? cell.prompt.number : axis ? cell[axis] : 0);

  function compare(one, other) {
    if (one === null || other === null) return (other === null) - (one === null) || 0;
    if (typeof one === "number" && typeof other === "number") return one - other;
    return String(one).localeCompare(String(other), "en", { numeric: true });
  }

  const distinct = (values) => [...new Set(values)].sort(compare);

  function label(axis, value) {
    return value === null ? "none" : String(value);
  }

  /** Of one prompt's cells those at the picked values of all other axes; its first value where it lacks the picked. */
  function narrowed(group, view) {
    let left = group;
    for (const { name } of catalogue.axes) {
      if (name === view.rows || name === view.columns) continue;
      const values = distinct(left.map((cell) => cell[name]));
      if (values.length < 2) continue;
      const picked = values.find((value) => String(value) === view.pick[name]);
      const chosen = picked === undefined ? values[0] : picked;
      left = left.filter((cell) => cell[name] === chosen);
    }
    return left;
  }

  /** Whether prompts are compared over an axis of which each has values of its own. */
  function isSpread(axis, groups) {
    const known = catalogue.axes.find(({ name }) => name === axis);
    return groups.length > 1 && known !== undefined && known.distinct > FEW;
  }

  /** What says in which row or column each cell is, by cell. */
  function keys(groups, axis) {
    const spread = isSpread(axis, groups);
    const found = new Map();
    for (const group of groups) {
      const values = spread ? distinct(group.map((cell) => valueOf(cell, axis))) : [];
      const places = new Map(values.map((value, at) => [value, at + 1]));
      for (const cell of group) {
        const value = valueOf(cell, axis);
        found.set(cell, spread ? places.get(value) : value);
      }
    }
    return found;
  }

  /** Groups of cells, one per prompt, as rows × columns of those that the view shows. */
  function layout(all, view) {
    const groups = all.map((group) => narrowed(group, view));
    const [rowOf, columnOf] = [keys(groups, view.rows), keys(groups, view.columns)];
    const at = new Map();
    for (const cell of groups.flat()) at.set(`${rowOf.get(cell)}\n${columnOf.get(cell)}`, cell);
    return {
      rows: distinct(rowOf.values()),
      columns: distinct(columnOf.values()),
      at: (row, column) => at.get(`${row}\n${column}`),
      step: { rows: view.rows && view.columns ? ROWS : TILES, columns: view.rows && view.columns ? COLUMNS : TILES },
      ordinal: { rows: isSpread(view.rows, groups), columns: isSpread(view.columns, groups) },
    };
  }

  function describe(cell) {
    const shown = catalogue.axes.filter(({ distinct: number }) => number > 1);
    return shown.map(({ name }) => `${WORDS[name]} ${label(name, cell[name])}`).join(", ");
  }

  const said = (verdict) => verdict.replaceAll("_", " ");

  function button(cell, open) {
    const [width, height] = cell.size.split("×").map(Number);
    const element = make("button", { type: "button", className: "cell", tabIndex: -1 });
    element.style.setProperty("--ratio", width / height);
    element.classList.toggle("tall", height > width);
    element.cell = cell;
    element.title = describe(cell);
    element.setAttribute("aria-label", `${describe(cell) || cell.prompt.text}: ${cell.ok ? said(cell.verdict) : `failed, ${said(cell.verdict)}`}`);
    element.addEventListener("click", () => open(element));
    element.addEventListener("focus", () => rove(element));
    if (!cell.ok || cell.verdict === "lost") element.classList.add("failed");
    else element.append(make("img", { alt: "", decoding: "async" }));
    if (cell.verdict !== "ok") element.append(make("span", { className: "badge", textContent: said(cell.verdict) }));
    return element;
  }

  async function fill(element) {
    const { cell } = element;
    const { metadata, picture } = await cells.entry(cell);
    const image = element.querySelector("img");
    if (image && picture) image.src = picture;
    else {
      const why = cell.verdict === "lost" ? "The image cannot be read." : metadata.get("error") || "";
      element.append(make("span", { className: "why", textContent: why, dir: "auto" }));
      element.title = `${element.title}\n${why}`;
    }
  }

  function header(axis, key, ordinal, prompts, scope) {
    const element = make("th", { scope });
    if (axis === "prompt") {
      const one = prompts.get(key);
      element.classList.add("prompt");
      element.append(make("span", { className: "text", textContent: one.text, title: one.text, dir: "auto" }));
    } else if (ordinal) {
      element.textContent = `${WORDS[axis]} no. ${key}`;
      element.title = `Every prompt has its own. A picture names its ${WORDS[axis]} when it is pointed at.`;
    } else element.textContent = label(axis, key);
    return element;
  }

  function matrix(laid, view, shown, prompts, open) {
    const corner = make("th", { className: "corner" });
    corner.append(make("span", { textContent: `${WORDS[view.columns]} →` }), make("span", { textContent: `${WORDS[view.rows]} ↓` }));
    const head = make("tr", {}, corner);
    for (const key of shown.columns) head.append(header(view.columns, key, laid.ordinal.columns, prompts, "col"));
    const body = make("tbody");
    slots = shown.rows.map((row) => {
      const line = make("tr", {}, header(view.rows, row, laid.ordinal.rows, prompts, "row"));
      const buttons = shown.columns.map((column) => {
        const cell = laid.at(row, column);
        const made = cell ? button(cell, open) : null;
        line.append(make("td", made ? {} : { className: "none", title: "not asked for" }, made || ""));
        return made;
      });
      body.append(line);
      return buttons;
    });
    const table = make("table", { role: "grid", "aria-label": `${WORDS[view.rows]} by ${WORDS[view.columns]}` });
    table.append(make("thead", {}, head), body);
    return table;
  }

  function flow(laid, view, shown, open) {
    const axis = view.rows || view.columns;
    const tiles = make("div", { className: "flow" });
    const buttons = [];
    for (const row of shown.rows) {
      for (const column of shown.columns) {
        const cell = laid.at(row, column);
        if (!cell) continue;
        const made = button(cell, open);
        buttons.push(made);
        const text = axis === "prompt" ? cell.prompt.text : axis ? `${WORDS[axis]} ${label(axis, cell[axis])}` : describe(cell);
        tiles.append(make("figure", {}, made, make("figcaption", { textContent: text, title: text, dir: "auto" })));
      }
    }
    slots = [buttons];
    return tiles;
  }

  /** Draw a view. Returns which rows and columns of how many are shown; open(button) is called for a picture. */
  function draw(groups, view, open) {
    const laid = layout(groups, view);
    const isFlow = !view.rows || !view.columns;
    const part = (keys_, from, number) => keys_.slice(from, from + number);
    const shown = {
      rows: part(laid.rows, view.row, isFlow ? TILES : ROWS),
      columns: part(laid.columns, view.column, isFlow ? TILES : COLUMNS),
    };
    const prompts = new Map(groups.filter((group) => group.length).map((group) => [group[0].prompt.number, group[0].prompt]));
    const made = isFlow ? flow(laid, view, shown, open) : matrix(laid, view, shown, prompts, open);
    box.replaceChildren(...(groups.length ? [made] : []));
    drawn = { columns: shown.columns.length, flow: isFlow, prompts: view.rows === "prompt" };
    fit();
    const buttons = slots.flat().filter(Boolean);
    if (buttons.length) buttons[0].tabIndex = 0;
    const filled = Promise.all(buttons.map(fill));
    return { filled, laid, rows: shown.rows.length, columns: shown.columns.length, pictures: buttons.length };
  }

  /** Pictures as large as their columns may be. */
  function fit() {
    const narrow = box.clientWidth < 640;
    const heading = drawn.prompts ? (narrow ? 112 : 220) : narrow ? 66 : 84;
    const [gap, edge] = narrow ? [6, 14] : [10, 32];
    const number = drawn.flow ? (narrow ? 3 : Math.max(4, Math.floor(box.clientWidth / 200))) : drawn.columns;
    const free = box.clientWidth - 2 * edge - (drawn.flow ? 0 : heading);
    const side = Math.min(Math.floor(free / number) - gap, inSight(gap));
    box.style.setProperty("--thumb", `${Math.max(narrow ? 64 : 84, Math.min(LARGEST_PX, side))}px`);
    box.style.setProperty("--heading", `${heading}px`);
    box.style.setProperty("--gap", `${gap}px`);
  }

  /** How high pictures may be for all rows to be seen at once, unless that would make them small. */
  function inSight(gap) {
    const main = box.parentElement;
    const rows = slots.length;
    const head = box.querySelector("thead")?.offsetHeight || 0;
    const side = Math.floor((main.clientHeight - box.offsetTop - head - 16) / rows) - gap;
    return drawn.flow || side < SMALLEST_PX ? LARGEST_PX : side;
  }

  function rove(element) {
    for (const other of slots.flat()) if (other) other.tabIndex = other === element ? 0 : -1;
  }

  /** The next button in a direction, null at the edge. */
  function step(from, right, down) {
    if (drawn.flow) return stepInFlow(from, right, down);
    const row = slots.findIndex((buttons) => buttons.includes(from));
    const column = row < 0 ? -1 : slots[row].indexOf(from);
    for (let at = 1; row >= 0; at++) {
      const line = slots[row + at * down];
      if (!line || column + at * right < 0 || column + at * right >= line.length) return null;
      if (line[column + at * right]) return line[column + at * right];
    }
    return null;
  }

  function stepInFlow(from, right, down) {
    const [buttons] = slots;
    const at = buttons.indexOf(from);
    if (right) return buttons[at + right] || null;
    const { left, top } = from.getBoundingClientRect();
    const places = buttons.map((element) => ({ element, at: element.getBoundingClientRect() }));
    const beyond = places.filter((place) => (down > 0 ? place.at.top > top + 8 : place.at.top < top - 8));
    const distance = ({ at: place }) => Math.abs(place.top - top) * 4 + Math.abs(place.left - left);
    beyond.sort((one, other) => distance(one) - distance(other));
    return beyond.length ? beyond[0].element : null;
  }

  const first = () => slots.flat().find(Boolean) || null;
  const last = () => slots.flat().filter(Boolean).at(-1) || null;
  const inOrder = () => slots.flat().filter(Boolean);

  addEventListener("resize", fit);
  return { WORDS, make, label, distinct, describe, said, isSpread, draw, step, first, last, inOrder, box };
})();
