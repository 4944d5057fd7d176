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
  const NONE = "No picture with the chosen values.";
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

  /** Schedulers stand in the order of the job, all else in its natural one. */
  const ranks = new Map((catalogue.axes.find(({ name }) => name === "scheduler").values || []).map((name, at) => [name, at]));

  function compare(one, other) {
    if (ranks.has(one) && ranks.has(other)) return ranks.get(one) - ranks.get(other);
    if (one === null || other === null) return (other === null) - (one === null) || 0;
    if (typeof one === "number" && typeof other === "number") return one - other;
    return String(one).localeCompare(String(other), "en", { numeric: true });
  }

  const distinct = (values) => [...new Set(values)].sort(compare);

  function label(axis, value) {
    return value === null ? "none" : String(value);
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

  /** Lay out the cells that a view shows. A prompt keeps its row or column where it has none of them. */
  function layout(groups, view, chosen) {
    const [rowOf, columnOf] = [keys(chosen.groups, view.rows), keys(chosen.groups, view.columns)];
    const at = new Map();
    for (const cell of chosen.groups.flat()) {
      const place = `${rowOf.get(cell)}\n${columnOf.get(cell)}`;
      if (at.has(place)) at.get(place).push(cell);
      else at.set(place, [cell]);
    }
    const prompts = groups.filter((group) => group.length).map((group) => group[0].prompt.number);
    const lines = (axis, keyOf) => (axis === "prompt" ? prompts : distinct(keyOf.values()));
    return {
      rows: lines(view.rows, rowOf),
      columns: lines(view.columns, columnOf),
      at: (row, column) => at.get(`${row}\n${column}`) || [],
      step: { rows: view.rows && view.columns ? ROWS : TILES, columns: view.rows && view.columns ? COLUMNS : TILES },
      ordinal: { rows: isSpread(view.rows, groups), columns: isSpread(view.columns, groups) },
      own: chosen.axes.filter((axis) => axis.chosen === undefined).map(({ name }) => name),
    };
  }

  function describe(cell) {
    const shown = catalogue.axes.filter(({ distinct: number }) => number > 1);
    return shown.map(({ name }) => `${WORDS[name]} ${label(name, cell[name])}`).join(", ");
  }

  /** Return what a cell is written on with: its values of axes for which none is chosen, and how many more share its place. */
  function own(found, names) {
    const values = names.map((name) => `${WORDS[name]} ${label(name, found[0][name])}`).join(", ");
    return values && found.length > 1 ? `${values} (+${found.length - 1})` : values;
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
        const found = laid.at(row, column);
        const made = found.length ? button(found[0], open) : null;
        const text = made ? own(found, laid.own) : "";
        const place = make("td", made ? {} : { className: "none", title: NONE }, made || "–");
        if (text) place.append(make("span", { className: "own", textContent: text, title: text }));
        line.append(place);
        return made;
      });
      body.append(line);
      return buttons;
    });
    const table = make("table", { role: "grid", "aria-label": `${WORDS[view.rows]} by ${WORDS[view.columns]}` });
    table.append(make("thead", {}, head), body);
    return table;
  }

  function flow(laid, view, shown, prompts, open) {
    const axis = view.rows || view.columns;
    const tiles = [];
    for (const row of shown.rows) {
      for (const column of shown.columns) {
        const found = laid.at(row, column);
        const key = view.rows ? row : column;
        if (!found.length && axis !== "prompt") continue;
        const about = axis === "prompt" ? prompts.get(key).text : axis ? `${WORDS[axis]} ${label(axis, found[0][axis])}` : describe(found[0]);
        tiles.push({ cell: found[0], lines: [about, axis && found.length ? own(found, laid.own) : ""] });
      }
    }
    return tiled(tiles, open);
  }

  /** Return pictures one after the other, each with its lines of text below; a dash where there is no cell. */
  function tiled(tiles, open) {
    const box_ = make("div", { className: "flow" });
    slots = [[]];
    for (const { cell, lines } of tiles) {
      const made = cell ? button(cell, open) : null;
      if (made) slots[0].push(made);
      const caption = make("figcaption", { title: lines.filter(Boolean).join("\n"), dir: "auto" });
      for (const text of lines.filter(Boolean)) caption.append(make("span", { textContent: text, dir: "auto" }));
      box_.append(make("figure", {}, made || make("span", { className: "none", title: NONE, textContent: "–" }), caption));
    }
    return box_;
  }

  /** Draw a view. Returns which rows and columns of how many are shown; open(button) is called for a picture. */
  function draw(groups, view, chosen, open) {
    const laid = layout(groups, view, chosen);
    const isFlow = !view.rows || !view.columns;
    const part = (keys_, from, number) => keys_.slice(from, from + number);
    const shown = {
      rows: part(laid.rows, view.row, isFlow ? TILES : ROWS),
      columns: part(laid.columns, view.column, isFlow ? TILES : COLUMNS),
    };
    const prompts = new Map(groups.filter((group) => group.length).map((group) => [group[0].prompt.number, group[0].prompt]));
    const made = isFlow ? flow(laid, view, shown, prompts, open) : matrix(laid, view, shown, prompts, open);
    drawn = { columns: shown.columns.length, flow: isFlow, prompts: view.rows === "prompt" };
    return { ...put(shown.rows.length && shown.columns.length ? [made] : []), laid, rows: shown.rows.length, columns: shown.columns.length };
  }

  /** Draw cells of any prompts one after the other, each with its prompt and its values. */
  function drawAll(shown, open) {
    drawn = { columns: shown.length, flow: true };
    return put([tiled(shown.map((cell) => ({ cell, lines: [cell.prompt.text, describe(cell)] })), open)]);
  }

  function put(elements) {
    box.replaceChildren(...elements);
    if (!elements.length) slots = [];
    fit();
    const buttons = inOrder();
    if (buttons.length) buttons[0].tabIndex = 0;
    return { filled: Promise.all(buttons.map(fill)), pictures: buttons.length };
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

  /** Return the picture that Tab leads to: the last one that had the focus, or the first. */
  const current = () => inOrder().find((element) => element.tabIndex === 0) || null;
  const first = () => slots.flat().find(Boolean) || null;
  const last = () => slots.flat().filter(Boolean).at(-1) || null;
  const inOrder = () => slots.flat().filter(Boolean);

  addEventListener("resize", fit);
  return { WORDS, make, label, distinct, describe, said, isSpread, draw, drawAll, step, current, first, last, inOrder, box };
})();
