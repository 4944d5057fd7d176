"use strict";

// Prompts and cells as objects, from the columns that data files have.
const cells = (() => {
  const { catalogue, load } = darkroom;
  const AHEAD = 12; // files of prompts asked for before they are searched

  async function promptPage(number) {
    const [page] = await load(catalogue.promptPages[number], true);
    return page;
  }

  /** One prompt by number. */
  async function prompt(number) {
    const page = await promptPage(Math.floor(number / catalogue.perPromptPage));
    const at = number % catalogue.perPromptPage;
    return {
      number,
      text: page.prompt[at],
      negative: page.negative[at] || "",
      id: page.id[at],
      first: page.first[at],
      count: page.count[at],
      failed: page.failed[at] || 0,
    };
  }

  /** Numbers of the prompts that have all words of a query; tell(share) now and then, and stop when it says false. */
  async function search(query, onlyFailed, tell) {
    const words = query.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    const found = [];
    const pages = catalogue.promptPages.length;
    for (let number = 0; number < pages; number++) {
      for (let next = number; next < Math.min(number + AHEAD, pages); next++) promptPage(next).catch(() => {});
      const page = await promptPage(number);
      page.lower = page.lower || page.prompt.map((text) => text.toLocaleLowerCase());
      page.lower.forEach((text, at) => {
        if (onlyFailed && !page.failed[at]) return;
        if (words.every((word) => text.includes(word))) found.push(number * catalogue.perPromptPage + at);
      });
      if (!tell((number + 1) / pages)) return null;
    }
    return found;
  }

  /** Return the number of the prompt that an image belongs to, by the image's place in the whole run. */
  async function promptAt(image) {
    const number = catalogue.promptFirsts.findLastIndex((first) => first <= image);
    const page = await promptPage(number);
    return number * catalogue.perPromptPage + page.first.findLastIndex((first) => first <= image);
  }

  /** Return how many images stand before each of these prompts, and after the last one: one number more than prompts. */
  async function offsets(numbers) {
    const before = [0];
    for (let start = 0; start < numbers.length; ) {
      const own = Math.floor(numbers[start] / catalogue.perPromptPage);
      const page = await promptPage(own);
      for (; Math.floor(numbers[start] / catalogue.perPromptPage) === own; start++) {
        before.push(before.at(-1) + page.count[numbers[start] % catalogue.perPromptPage]);
      }
    }
    return before;
  }

  const decoded = (column, at) => column.values[column.codes ? column.codes[at] : 0];

  /** Return the cells of a prompt: all of them, or `number` of them after the first `skip`. */
  async function ofPrompt(one, skip = 0, number_ = one.count - skip) {
    const size = catalogue.perCellPage;
    const [from, to] = [one.first + skip, one.first + Math.min(skip + number_, one.count)];
    const first = Math.floor(from / size);
    const last = Math.floor((to - 1) / size);
    const numbers = Array.from({ length: last - first + 1 }, (_, at) => first + at);
    const pages = await Promise.all(numbers.map((number) => load(catalogue.cellPages[number])));
    const found = [];
    for (let number = from; number < to; number++) {
      const [page] = pages[Math.floor(number / size) - first];
      const at = number % size;
      const cell = { number, prompt: one, verdict: decoded(page.verdict, at), ok: decoded(page.ok, at) };
      for (const axis of catalogue.axes) cell[axis.name] = decoded(page[axis.name], at);
      cell.image = page.image[at];
      cell.preview = page.preview ? page.preview[at] : [-1, -1];
      found.push(cell);
    }
    return found;
  }

  /** {metadata, picture}: a map of all that is known of a cell, and its thumbnail's address or null. */
  async function entry(cell) {
    if (cell.image[0] < 0) return { metadata: new Map(), picture: null };
    const [, rows, pictures] = await load(catalogue.imagePacks[cell.image[0]]);
    const at = cell.image[1];
    const metadata = new Map();
    for (const { name, same, each } of rows) {
      const value = each ? each[at] : same;
      if (value !== null) metadata.set(name, value);
    }
    return { metadata, picture: address(pictures[at]) };
  }

  /** The address of a larger copy, null where none is kept. */
  async function preview(cell) {
    if (cell.preview[0] < 0) return null;
    const [, , pictures] = await load(catalogue.previewPacks[cell.preview[0]]);
    return address(pictures[cell.preview[1]]);
  }

  const address = (picture) => (picture ? `data:image/webp;base64,${picture}` : null);

  return { prompt, promptAt, offsets, search, ofPrompt, entry, preview };
})();
