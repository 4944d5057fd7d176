"use strict";

// Data files are scripts that call darkroom.take: a page opened from disk may load scripts, but not fetch() files.
const darkroom = (() => {
  const KEPT = 160; // files in memory; a file of thumbnails is at most some two megabytes
  const loaded = new Map(); // by name, least recently used first: promises
  const waiting = new Map();

  function begin(name) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      const failed = () => {
        loaded.delete(name);
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
    const found = loaded.get(name) || begin(name);
    loaded.delete(name);
    loaded.set(name, found);
    if (keep) found.keep = true;
    for (const [old, promise] of loaded) {
      if (loaded.size <= KEPT) break;
      if (!promise.keep && old !== name) loaded.delete(old);
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
