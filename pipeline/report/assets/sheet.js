"use strict";

// The page: what is chosen, the list of prompts, the choices of axes, the keys.
(() => {
  const { catalogue } = darkroom;
  const { make, WORDS } = grid;
  const { openList, closeList, theme } = frame;
  const by = (id) => document.getElementById(id);
  const LISTED = 25;
  const state = { prompt: 0, page: 0, query: "", onlyFailed: false, ...catalogue.begin, from: null, pick: {}, row: 0, column: 0 };
  let matches = null; // numbers of the prompts that were found; null: all
  let groups = []; // cells of the prompts that are shown
  let turn = 0; // of what is drawn: what comes later wins
  let searchTurn = 0;
  let isSearching = false;

  const isWall = () => state.view === "all"; // state.from: the first picture of it, null: the page with state.prompt
  const isComparing = () => !isWall() && (state.rows === "prompt" || state.columns === "prompt");
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
    if (one.number === state.prompt && !isComparing() && !isWall()) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => choosePrompt(one.number));
    return make("li", {}, button);
  }

  async function choosePrompt(number) {
    closeList();
    state.prompt = number;
    if (isComparing()) return focusPrompt(number);
    state.row = state.column = 0;
    state.from = null;
    await draw();
    return isWall() ? focusPrompt(number) : undefined;
  }

  function focusPrompt(number) {
    grid.inOrder().find((button) => button.cell.prompt.number === number)?.focus();
  }

  async function stepWall(by_) {
    const from = state.from + by_ * wall.PICTURES;
    if (from < 0 || from >= (await wall.total(matches))) return;
    state.from = from;
    draw();
  }

  function stepPrompt(by_) {
    if (isWall()) return stepWall(by_);
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

  /** Search; inPlace: the page of all pictures stays, as an address names one of what its search finds. */
  async function search(inPlace = false) {
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
    if (!inPlace) state.from = null;
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

  function chooseView(name) {
    state.view = name;
    state.from = null;
    state.row = state.column = 0;
    draw();
  }

  function drawControls(chosen) {
    choosing.axisOptions(by("rows"), state.rows);
    choosing.axisOptions(by("columns"), state.columns);
    for (const field of by("controls").querySelectorAll(".axis")) field.hidden = isWall();
    const focused = document.activeElement?.dataset?.axis;
    const views = [["grid", "grid"], ["all", "all pictures"]].map(([value, text]) => ({ value, text, chosen: value === state.view }));
    by("views").replaceChildren(choosing.segments("view", "View", views, chooseView));
    by("views").hidden = catalogue.images + catalogue.failed < 2;
    const pick = (name) => (text) => {
      state.pick[name] = text;
      state.row = state.column = 0;
      draw();
    };
    by("pickers").replaceChildren(...chosen.axes.map((axis) => choosing.picker(axis, groups, pick(axis.name))).filter(Boolean));
    if (focused) by("controls").querySelector(`[data-axis="${focused}"]:is(select, :checked)`)?.focus();
    by("shown").textContent = groups.length ? choosing.summary(chosen.axes) : "";
  }

  // What is shown.

  async function draw() {
    const mine = ++turn;
    try {
      const drawing = isWall() ? await drawAll(mine) : await drawGrid(mine);
      if (!drawing || mine !== turn) return;
      remember();
      await Promise.all([drawList(), drawing.filled]);
      if (mine === turn) ready(drawing);
    } catch (error) {
      if (mine === turn) by("note").textContent = error.message;
    }
  }

  /** Draw rows and columns; undefined where something else is to be drawn by now. */
  async function drawGrid(mine) {
    const comparing = isComparing();
    const shown = comparing ? await onPage() : total() ? [await cells.prompt(state.prompt)] : [];
    const found = await Promise.all(shown.map((one) => cells.ofPrompt(one)));
    if (mine !== turn) return undefined;
    groups = found;
    const chosen = choosing.choose(groups, state);
    heading(shown, comparing ? [state.page, pages()] : [placeOf(state.prompt), total()], comparing);
    drawControls(chosen);
    const drawing = focusKept(() => grid.draw(groups, state, chosen, detail.open));
    if (total() && !chosen.groups.some((group) => group.length)) by("note").textContent = choosing.nothing(chosen.axes);
    pager.draw(state, drawing, (axis, to) => {
      state[axis] = to;
      draw();
    });
    return drawing;
  }

  /** Draw a page of all pictures; undefined as above. */
  async function drawAll(mine) {
    const from = state.from ?? (await wall.pageOf(state.prompt, matches));
    const [found, end] = [await wall.groups(from, matches), await wall.total(matches)];
    if (mine !== turn) return undefined;
    [groups, state.from] = [found, from];
    const shown = groups.map((group) => group[0].prompt);
    if (shown.length && !shown.some(({ number }) => number === state.prompt)) state.prompt = shown[0].number;
    state.page = Math.max(0, Math.floor(placeOf(state.prompt) / LISTED));
    heading(shown, [Math.floor(from / wall.PICTURES), Math.ceil(end / wall.PICTURES)], true);
    drawControls({ axes: [] });
    const drawing = focusKept(() => grid.drawAll(groups.flat(), detail.open));
    pager.drawAll(from, groups.flat().length, end, wall.PICTURES, (to) => {
      state.from = to;
      draw();
    });
    return drawing;
  }

  /** Draw, and give the focus to the picture in the place of the one that had it. */
  function focusKept(draw_) {
    const focused = grid.inOrder().indexOf(document.activeElement);
    const drawing = draw_();
    if (focused >= 0) (grid.inOrder()[focused] || grid.first())?.focus();
    return drawing;
  }

  function heading(shown, [at, end], many_) {
    const [one] = shown;
    const query = state.query.trim();
    const many = matches ? `${count(total(), "prompt")}${query ? ` with “${query}”` : ""}${state.onlyFailed ? " with failures" : ""}` : "All prompts";
    by("prompt").textContent = many_ || !one ? many : one.text;
    by("negative").hidden = many_ || !one || !one.negative;
    by("negative").textContent = one ? `Not: ${one.negative}` : "";
    by("note").textContent = total() ? "" : "No prompt has all of these words.";
    const [before, after] = by("steps").querySelectorAll("button");
    by("steps").hidden = end < 2;
    [before.disabled, after.disabled] = [at <= 0, at >= end - 1];
  }

  /** For who measures or tests the page: all that is asked for is there. */
  function ready(drawn) {
    document.documentElement.dataset.drawn = String(turn);
    if (drawn.pictures) performance.mark("darkroom:pictures");
  }

  // What is chosen stands in the address: it can be kept and shared, and a reload changes nothing.

  function remember() {
    const { prompt, query, onlyFailed, view, from, rows, columns, pick } = state;
    const place = isWall() ? { from: String(from + 1) } : { rows, columns, ...pick };
    const kept = new URLSearchParams({ prompt: String(prompt + 1), view, ...place });
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
    const [prompt, from] = [Number(kept.get("prompt")), Number(kept.get("from"))];
    if (kept.has("rows") || kept.has("columns")) state.view = "grid";
    if (["grid", "all"].includes(kept.get("view"))) state.view = kept.get("view");
    state.from = Number.isInteger(from) && from >= 1 && from <= catalogue.images + catalogue.failed ? from - 1 : null;
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
    x: () => isWall() || swap(),
    a: () => chooseView(isWall() ? "grid" : "all"),
    t: theme,
    "?": () => by("help").showModal(),
    Escape: closeList,
  };

  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input[type=search], select, textarea");
    if (event.altKey || event.ctrlKey || event.metaKey || typing || document.querySelector("dialog[open]")) return;
    const act = KEYS[event.key] || (document.activeElement === document.body ? toPictures(event.key) : null);
    if (!act) return;
    event.preventDefault();
    act();
  });

  /** Arrows and Enter lead to the pictures while nothing has the focus. */
  function toPictures(key) {
    if (key === "Enter") return grid.current() && (() => detail.open(grid.current()));
    return key in detail.ARROWS && grid.current() ? () => grid.current().focus() : null;
  }

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
    search(true);
  });

  recall();
  if (state.query || state.onlyFailed) search(true);
  else draw();
})();
