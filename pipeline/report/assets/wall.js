"use strict";

// All pictures of all prompts one after the other, some at a time.
const wall = (() => {
  const { catalogue } = darkroom;
  const PICTURES = 120;
  const known = new WeakMap(); // offsets by list of found prompts

  function offsets(matches) {
    if (!known.has(matches)) known.set(matches, cells.offsets(matches));
    return known.get(matches);
  }

  /** Return how many pictures the found prompts have; all prompts where matches is null. */
  const total = async (matches) => (matches ? (await offsets(matches)).at(-1) : catalogue.images + catalogue.failed);

  /** Return the first picture of the page that has the first picture of a prompt. */
  async function pageOf(number, matches) {
    const at = matches ? matches.indexOf(number) : number;
    if (at < 0 || !catalogue.prompts) return 0;
    const first = matches ? (await offsets(matches))[at] : (await cells.prompt(number)).first;
    return first - (first % PICTURES);
  }

  /** Return groups of cells, one per prompt: the pictures from the one with this number on. */
  async function groups(from, matches) {
    const end = Math.min(await total(matches), from + PICTURES);
    if (from >= end) return [];
    const before = matches && (await offsets(matches));
    let place = matches ? before.findLastIndex((first) => first <= from) : await cells.promptAt(from);
    const found = [];
    for (let at = from; at < end; place++) {
      const one = await cells.prompt(matches ? matches[place] : place);
      const skip = at - (matches ? before[place] : one.first);
      const own = await cells.ofPrompt(one, skip, end - at);
      found.push(own);
      at += own.length;
    }
    return found;
  }

  return { PICTURES, total, pageOf, groups };
})();
