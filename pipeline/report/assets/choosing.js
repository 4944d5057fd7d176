"use strict";

// Which cells a view shows, and the controls for the axes that are neither rows nor columns. A control that is pressed
// says what is true of every picture; where pictures differ, none is pressed and each picture has its value written on it.
const choosing = (() => {
  const { catalogue } = darkroom;
  const { make, label, distinct, WORDS } = grid;
  const SEGMENTS = 6; // more values are chosen from a list
  const OWN = "*"; // stands in an address for "each its own"
  const OWN_WORDS = "each its own";

  /** Return the axes that are neither rows nor columns, with the values they have here. */
  function others(groups, view) {
    const found = catalogue.axes.filter(({ name }) => name !== view.rows && name !== view.columns);
    return found.map(({ name }) => ({ name, values: distinct(groups.flat().map((cell) => cell[name])) }));
  }

  /** Return {axes, groups}: for each other axis its values and the chosen one, undefined for "each its own"; the cells left. */
  function choose(groups, view) {
    const axes = others(groups, view).map((axis) => ({ ...axis, picked: picked(axis, view) }));
    let left = groups;
    for (const axis of axes.filter((one) => one.picked)) {
      axis.ragged = cover(left, axis, view).ragged;
      axis.chosen = axis.picked.value;
      left = narrowed(left, axis);
    }
    for (const axis of axes.filter((one) => !one.picked)) {
      Object.assign(axis, cover(left, axis, view));
      left = narrowed(left, axis);
    }
    return { axes, groups: left };
  }

  /** Return {value} where a value or "each its own" was picked and exists here, null where not. */
  function picked({ name, values }, view) {
    if (values.length < 2 || view.pick[name] === undefined) return null;
    if (view.pick[name] === OWN) return { value: undefined };
    const at = values.findIndex((value) => String(value) === view.pick[name]);
    return at < 0 ? null : { value: values[at] };
  }

  const narrowed = (groups, { name, chosen }) =>
    chosen === undefined ? groups : groups.map((group) => group.filter((cell) => cell[name] === chosen));

  /** Choose the value that most places have; undefined where it would leave out what differs between prompts, or much else. */
  function cover(groups, { name, values }, view) {
    const places = new Map(values.map((value) => [value, new Set()]));
    const all = new Set();
    for (const cell of groups.flat()) {
      const place = [cell.prompt.number, cell[view.rows], cell[view.columns]].join("\n");
      places.get(cell[name]).add(place);
      all.add(place);
    }
    let best = values[0];
    for (const value of values) if (places.get(value).size > places.get(best).size) best = value;
    const most = values.length ? places.get(best).size : 0;
    const several = groups.filter((group) => group.some((cell) => cell[name] !== group[0][name])).length;
    const isSwept = 2 * several >= groups.filter((group) => group.length).length;
    const ragged = most < all.size; // the value leaves some places empty
    return { chosen: most && (!ragged || (isSwept && 4 * most >= 3 * all.size)) ? best : undefined, ragged };
  }

  /** Say what is true of all pictures that are shown. */
  function summary(axes) {
    const said = axes.map(({ name, values, chosen }) => {
      if (name === "size" && chosen !== undefined) return `${chosen} px`;
      return `${WORDS[name]} ${chosen === undefined ? OWN_WORDS : label(name, chosen)}`;
    });
    return said.join(" · ");
  }

  /** Say why nothing is shown. */
  function nothing(axes) {
    const chosen = axes.filter((axis) => axis.picked && axis.chosen !== undefined);
    return `No picture has ${chosen.map(({ name, chosen: value }) => `${WORDS[name]} ${label(name, value)}`).join(" and ")}.`;
  }

  /** Return a control for an axis that has several values here, null for any other; pick(text) is called for a choice. */
  function picker(axis, groups, pick) {
    const { name, values, chosen, ragged } = axis;
    if (values.length < 2 || (chosen === undefined && grid.isSpread(name, groups))) return null;
    const options = values.map((value) => ({ value: String(value), text: label(name, value), chosen: value === chosen }));
    if (ragged || chosen === undefined) options.unshift({ value: OWN, text: OWN_WORDS, chosen: chosen === undefined });
    return options.length <= SEGMENTS + 1 ? segments(name, WORDS[name], options, pick) : picklist(name, options, pick);
  }

  function segments(name, title, options, pick) {
    const set = make("fieldset", { className: "field" }, make("legend", { textContent: title }));
    const row = make("div", { className: "segments" });
    for (const { value, text, chosen } of options) {
      const input = make("input", { type: "radio", name, value, checked: chosen });
      input.dataset.axis = name;
      input.addEventListener("change", () => pick(input.value));
      row.append(make("label", {}, input, make("span", { textContent: text })));
    }
    set.append(row);
    return set;
  }

  function picklist(name, options, pick) {
    const select = make("select");
    select.dataset.axis = name;
    select.append(...options.map(({ value, text }) => make("option", { value, textContent: text })));
    select.value = options.find(({ chosen }) => chosen).value;
    select.addEventListener("change", () => pick(select.value));
    return make("label", { className: "field" }, make("span", { textContent: WORDS[name] }), select);
  }

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

  return { axisOptions, choose, summary, nothing, picker, segments };
})();
