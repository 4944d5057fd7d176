"use strict";

// What is around the pictures: light or dark, and the list of prompts on narrow screens.
const frame = (() => {
  const root = document.documentElement;
  const side = document.getElementById("side");
  const opener = document.getElementById("open-list");
  const KEY = "darkroom-theme";

  /** The other of light and dark, from now on. */
  function theme() {
    const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = root.dataset.theme || (isDark ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    try {
      localStorage.setItem(KEY, root.dataset.theme);
    } catch {
      // a page opened from disk may have no storage; the choice then lasts as long as the page
    }
  }

  function recallTheme() {
    try {
      const kept = localStorage.getItem(KEY);
      if (kept === "dark" || kept === "light") root.dataset.theme = kept;
    } catch {
      // as above
    }
  }

  /** On narrow screens the list of prompts lies over the pictures. */
  function openList(isOpen) {
    side.classList.toggle("open", isOpen);
    opener.setAttribute("aria-expanded", String(isOpen));
  }

  const closeList = () => openList(false);

  recallTheme();
  document.getElementById("theme").addEventListener("click", theme);
  opener.addEventListener("click", () => openList(!side.classList.contains("open")));
  document.querySelector("main").addEventListener("pointerdown", closeList);
  return { theme, openList, closeList };
})();
