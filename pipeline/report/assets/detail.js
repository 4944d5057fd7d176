"use strict";

// One picture in full: recipe, metadata, and the command that renders it again.
const detail = (() => {
  const { catalogue } = darkroom;
  const { make, WORDS } = grid;
  const by = (id) => document.getElementById(id);
  const dialog = by("detail");
  const LARGE_PX = 512; // smaller pictures are shown in whole multiples of their size
  let current = null;

  const quoted = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;
  const plain = (text) => (/^[\w.+:/,-]+$/.test(text) ? text : quoted(text));

  /** A shell command that makes this one picture, into a folder `again`: the same as `darkroom explain` prints. */
  function command(metadata) {
    const negative = metadata.get("negative_prompt");
    const guidance = metadata.get("guidance_scale");
    const rows = metadata.get("rows"); // they decide last bits
    return [
      `darkroom render --prompt ${quoted(metadata.get("prompt"))}`,
      ...(negative ? [`--negative-prompt ${quoted(negative)}`] : []),
      `--seeds ${metadata.get("seed")}`,
      ...(guidance === undefined ? [] : [`--guidance-scales ${guidance}`]),
      `--steps ${metadata.get("num_inference_steps")}`,
      `--schedulers ${plain(metadata.get("scheduler"))}`,
      `--sizes ${metadata.get("width")}x${metadata.get("height")}`,
      ...catalogue.again,
      ...(rows > 1 ? [`--set render.rows=${rows}`] : []),
      "--output again",
    ].join(" \\\n  ");
  }

  function show(list, pairs) {
    list.replaceChildren();
    for (const [name, value] of pairs) {
      const text = value !== null && typeof value === "object" ? JSON.stringify(value) : String(value);
      list.append(make("dt", { textContent: name, dir: "auto" }), make("dd", { textContent: text, dir: "auto" }));
    }
  }

  function recipe(cell, metadata) {
    const axes = catalogue.axes.map(({ name }) => [WORDS[name], grid.label(name, cell[name])]);
    return metadata.get("prompt_id") ? [...axes, ["prompt id", metadata.get("prompt_id")]] : axes;
  }

  const addressed = (file) => catalogue.pictures + file.split("/").map(encodeURIComponent).join("/");

  /** What to show of a cell: the image itself where the page can reach it, else the largest copy there is. */
  async function picture(cell, metadata, thumbnail) {
    const file = metadata.get("file_name");
    if (catalogue.pictures !== null && file) return { address: addressed(file), whole: true };
    const large = await cells.preview(cell);
    return { address: large || thumbnail, whole: false };
  }

  function size(image) {
    const { naturalWidth: width, naturalHeight: height } = image;
    const times = Math.max(1, Math.min(4, Math.floor(LARGE_PX / Math.max(width, height, 1))));
    image.style.setProperty("--width", `${width * times}px`);
    image.classList.toggle("small", times > 1);
    return times;
  }

  function caption(cell, metadata, shown, image) {
    const times = size(image);
    const bytes = metadata.get("file_bytes");
    const kind = `${cell.size} px ${(metadata.get("format") || "").toUpperCase()}`;
    const file = metadata.get("file_name");
    const parts = [bytes ? `${kind}, ${Math.max(1, Math.round(bytes / 1000)).toLocaleString("en")} kB` : kind];
    if (times > 1) parts.push(`shown ${times} × as large`);
    if (!shown.whole) parts.push(`this is a copy of ${image.naturalWidth}×${image.naturalHeight} px; the image is ${catalogue.output}/${file}`);
    return parts.join(" · ");
  }

  /** Open the panel for the cell of a button of the grid; the page says so where its files cannot be read. */
  async function open(button) {
    current = button;
    by("note").textContent = "";
    try {
      await fill(button);
    } catch (error) {
      if (current !== button) return;
      dialog.close();
      by("note").textContent = error.message;
    }
  }

  async function fill(button) {
    const { cell } = button;
    const { metadata, picture: thumbnail } = await cells.entry(cell);
    if (current !== button) return;
    by("detail-prompt").textContent = cell.prompt.text;
    by("detail-negative").textContent = cell.prompt.negative ? `Not: ${cell.prompt.negative}` : "";
    by("detail-negative").hidden = !cell.prompt.negative;
    verdict(cell, metadata);
    show(by("detail-recipe"), recipe(cell, metadata));
    show(by("detail-metadata"), metadata);
    by("detail-command").textContent = metadata.size ? command(metadata) : "";
    by("copy").textContent = "Copy";
    if (!dialog.open) dialog.showModal();
    await place(button, cell, metadata, thumbnail);
  }

  function verdict(cell, metadata) {
    const lost = cell.verdict === "lost";
    const reason = lost ? "the image cannot be read; darkroom verify says more" : metadata.get("error") || "";
    by("detail-verdict").textContent = [lost ? "Lost" : cell.ok ? grid.said(cell.verdict) : `Failed: ${grid.said(cell.verdict)}`, reason].filter(Boolean).join(" · ");
    by("detail-verdict").hidden = cell.verdict === "ok";
  }

  async function place(button, cell, metadata, thumbnail) {
    const holder = by("detail-picture");
    const link = by("detail-link");
    link.hidden = true;
    by("detail-caption").textContent = "";
    if (!cell.ok || !thumbnail) {
      holder.replaceChildren(make("p", { className: "nothing", textContent: "No picture" }));
      return;
    }
    try {
      const shown = await picture(cell, metadata, thumbnail);
      const image = await loaded(shown.address, cell.prompt.text);
      if (current !== button) return;
      by("detail-caption").textContent = caption(cell, metadata, shown, image);
      holder.replaceChildren(image);
      link.hidden = !shown.whole;
      if (shown.whole) link.href = shown.address;
    } catch (error) {
      if (current !== button) return;
      by("detail-caption").textContent = `${error.message} This is its thumbnail.`;
      holder.replaceChildren(make("img", { alt: cell.prompt.text, src: thumbnail }));
    }
  }

  function loaded(address, alt) {
    const image = make("img", { alt });
    return new Promise((resolve, reject) => {
      image.onload = () => resolve(image);
      image.onerror = () => reject(new Error(`${address} cannot be opened.`));
      image.src = address;
    });
  }

  function move(right, down) {
    const inOrder = grid.inOrder();
    const next = grid.step(current, right, down) || (right ? inOrder[inOrder.indexOf(current) + right] : null);
    if (next) open(next);
  }

  async function copy() {
    const text = by("detail-command");
    try {
      await navigator.clipboard.writeText(text.textContent);
      by("copy").textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(text); // a browser that lets no page write: one key is left to press
      by("copy").textContent = "Selected";
    }
  }

  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  dialog.addEventListener("keydown", (event) => {
    const arrow = ARROWS[event.key];
    if (!arrow || event.altKey || event.ctrlKey || event.metaKey || event.target === by("detail-command")) return;
    event.preventDefault();
    move(...arrow);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // beside it
    const { move: by_ } = event.target.dataset;
    if (by_) move(Number(by_), 0);
  });
  dialog.addEventListener("close", () => {
    if (current && current.isConnected) current.focus();
    current = null;
  });
  by("detail-close").addEventListener("click", () => dialog.close());
  by("copy").addEventListener("click", copy);
  return { open, ARROWS };
})();
