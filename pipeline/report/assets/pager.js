"use strict";

// Buttons for the rest of long axes, and of all pictures.
const pager = (() => {
  const { make, WORDS } = grid;
  const box = document.getElementById("window");

  /** Draw them for rows and columns of which not all are shown; go("row" or "column", from) is called for another part. */
  function draw(view, { laid, rows, columns }, go) {
    box.replaceChildren();
    part("row", view.rows, view.row, rows, laid.rows.length, laid.step.rows, go);
    part("column", view.columns, view.column, columns, laid.columns.length, laid.step.columns, go);
    box.hidden = !box.childElementCount;
  }

  function part(line, axis, from, number, end, step, go) {
    if (number < end) add(WORDS[axis] || "picture", from, number, end, Math.max(number, step), (to) => go(line, to));
  }

  /** Draw them for all pictures, of which `number` from `from` on are shown. */
  function drawAll(from, number, end, step, go) {
    box.replaceChildren();
    box.hidden = end <= step;
    if (number) add("picture", from, number, end, step, go);
  }

  function add(name, from, number, end, step, go) {
    const before = make("button", { type: "button", className: "quiet", textContent: "‹", disabled: from === 0, "aria-label": `${name} before` });
    const after = make("button", { type: "button", className: "quiet", textContent: "›", disabled: from + number >= end, "aria-label": `more of ${name}` });
    before.addEventListener("click", () => go(Math.max(0, from - step)));
    after.addEventListener("click", () => go(from + number));
    const [first, last, all] = [from + 1, from + number, end].map((count) => count.toLocaleString("en"));
    box.append(before, make("span", { textContent: `${name} ${first} to ${last} of ${all}` }), after);
  }

  return { draw, drawAll };
})();
