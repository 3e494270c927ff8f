"use strict";
// One question from inside. Everything that comes from data becomes text nodes, never markup.
(() => {
  const data = JSON.parse(document.getElementById("inside-data").textContent);
  const at = (id) => document.getElementById(id);
  const kind = at("kind"), head = at("head"), layer = at("layer"), labels = at("labels");
  const words = [...document.querySelectorAll(".word")];
  const figures = [...document.querySelectorAll(".seen")];
  const answer = data.words.length - 1;
  let word = answer, held = answer, spot = null;
  const ABOUT = {
    looked: "What each layer reads: the mean of its heads' attention, from the chosen word.",
    heads: "One head's attention from the answer's place.",
    rollout: "From the chosen word at this layer down to the image tokens, half of each layer passed on as it is.",
    gradient: "Attention that would move the answer, carried through all layers.",
    received: "Within each tile: which patches the other patches of the tile look at, by the tower's own layers.",
    through: "Rollout from the last layer, through the decoder and on through the vision tower to its patches.",
    vision_gradient: "Attention that would move the answer, through the decoder and the vision tower.",
    tower: "Hover or tap a patch: where in its tile the vision tower has what it stands for from.",
  };

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  for (const picture of data.pictures) {
    picture.tokens = new Uint16Array(bytes(picture.tokens).buffer);
    for (const map of Object.values(picture.maps)) map.data = bytes(map.data);
  }

  // Dark violet over red to yellow, clear where nothing is: read on bright pictures and on dark ones.
  const STOPS = [[45, 15, 90, 0], [110, 25, 120, 110], [200, 50, 80, 160], [250, 130, 40, 190], [255, 235, 120, 205]];
  function colour(share) {
    const place = Math.sqrt(share) * (STOPS.length - 1), low = Math.min(Math.floor(place), STOPS.length - 2), part = place - low;
    return STOPS[low].map((v, i) => Math.round(v + (STOPS[low + 1][i] - v) * part));
  }
  const RAMP = Array.from({ length: 256 }, (_, i) => colour(i / 255));

  const beside = () => kind.value === "heads" ? Number(head.value) : word;
  function chosen(picture) {
    const map = picture.maps[kind.value];
    const [steps, others, rows, columns] = map.shape;
    if (kind.value === "tower") return { map, rows, columns, number: -1 };
    const number = Math.min(Number(layer.value), steps - 1) * others + Math.min(beside(), others - 1);
    return { map, rows, columns, number };
  }

  function percent(value) {
    return value >= 0.1 ? `${(100 * value).toFixed(0)} %` : value >= 0.001 ? `${(100 * value).toFixed(1)} %` : `${(100 * value).toPrecision(1)} %`;
  }

  function paint(figure, picture) {
    const canvas = figure.querySelector("canvas");
    const { map, rows, columns, number } = chosen(picture);
    if (kind.value === "tower") return paintTower(canvas, picture, map, rows);
    canvas.width = columns;
    canvas.height = rows;
    const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
    for (let i = 0; i < rows * columns; i += 1) image.data.set(RAMP[map.data[number * rows * columns + i]], 4 * i);
    context.putImageData(image, 0, 0);
  }

  function point(figure, picture) {
    const box = figure.querySelector(".spot"), [high, wide] = picture.cells;
    box.hidden = !spot || spot.picture !== picture;
    if (box.hidden) return;
    const places = { left: spot.column / wide, top: spot.row / high, width: 1 / wide, height: 1 / high };
    for (const [name, share] of Object.entries(places)) box.style[name] = `${100 * share}%`;
  }

  // A patch's own map stands in its tile; without a patch there is none.
  function paintTower(canvas, picture, map, side) {
    const [high, wide] = picture.cells, edge = Math.round(Math.sqrt(map.shape[1] / tiles(picture))), fine = side / edge;
    canvas.width = wide * fine;
    canvas.height = high * fine;
    if (!spot || spot.picture !== picture) return;
    const context = canvas.getContext("2d"), image = context.createImageData(side, side);
    const number = picture.tokens[spot.row * wide + spot.column] - Math.min(...picture.tokens);
    for (let i = 0; i < side * side; i += 1) image.data.set(RAMP[map.data[number * side * side + i]], 4 * i);
    const [left, top] = [spot.column, spot.row].map((place) => picture.tiled ? Math.floor(place / edge) * side : 0);
    context.putImageData(image, left, top);
  }

  const tiles = (picture) => {
    const [high, wide] = picture.cells, most = Math.max(...picture.tokens), least = Math.min(...picture.tokens);
    const counted = most - least + 1;
    return picture.tiled ? counted / (counted - high * wide) : 1;
  };

  function lensLayer(lens) {
    const wanted = ["received", "tower"].includes(kind.value) ? data.layers[data.layers.length - 1]
      : ["gradient", "through", "vision_gradient"].includes(kind.value) ? data.layers[data.layers.length - 1]
        : data.layers[Number(layer.value)];
    let best = 0;
    lens.layers.forEach((l, i) => { if (Math.abs(l - wanted) <= Math.abs(lens.layers[best] - wanted)) best = i; });
    return best;
  }

  const visible = (text) => text.trim() === "" ? JSON.stringify(text) : text.trim();
  function says(lens, token) {
    const step = lensLayer(lens);
    const parts = lens.ids[step][token].map((id, i) => `“${visible(data.vocabulary[id])}” ${lens.shares[step][token][i]} %`);
    return { layer: lens.layers[step], text: parts.join(", ") };
  }

  function element(name, text) {
    const made = document.createElement(name);
    made.textContent = text;
    return made;
  }

  function tell() {
    const line = at("patch");
    line.replaceChildren();
    if (!spot) {
      line.textContent = "Hover or tap the picture to see what a patch says; choose a word to see where it looks.";
      return;
    }
    const { picture, row, column } = spot;
    const [high, wide] = picture.cells;
    const { map, rows, columns, number } = chosen(picture);
    if (number >= 0) {
      let sum = 0;
      for (let r = Math.floor(row * rows / high); r < (row + 1) * rows / high; r += 1) {
        for (let c = Math.floor(column * columns / wide); c < (column + 1) * columns / wide; c += 1) sum += map.data[(number * rows + r) * columns + c];
      }
      const share = sum / 255 * map.most[number];
      const unit = kind.value.includes("gradient") ? `${share.toPrecision(2)} of ${map.sum[number].toPrecision(2)}` : percent(share);
      line.append(element("b", `row ${row + 1}, column ${column + 1}: ${unit}`), document.createElement("br"));
    } else {
      line.append(element("b", `row ${row + 1}, column ${column + 1}`), document.createElement("br"));
    }
    const tokens = [["the tile", picture.tokens[row * wide + column]], ["the whole view", picture.tokens[(high + row) * wide + column]]];
    for (const lens of data.lenses) {
      for (const [name, token] of picture.tiled ? tokens : tokens.slice(1)) {
        const { layer: read, text } = says(lens, token);
        line.append(document.createTextNode(`${lens.title}, layer ${read}, ${picture.tiled ? name + " " : ""}says ${text}`), document.createElement("br"));
      }
    }
  }

  function write(figure, picture) {
    const box = figure.querySelector(".labels"), [high, wide] = picture.cells;
    box.replaceChildren();
    if (!labels.checked || wide > 16) return;
    box.style.gridTemplate = `repeat(${high}, 1fr) / repeat(${wide}, 1fr)`;
    const lens = data.lenses[data.lenses.length - 1], step = lensLayer(lens);
    for (let i = 0; i < high * wide; i += 1) {
      box.append(element("span", visible(data.vocabulary[lens.ids[step][picture.tokens[i]][0]])));
    }
  }

  function draw() {
    const first = data.pictures[0], map = first.maps[kind.value], steps = map.shape[0];
    const still = steps === 1;
    layer.max = String(steps - 1);
    at("layer-label").hidden = still;
    at("head-label").hidden = kind.value !== "heads";
    at("layer-name").textContent = kind.value === "received" ? `${Number(layer.value) + 1} of the vision tower's ${steps}` : `${data.layers[Number(layer.value)]} of ${data.layers[data.layers.length - 1]}`;
    at("about").textContent = ABOUT[kind.value];
    const asks = !["heads", "received", "vision_gradient", "tower"].includes(kind.value);
    words.forEach((button) => {
      const number = Number(button.dataset.word), own = kind.value === "heads" ? answer : word;
      button.setAttribute("aria-pressed", String(asks ? number === word : kind.value === "heads" && number === own));
      button.disabled = !asks && number !== answer;
    });
    let sum = 0, most = 0;
    figures.forEach((figure, n) => {
      const picture = data.pictures[n];
      paint(figure, picture);
      point(figure, picture);
      write(figure, picture);
      const { map: own, number } = chosen(picture);
      if (number >= 0) { sum += own.sum[number]; most = Math.max(most, own.most[number]); }
    });
    const gradient = kind.value.includes("gradient");
    at("most").textContent = kind.value === "tower" ? "0 to the patch's largest share"
      : gradient ? `0 to ${most.toPrecision(2)}` : `0 to ${percent(most)} a cell; ${percent(sum)} goes to the picture${data.pictures.length > 1 ? "s" : ""}`;
    document.querySelectorAll(".layers .now").forEach((line) => line.remove());
    if (!still && kind.value !== "received") mark(data.layers[Number(layer.value)]);
    tell();
  }

  function mark(now) {
    document.querySelectorAll(".layers").forEach((drawing) => {
      const points = [...drawing.querySelectorAll("circle")].filter((c) => new RegExp(`layer ${now}:`).test(c.textContent));
      if (!points.length) return;
      const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
      line.setAttribute("class", "now");
      for (const name of ["x1", "x2"]) line.setAttribute(name, points[0].getAttribute("cx"));
      line.setAttribute("y1", "6");
      line.setAttribute("y2", "164");
      drawing.append(line);
    });
  }

  function place(figure, picture, event) {
    const box = figure.querySelector("canvas").getBoundingClientRect(), [high, wide] = picture.cells;
    const clamp = (v, n) => Math.max(0, Math.min(n - 1, Math.floor(v * n)));
    spot = { picture, row: clamp((event.clientY - box.top) / box.height, high), column: clamp((event.clientX - box.left) / box.width, wide) };
    draw();
  }

  const KEYS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  figures.forEach((figure, n) => {
    const picture = data.pictures[n], canvas = figure.querySelector("canvas");
    figure.querySelector("img").src = `data:image/jpeg;base64,${picture.jpeg}`;
    canvas.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") place(figure, picture, event); });
    canvas.addEventListener("pointerdown", (event) => place(figure, picture, event));
    canvas.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") { spot = null; draw(); } });
    canvas.addEventListener("keydown", (event) => {
      if (!KEYS[event.key]) return;
      event.preventDefault();
      const [high, wide] = picture.cells, old = spot && spot.picture === picture ? spot : { row: 0, column: 0 };
      const [down, right] = spot ? KEYS[event.key] : [0, 0];
      spot = { picture, row: Math.max(0, Math.min(high - 1, old.row + down)), column: Math.max(0, Math.min(wide - 1, old.column + right)) };
      draw();
    });
  });
  words.forEach((button) => {
    const number = Number(button.dataset.word);
    button.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse" && !button.disabled) { word = number; draw(); } });
    button.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") { word = held; draw(); } });
    button.addEventListener("focus", () => { if (!button.disabled) { word = held = number; draw(); } });
    button.addEventListener("click", () => { word = held = number; draw(); });
  });
  for (let i = 0; i < data.heads; i += 1) head.append(new Option(String(i + 1), String(i)));
  kind.addEventListener("change", () => { layer.max = "1000"; draw(); layer.value = layer.max; draw(); });
  for (const field of [head, labels]) field.addEventListener("change", draw);
  layer.addEventListener("input", draw);
  at("labels-label").hidden = data.pictures.every((picture) => picture.cells[1] > 16);
  const ramp = at("ramp").getContext("2d");
  for (let x = 0; x < 128; x += 1) {
    const [r, g, b, a] = RAMP[2 * x];
    ramp.fillStyle = `rgba(${r},${g},${b},${a / 255})`;
    ramp.fillRect(x, 0, 1, 8);
  }
  layer.max = String(data.layers.length - 1);
  layer.value = layer.max;
  draw();
})();
