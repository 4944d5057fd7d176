"use strict";

// The page: what is chosen, the list of prompts, the choices of axes, the keys.
(() => {
  const { catalogue } = darkroom;
  const { make, WORDS } = grid;
  const { openList, closeList, theme } = frame;
  const by = (id) => document.getElementById(id);
  const LISTED = 25;
  const SEGMENTS = 6; // more values are chosen from a list
  const state = { prompt: 0, page: 0, query: "", onlyFailed: false, ...axesToBeginWith(), pick: {}, row: 0, column: 0 };
  let matches = null; // numbers of the prompts that were found; null: all
  let groups = []; // cells of the prompts that are shown
  let turn = 0; // of what is drawn: what comes later wins
  let searchTurn = 0;
  let isSearching = false;

  /** Two axes that vary within a prompt; prompts beside each other where there is no second one. */
  function axesToBeginWith() {
    const within = catalogue.axes.filter((axis) => axis.within).map((axis) => axis.name);
    const first = (order, taken) => order.find((name) => within.includes(name) && name !== taken) || "";
    const columns = first(["num_inference_steps", "guidance_scale", "seed", "scheduler", "size"]);
    const rows = first(["guidance_scale", "scheduler", "seed", "num_inference_steps", "size"], columns);
    return { rows: rows || (catalogue.prompts > 1 ? "prompt" : ""), columns };
  }

  const isComparing = () => state.rows === "prompt" || state.columns === "prompt";
  const total = () => (matches ? matches.length : catalogue.prompts);
  const listed = (place) => (matches ? matches[place] : place);
  const placeOf = (number) => (matches ? matches.indexOf(number) : number);
  const pages = () => Math.max(1, Math.ceil(total() / LISTED));
  const count = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;

  function onPage() {
    const first = state.page * LISTED;
    const number = Math.max(0, Math.min(LISTED, total() - first));
    return Promise.all(Array.from({ length: number }, (_, at) => cells.prompt(listed(first + at))));
  }

  // The list of prompts.

  async function drawList() {
    const mine = turn;
    const shown = await onPage();
    if (mine !== turn) return;
    const focused = [...by("list").querySelectorAll("button")].indexOf(document.activeElement);
    by("list").replaceChildren(...shown.map(listItem));
    if (focused >= 0) by("list").querySelectorAll("button")[focused]?.focus();
    const pager = by("list-pager");
    pager.hidden = pages() < 2;
    pager.querySelector("span").textContent = `${(state.page + 1).toLocaleString("en")} of ${pages().toLocaleString("en")}`;
    const [before, after] = pager.querySelectorAll("button");
    before.disabled = state.page === 0;
    after.disabled = state.page >= pages() - 1;
    if (!isSearching) by("found").textContent = matches ? count(matches.length, "prompt") : "";
  }

  function listItem(one) {
    const button = make("button", { type: "button", dir: "auto", title: one.text });
    button.append(make("span", { className: "text", textContent: one.text }));
    if (one.failed) button.append(make("span", { className: "bad", textContent: `${one.failed.toLocaleString("en")} failed` }));
    if (one.number === state.prompt && !isComparing()) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => choosePrompt(one.number));
    return make("li", {}, button);
  }

  function choosePrompt(number) {
    closeList();
    state.prompt = number;
    if (isComparing()) {
      const own = grid.inOrder().find((button) => button.cell.prompt.number === number);
      if (own) own.focus();
      return;
    }
    state.row = state.column = 0;
    draw();
  }

  function stepPrompt(by_) {
    if (isComparing()) return stepPage(by_);
    const place = Math.max(0, Math.min(total() - 1, placeOf(state.prompt) + by_));
    if (!total()) return undefined;
    state.prompt = listed(place);
    state.page = Math.floor(place / LISTED);
    state.row = state.column = 0;
    return draw();
  }

  function stepPage(by_) {
    state.page = Math.max(0, Math.min(pages() - 1, state.page + by_));
    state.row = state.column = 0;
    return isComparing() ? draw() : drawList();
  }

  // Searching.

  async function search() {
    const mine = ++searchTurn;
    const { query, onlyFailed } = state;
    const wanted = query.trim() || onlyFailed;
    isSearching = true;
    const tell = (share) => {
      if (mine === searchTurn && share < 1) by("found").textContent = `searching, ${Math.floor(share * 100)} %`;
      return mine === searchTurn;
    };
    let found = null;
    try {
      if (wanted) found = await cells.search(query, onlyFailed, tell);
    } catch (error) {
      if (mine === searchTurn) [by("found").textContent, by("note").textContent] = ["", error.message];
      return;
    } finally {
      if (mine === searchTurn) isSearching = false;
    }
    if (mine !== searchTurn) return;
    matches = found;
    const place = placeOf(state.prompt);
    if (place < 0 && total()) state.prompt = listed(0);
    state.page = Math.max(0, Math.floor(placeOf(state.prompt) / LISTED));
    state.row = state.column = 0;
    await draw();
  }

  let pause = 0; // until what is typed is searched for

  async function searchNow() {
    clearTimeout(pause);
    pause = 0;
    await search();
  }

  by("search").addEventListener("input", (event) => {
    state.query = event.target.value;
    clearTimeout(pause);
    pause = setTimeout(searchNow, 120);
  });
  by("search").addEventListener("keydown", (event) => {
    if (event.key === "Escape") clearSearch();
    else if (event.key === "ArrowDown") by("list").querySelector("button")?.focus();
    else if (event.key === "Enter") (pause ? searchNow() : Promise.resolve()).then(focusPictures);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  by("only-failed")?.addEventListener("change", (event) => {
    state.onlyFailed = event.target.checked;
    search();
  });
  by("list").addEventListener("keydown", (event) => {
    const by_ = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by_) return;
    event.preventDefault();
    const buttons = [...by("list").querySelectorAll("button")];
    (buttons[buttons.indexOf(document.activeElement) + by_] || (by_ < 0 ? by("search") : null))?.focus();
  });

  function clearSearch() {
    if (!state.query) by("search").blur();
    by("search").value = state.query = "";
    search();
  }

  function focusPictures() {
    closeList();
    grid.first()?.focus();
  }

  // Axes.

  function axisOptions(select, chosen) {
    const names = catalogue.axes.filter((axis) => axis.distinct > 1).map((axis) => axis.name);
    if (catalogue.prompts > 1) names.unshift("prompt");
    if (chosen && !names.includes(chosen)) names.push(chosen);
    select.replaceChildren(
      make("option", { value: "", textContent: "none" }),
      ...names.map((name) => make("option", { value: name, textContent: WORDS[name] })),
    );
    select.value = chosen;
  }

  function chooseAxis(which, name) {
    const other = which === "rows" ? "columns" : "rows";
    if (name && state[other] === name) state[other] = state[which] === name ? "" : state[which];
    state[which] = name;
    state.row = state.column = 0;
    if (isComparing()) state.page = Math.max(0, Math.floor(placeOf(state.prompt) / LISTED));
    draw();
  }

  function swap() {
    [state.rows, state.columns] = [state.columns, state.rows];
    [state.row, state.column] = [0, 0];
    draw();
  }

  function drawControls() {
    axisOptions(by("rows"), state.rows);
    axisOptions(by("columns"), state.columns);
    const focused = document.activeElement?.dataset?.axis;
    const others = catalogue.axes.filter(({ name }) => name !== state.rows && name !== state.columns);
    by("pickers").replaceChildren(...others.map(picker).filter(Boolean));
    if (focused) by("pickers").querySelector(`[data-axis="${focused}"]:is(select, :checked)`)?.focus();
  }

  /** A choice among the values that an axis has here, where it has several. */
  function picker({ name }) {
    if (grid.isSpread(name, groups)) return null; // no value is more than one prompt's
    const values = grid.distinct(groups.flat().map((cell) => cell[name]));
    if (!groups.some((group) => new Set(group.map((cell) => cell[name])).size > 1)) return null;
    const picked = values.find((value) => String(value) === state.pick[name]);
    const chosen = picked === undefined ? values[0] : picked;
    const choose = (value) => {
      state.pick[name] = value;
      state.row = state.column = 0;
      draw();
    };
    return values.length <= SEGMENTS ? segments(name, values, chosen, choose) : picklist(name, values, chosen, choose);
  }

  function segments(name, values, chosen, choose) {
    const set = make("fieldset", { className: "field" }, make("legend", { textContent: WORDS[name] }));
    const row = make("div", { className: "segments" });
    for (const value of values) {
      const input = make("input", { type: "radio", name, value: String(value), checked: value === chosen });
      input.dataset.axis = name;
      input.addEventListener("change", () => choose(input.value));
      row.append(make("label", {}, input, make("span", { textContent: grid.label(name, value) })));
    }
    set.append(row);
    return set;
  }

  function picklist(name, values, chosen, choose) {
    const select = make("select");
    select.dataset.axis = name;
    select.append(...values.map((value) => make("option", { value: String(value), textContent: grid.label(name, value) })));
    select.value = String(chosen);
    select.addEventListener("change", () => choose(select.value));
    return make("label", { className: "field" }, make("span", { textContent: WORDS[name] }), select);
  }

  // What is shown.

  async function draw() {
    const mine = ++turn;
    try {
      const comparing = isComparing();
      const shown = comparing ? await onPage() : total() ? [await cells.prompt(state.prompt)] : [];
      const found = await Promise.all(shown.map(cells.ofPrompt));
      if (mine !== turn) return;
      groups = found;
      heading(shown, comparing);
      drawControls();
      const focused = grid.inOrder().indexOf(document.activeElement);
      const drawn = grid.draw(groups, state, detail.open);
      if (focused >= 0) (grid.inOrder()[focused] || grid.first())?.focus();
      drawWindow(drawn);
      remember();
      await Promise.all([drawList(), drawn.filled]);
      if (mine === turn) ready(drawn);
    } catch (error) {
      if (mine === turn) by("note").textContent = error.message;
    }
  }

  function heading(shown, comparing) {
    const [one] = shown;
    const query = state.query.trim();
    const many = matches ? `${count(total(), "prompt")}${query ? ` with “${query}”` : ""}${state.onlyFailed ? " with failures" : ""}` : "All prompts";
    by("prompt").textContent = comparing || !one ? many : one.text;
    by("negative").hidden = comparing || !one || !one.negative;
    by("negative").textContent = one ? `Not: ${one.negative}` : "";
    by("note").textContent = total() ? "" : "No prompt has all of these words.";
    const [before, after] = by("steps").querySelectorAll("button");
    const [at, end] = comparing ? [state.page, pages()] : [placeOf(state.prompt), total()];
    by("steps").hidden = end < 2;
    [before.disabled, after.disabled] = [at <= 0, at >= end - 1];
  }

  /** Buttons for the rest of long axes. */
  function drawWindow({ laid, rows, columns }) {
    const box = by("window");
    box.replaceChildren();
    for (const [axis, from, number, end] of [["row", state.row, rows, laid.rows.length], ["column", state.column, columns, laid.columns.length]]) {
      if (number >= end) continue;
      const name = WORDS[axis === "row" ? state.rows : state.columns] || "picture";
      const go = (to) => {
        state[axis] = to;
        draw();
      };
      const before = make("button", { type: "button", className: "quiet", textContent: "‹", disabled: from === 0, "aria-label": `${name} before` });
      const after = make("button", { type: "button", className: "quiet", textContent: "›", disabled: from + number >= end, "aria-label": `more of ${name}` });
      const width = Math.max(number, axis === "row" ? laid.step.rows : laid.step.columns);
      before.addEventListener("click", () => go(Math.max(0, from - width)));
      after.addEventListener("click", () => go(from + number));
      box.append(before, make("span", { textContent: `${name} ${from + 1} to ${from + number} of ${end.toLocaleString("en")}` }), after);
    }
    box.hidden = !box.childElementCount;
  }

  /** For who measures or tests the page: all that is asked for is there. */
  function ready(drawn) {
    document.documentElement.dataset.drawn = String(turn);
    if (drawn.pictures) performance.mark("darkroom:pictures");
  }

  // What is chosen stands in the address: it can be kept and shared, and a reload changes nothing.

  function remember() {
    const { prompt, query, onlyFailed, rows, columns, pick } = state;
    const kept = new URLSearchParams({ prompt: String(prompt + 1), rows, columns, ...pick });
    if (query.trim()) kept.set("search", query);
    if (onlyFailed) kept.set("failures", "1");
    try {
      history.replaceState(null, "", `#${kept}`);
    } catch {
      // a page inside another may not
    }
  }

  function recall() {
    const kept = new URLSearchParams(location.hash.slice(1));
    const isAxis = (name) => name === "" || name === "prompt" || catalogue.axes.some((axis) => axis.name === name);
    const prompt = Number(kept.get("prompt"));
    if (Number.isInteger(prompt) && prompt >= 1 && prompt <= catalogue.prompts) state.prompt = prompt - 1;
    for (const which of ["rows", "columns"]) if (kept.has(which) && isAxis(kept.get(which))) state[which] = kept.get(which);
    if (state.rows && state.rows === state.columns) state.columns = "";
    for (const { name } of catalogue.axes) if (kept.has(name)) state.pick[name] = kept.get(name);
    state.query = by("search").value = kept.get("search") || "";
    state.onlyFailed = kept.has("failures") && by("only-failed") !== null;
    if (by("only-failed")) by("only-failed").checked = state.onlyFailed;
    state.page = Math.floor(state.prompt / LISTED);
  }

  // Keys and buttons.

  const KEYS = {
    "/": () => {
      openList(true);
      by("search").focus();
      by("search").select();
    },
    "[": () => stepPrompt(-1),
    "]": () => stepPrompt(1),
    x: swap,
    t: theme,
    "?": () => by("help").showModal(),
    Escape: closeList,
  };

  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input[type=search], select, textarea");
    if (event.altKey || event.ctrlKey || event.metaKey || typing || document.querySelector("dialog[open]")) return;
    const act = KEYS[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });

  grid.box.addEventListener("keydown", (event) => {
    const from = document.activeElement;
    if (!from.cell || event.altKey || event.ctrlKey || event.metaKey) return;
    const arrow = detail.ARROWS[event.key];
    const ends = { Home: grid.first, End: grid.last }[event.key];
    const to = arrow ? grid.step(from, ...arrow) : ends ? ends() : null;
    if (!arrow && !ends) return;
    event.preventDefault();
    to?.focus();
  });

  for (const which of ["rows", "columns"]) by(which).addEventListener("change", (event) => chooseAxis(which, event.target.value));
  by("controls").addEventListener("submit", (event) => event.preventDefault());
  by("swap").addEventListener("click", swap);
  by("help-button").addEventListener("click", () => by("help").showModal());
  by("steps").addEventListener("click", (event) => stepPrompt(Number(event.target.dataset.step || 0)));
  by("list-pager").addEventListener("click", (event) => event.target.dataset.step && stepPage(Number(event.target.dataset.step)));
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    focusPictures();
  });
  addEventListener("hashchange", () => {
    recall();
    search();
  });

  recall();
  if (state.query || state.onlyFailed) search();
  else draw();
})();
