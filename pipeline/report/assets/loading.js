"use strict";

// Data files are scripts that call darkroom.take: a page opened from disk may load scripts, but not fetch() files.
const darkroom = (() => {
  const KEPT = 160; // files in memory; a file of thumbnails is at most some two megabytes
  const loaded = new Map(); // promises by name, least recently used first
  const lasting = new Map(); // those that stay
  const waiting = new Map();

  function begin(name) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      const failed = () => {
        for (const held of [loaded, lasting]) held.delete(name);
        waiting.delete(name);
        reject(new Error(`pages/${name}.js cannot be read. Make the contact sheet again.`));
      };
      waiting.set(name, resolve);
      script.src = `pages/${encodeURIComponent(name)}.js`;
      script.onload = () => {
        script.remove();
        if (waiting.has(name)) failed(); // it did not say what it should
      };
      script.onerror = () => {
        script.remove();
        failed();
      };
      document.head.append(script);
    });
  }

  /** The content of a data file, as a list. */
  function load(name, keep = false) {
    const held = keep ? lasting : loaded;
    const found = held.get(name) || begin(name);
    held.delete(name);
    held.set(name, found);
    for (const old of loaded.keys()) {
      if (loaded.size <= KEPT) break;
      if (!waiting.has(old) && old !== name) loaded.delete(old);
    }
    return found;
  }

  /** Called by data files. */
  function take(name, ...content) {
    const resolve = waiting.get(name);
    waiting.delete(name);
    if (resolve) resolve(content);
  }

  const catalogue = JSON.parse(document.getElementById("catalogue").textContent);
  return { load, take, catalogue };
})();
