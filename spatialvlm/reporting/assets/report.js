"use strict";
// The browser of questions. Everything that comes from data becomes text nodes and attributes, never markup.
(() => {
  const STEP = 24;
  const data = JSON.parse(document.getElementById("questions-data").textContent);
  const at = (id) => document.getElementById(id);
  const fields = ["view", "other", "task", "source", "options", "result", "search"].map((name) => at(`by-${name}`));
  const [view, other, task, source, options, result, search] = fields;
  const pictures = JSON.parse(document.getElementById("pictures-data").textContent);
  let shown = STEP;

  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function fill(select, values, first) {
    if (first !== undefined) select.append(new Option(first, ""));
    values.forEach(([value, label]) => select.append(new Option(label, value)));
  }

  const distinct = (key) => [...new Set(data.rows.map(key))].map((v) => [String(v), String(v)]);
  // An answer is [choice, gold, probabilities or null, raw output or null], or null where it was not asked.
  const answer = (row, index) => (index === "" ? null : row.r[Number(index)]);
  const right = (given) => given !== null && given[0] === given[1];

  function results() {
    const kept = result.value;
    result.replaceChildren();
    fill(result, [["right", "right"], ["wrong", "wrong"], ["none", "no answer"]], "all");
    if (other.value !== "" && other.value !== view.value) {
      fill(result, [["changed", "changed"], ["gained", "right now, wrong there"], ["lost", "wrong now, right there"]]);
    }
    result.value = [...result.options].some((o) => o.value === kept) ? kept : "";
  }

  function fits(row) {
    const now = answer(row, view.value), there = answer(row, other.value);
    if (now === null) return false;
    if (task.value && row.t !== task.value) return false;
    if (source.value && row.s !== source.value) return false;
    if (options.value && String(row.c.length) !== options.value) return false;
    const words = search.value.trim().toLowerCase();
    if (words && !`${row.i} ${row.q} ${row.c.join(" ")} ${row.f}`.toLowerCase().includes(words)) return false;
    switch (result.value) {
      case "right": return right(now);
      case "wrong": return !right(now);
      case "none": return now[0] === "";
      case "changed": return there !== null && now[0] !== there[0];
      case "gained": return there !== null && right(now) && !right(there);
      case "lost": return there !== null && !right(now) && right(there);
      default: return true;
    }
  }

  function option(text, letter, given, k) {
    const gold = letter === given[1], chosen = letter === given[0];
    const line = element("div", `option${gold ? " gold" : ""}${chosen && !gold ? " miss" : ""}`);
    const share = given[2] ? given[2][k] : null;
    if (share !== null) {
      const bar = element("span", "fill");
      bar.style.width = `${100 * share}%`;
      line.append(bar);
    }
    const mark = element("span", "mark", gold ? "✓" : chosen ? "✗" : "");
    if (gold || chosen) {
      mark.setAttribute("role", "img");
      mark.setAttribute("aria-label", gold ? (chosen ? "right, chosen" : "right, not chosen") : "chosen, wrong");
    }
    const words = element("span", "", text);
    if (chosen) words.append(element("span", "muted", " — chosen"));
    line.append(mark, element("span", "", letter), words);
    line.append(element("span", "share", share === null ? "" : `${(100 * share).toFixed(1)} %`));
    return line;
  }

  function card(row) {
    const given = answer(row, view.value), there = answer(row, other.value);
    const made = element("article", "card");
    const about = element("div", "about");
    about.append(element("b", right(given) ? "good" : given[0] === "" ? "alarm" : "bad",
      right(given) ? "right" : given[0] === "" ? "no answer" : "wrong"));
    about.append(element("span", "", `${row.t} · ${row.d || row.s} · ${row.i}`));
    made.append(about);
    const place = pictures.of[row.i];
    if (place !== undefined) {
      const picture = element("img");
      picture.src = `data:image/jpeg;base64,${pictures.jpeg[place]}`;
      picture.alt = `Picture of question ${row.i}`;
      picture.loading = "lazy";
      made.append(picture);
    } else {
      made.append(element("div", "nopicture", row.f ? `picture not embedded: ${row.f}` : "picture not embedded"));
    }
    made.append(element("p", "asked", row.q));
    const list = element("div", "list");
    row.c.forEach((text, k) => list.append(option(text, String.fromCharCode(65 + k), given, k)));
    made.append(list);
    if (given[3] !== null) made.append(element("p", "raw", given[3] === "" ? "said nothing" : `said: ${given[3]}`));
    if (there !== null && other.value !== view.value) {
      const label = data.views[Number(other.value)];
      const verdict = right(there) ? "right" : there[0] === "" ? "no answer" : "wrong";
      made.append(element("p", "other", `${label}: ${there[0] || "–"} (${verdict})`));
    }
    if (row.p) {
      const link = element("a", "other", "look inside");
      link.href = row.p;
      made.append(link);
    } else if (data.explain) {
      const hint = element("details", "other");
      hint.append(element("summary", "", "look inside"), element("code", "", `${data.explain}${row.i}`));
      made.append(hint);
    }
    return made;
  }

  function draw() {
    const found = data.rows.filter(fits);
    const good = found.filter((row) => right(answer(row, view.value))).length;
    const share = found.length ? `, ${(100 * good / found.length).toFixed(1)} % right` : "";
    at("count").textContent = `${found.length} of ${data.rows.length} questions${share}`;
    at("cards").replaceChildren(...found.slice(0, shown).map(card));
    at("more").hidden = found.length <= shown;
  }

  fill(view, data.views.map((name, i) => [String(i), name]));
  fill(other, data.views.map((name, i) => [String(i), name]), "nothing");
  fill(task, distinct((r) => r.t), "all");
  fill(source, distinct((r) => r.s), "all");
  fill(options, distinct((r) => r.c.length).sort(), "all");
  view.value = String(data.first);
  other.value = data.second === null ? "" : String(data.second);
  results();
  result.value = data.result;
  other.closest("label").hidden = data.views.length < 2;
  for (const field of fields) {
    field.addEventListener(field === search ? "input" : "change", () => {
      shown = STEP;
      results();
      draw();
    });
  }
  at("more").addEventListener("click", () => {
    const next = at("cards").children.length;
    shown += STEP;
    draw();
    at("cards").children[next]?.scrollIntoView({ block: "nearest" });
  });
  draw();
})();
