// report.html: the head, the timeline, the list and the player of one job.
(() => {
  const job = page.data();
  const rows = job.rows.map((values, place) => {
    const row = { place };
    job.columns.forEach((name, column) => { row[name] = values[column]; });
    row.ok = row.status === "ok";
    row.sound = row.ok && row.file !== null && row.file.endsWith(".wav");
    row.over = row.overrun > 0;
    row.folded = `${row.index} ${row.text} ${row.code ?? ""}`.toLowerCase();
    return row;
  });
  const { find, make, said } = page;
  const shapes = {
    play: "M3 1.5v11l9.5-5.5z", pause: "M2.5 1.5h3v11h-3zM8.5 1.5h3v11h-3z", next: "M2 1.5v11l7-5.5zM9.5 1.5h2.5v11H9.5z",
    before: "M12 1.5v11L5 7zM2 1.5h2.5v11H2z", again: "M13.5 8A5.5 5.5 0 1 1 11 3.4M13.6 1v3.6H10",
  };
  const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  const chosen = { kind: "all", voices: new Set(), words: "", row: null, redo: new Set(), newSeed: true };
  const audio = new Audio();
  audio.preload = "none";
  let through = false; // whether the next one follows by itself
  let shown = rows;

  function icon(name, box = 14) {
    return make("svg", { viewBox: `0 0 ${box} ${box}`, "aria-hidden": "true" }, make("path", { d: shapes[name] }));
  }

  function paint(element, speaker) {
    element.style.background = colour(speaker);
    return element;
  }

  // Neighbours in the list of speakers differ the most: steps of the golden ratio around the circle of hues, but for
  // reds and oranges, which mean that something is wrong.
  function colour(speaker, dark = isDark()) {
    const hue = Math.round(72 + 255 * ((0.62 + speaker * 0.618034) % 1));
    return `hsl(${hue} ${dark ? "62% 68%" : "56% 46%"})`;
  }

  function isDark() {
    return !document.documentElement.classList.contains("paper") && matchMedia("(prefers-color-scheme: dark)").matches;
  }

  function tell(text) {
    find("told").textContent = text;
  }

  // --- the head -------------------------------------------------------------------------------------------

  const KINDS = {
    all: ["All", () => true],
    ok: ["Spoken", (row) => row.ok],
    over: ["Beyond slot", (row) => row.over],
    failed: ["Failed", (row) => row.status === "failed"],
    skipped: ["Skipped", (row) => row.status === "skipped"],
    cancelled: ["Cancelled", (row) => row.status === "cancelled"],
    waiting: ["Waiting", (row) => row.status === "waiting"],
    redo: ["To redo", (row) => chosen.redo.has(row)],
  };
  const TONES = { done: "good", partial: "warn", failed: "bad", cancelled: "warn", running: "live" };

  function showHead() {
    const { counts } = job;
    find("name").textContent = job.job_id;
    find("status").textContent = job.status === "running" ? "in progress" : job.status;
    find("status").classList.add(TONES[job.status] ?? "live");
    if (job.status === "running") {
      find("early").hidden = false;
      find("early").textContent = `The job is not over: this is how it stood at ${page.moment(job.written_at)}. The page is ` +
        "written again when it is.";
    }
    const overruns = rows.filter((row) => row.over);
    const beyond = overruns.reduce((sum, row) => sum + row.overrun, 0);
    const others = [["failed", "failed"], ["skipped", "skipped"], ["cancelled", "cancelled"]].filter(([key]) => counts[key]);
    fact("Segments", `${counts.ok.toLocaleString("en")} of ${counts.total.toLocaleString("en")}`,
      others.map(([key, word]) => make("span", { class: key === "failed" ? "bad" : null, text: ` ${counts[key]} ${word}` })));
    if (counts.cached) fact("From before", counts.cached.toLocaleString("en"));
    fact("Voices", String(job.speakers.length), job.language);
    fact("Audio", page.duration(job.audio_s));
    if (overruns.length) fact("Beyond their slots", String(overruns.length), `${page.duration(beyond)} in all`);
    fact("Time", page.duration(job.wall_s), page.isNumber(job.xrt) && !counts.cached ? `${job.xrt.toLocaleString("en")} xRT` : "");
    if (job.engine) fact("Engine", job.engine.name, job.engine.model);
    fact(job.ended_at === null ? "Taken" : "Ended", page.moment(job.ended_at ?? job.received_at));
    if (job.ignored.length) {
      const ignored = find("ignored");
      ignored.hidden = false;
      ignored.querySelector("summary").textContent = `${page.count(job.ignored.length, "thing")} that the job says and that had no effect`;
      ignored.querySelector("ul").append(...job.ignored.map((text) => make("li", {}, said(text))));
    }
  }

  function fact(name, value, small) {
    const details = Array.isArray(small) ? small : [small ?? ""].filter(Boolean).map((text) => said(text));
    const more = details.length ? make("small", {}, " ", ...details) : null;
    find("facts").append(make("div", {}, make("dt", { text: name }), make("dd", {}, value, more)));
  }

  // --- filters --------------------------------------------------------------------------------------------

  const kindButtons = new Map();
  const voiceButtons = [];

  function showFilters() {
    for (const [kind, [name, fits]] of Object.entries(KINDS)) {
      const count = rows.filter(fits).length;
      if (!count && !["all", "ok", "over", "failed", "redo"].includes(kind)) continue;
      const button = make("button", { type: "button", "data-kind": kind, on: { click: () => { chosen.kind = kind; filter(); } } },
        name, make("b", { text: count.toLocaleString("en") }));
      kindButtons.set(kind, button);
      find("kinds").append(button);
    }
    const counts = job.speakers.map(() => 0);
    for (const row of rows) counts[row.speaker] += 1;
    job.speakers.forEach((name, speaker) => {
      const button = make("button", { type: "button", title: name, on: { click: () => pickVoice(speaker) } },
        paint(make("i", { class: "dot" }), speaker), said(name), make("span", { text: counts[speaker].toLocaleString("en") }));
      voiceButtons.push(button);
    });
    find("voices").append(...voiceButtons);
    find("voices").hidden = job.speakers.length < 2;
    find("find").addEventListener("input", (event) => { chosen.words = event.target.value.trim().toLowerCase(); filter(); });
    find("play-all").addEventListener("click", playThrough);
  }

  function pickVoice(speaker) {
    if (!chosen.voices.delete(speaker)) chosen.voices.add(speaker);
    filter();
  }

  function filter() {
    const [, fits] = KINDS[chosen.kind];
    shown = rows.filter((row) => fits(row) && (!chosen.voices.size || chosen.voices.has(row.speaker)) &&
      (!chosen.words || row.folded.includes(chosen.words)));
    for (const [kind, button] of kindButtons) button.setAttribute("aria-pressed", String(kind === chosen.kind));
    voiceButtons.forEach((button, speaker) => button.setAttribute("aria-pressed", String(chosen.voices.has(speaker))));
    find("voices").classList.toggle("some", chosen.voices.size > 0);
    find("nothing").hidden = shown.length > 0;
    find("list").hidden = shown.length === 0;
    shown.forEach((row, line) => { row.line = line; });
    const kept = new Set(shown);
    for (const row of rows) if (!kept.has(row)) row.line = -1;
    find("list").setAttribute("aria-rowcount", String(shown.length));
    clearList();
    layOut();
    drawTimeline();
    showPlaying();
    tell(page.count(shown.length, "segment"));
  }

  // --- the list: only the rows that can be seen exist ------------------------------------------------------

  const list = find("list");
  const made = new Map(); // line -> element
  let rowHeight = 74;
  let printing = false;

  function layOut() {
    rowHeight = parseFloat(getComputedStyle(list).getPropertyValue("--row")) || 74;
    list.style.height = `${shown.length * rowHeight}px`;
    drawList();
  }

  function clearList() {
    list.replaceChildren();
    made.clear();
  }

  function drawList() {
    const top = -list.getBoundingClientRect().top;
    const first = printing ? 0 : Math.max(0, Math.floor(top / rowHeight) - 6);
    const last = printing ? shown.length : Math.min(shown.length, Math.ceil((top + innerHeight) / rowHeight) + 6);
    for (const [line, element] of made) {
      if ((line < first || line >= last) && !element.contains(document.activeElement)) {
        element.remove();
        made.delete(line);
      }
    }
    let before = null;
    for (let line = first; line < last; line += 1) {
      let element = made.get(line);
      if (!element) {
        element = makeRow(shown[line], line);
        made.set(line, element);
        // In the order of the list, which is the order in which it is read aloud.
        if (before) before.after(element);
        else list.prepend(element);
      }
      before = element;
    }
  }

  function makeRow(row, line) {
    const speaker = job.speakers[row.speaker];
    const name = `${row.index}, ${speaker}`;
    const element = make("div", {
      class: "row", role: "row", "aria-rowindex": line + 1, "data-index": row.index, tabindex: row === (chosen.row ?? shown[0]) ? 0 : -1,
      "aria-selected": String(row === chosen.row), on: { click: (event) => { if (!event.target.closest("button, .wave")) select(row); } },
    });
    element.style.top = `${line * rowHeight}px`;
    const at = row.start === null ? "" : page.clock(row.start);
    element.append(
      cell(make("button", { type: "button", class: "play", disabled: !row.sound, "aria-label": `Play ${name}`,
        on: { click: () => { select(row, false); toggle(row); } } }, icon("play"))),
      cell(make("div", { class: "where" }, make("b", { text: `#${row.index}` }), at)),
      cell(make("div", { class: "who" }, paint(make("i", { class: "dot" }), row.speaker), said(speaker, { title: speaker }))),
      cell(wave(row)),
      cell(words(row)),
      cell(fit(row)),
      cell(how(row)),
      cell(make("button", { type: "button", class: "mark", "aria-pressed": String(chosen.redo.has(row)), title: "Collect to redo (r)",
        "aria-label": `Redo ${name}`, on: { click: () => { select(row, false); mark(row); } } }, icon("again", 16))),
    );
    return element;
  }

  // The cells are the row's own boxes, so that the row can lay them out.
  function cell(element) {
    if (element.tagName === "BUTTON" || element.tagName === "svg") {
      return make("div", { role: "gridcell", class: `for-${element.getAttribute("class")}` }, element);
    }
    element.setAttribute("role", "gridcell");
    return element;
  }

  function words(row) {
    const box = make("div", { class: "words" }, make("p", { dir: "auto", lang: job.language, text: row.text || "\u2013" }));
    if (row.status === "failed") {
      box.classList.add("with-why");
      box.append(make("p", { class: "why", text: `${row.code}: ${row.message}`, title: job.advice[row.code] ?? "" }));
    }
    return box;
  }

  function fit(row) {
    if (!row.ok) return make("div", { class: "fit" }, make("span", { class: `pill ${row.status === "failed" ? "bad" : ""}`, text: row.status }));
    const box = make("div", { class: "fit" });
    if (row.duration === null) return box;
    box.append(make("b", { text: row.duration.toFixed(2) }), row.slot === null ? " s" : ` / ${row.slot.toFixed(2)} s`);
    if (row.over) {
      box.classList.add("over");
      box.append(make("span", { class: "plus", text: ` +${row.overrun.toFixed(2)}` }));
    }
    if (row.slot !== null) {
      const gauge = make("div", { class: "gauge" }, make("i"), row.over ? make("i", { class: "beyond" }) : null);
      const whole = Math.max(row.slot, row.duration) || 1;
      gauge.firstChild.style.width = `${100 * Math.min(row.slot, row.duration) / whole}%`;
      if (row.over) gauge.lastChild.style.width = `${100 * row.overrun / whole}%`;
      box.append(gauge);
    }
    return box;
  }

  function how(row) {
    const box = make("div", { class: "made" });
    if (row.history) box.append(make("span", { class: "pill live", text: `take ${row.history.length + 1}` }), " ");
    if (row.truncated) box.append(make("span", { class: "pill warn", text: "cut off" }), " ");
    if (row.finishing?.speed > 1) box.append(make("span", { class: "pill", text: `\u00d7${row.finishing.speed.toFixed(2)}`, title: "sped up" }), " ");
    if (row.cached) box.append(make("span", { class: "pill", text: "from before" }));
    else if (row.attempts) box.append(page.count(row.attempts, "try", "tries"));
    if (row.seed !== null) box.append(make("div", { text: `seed ${row.seed}`, title: `seed ${row.seed}` }));
    return box;
  }

  function signed(number) {
    return `${number < 0 ? "\u2212" : "+"}${Math.abs(number).toFixed(1)}`;
  }

  // What was done to the recording after it was spoken, in a few words each.
  function finishing(told) {
    if (!told) return [];
    const trimmed = (told.trimmed_start_s ?? 0) + (told.trimmed_end_s ?? 0);
    const short = told.limited_by_peak ? ", held back by its peaks" : "";
    return [
      trimmed > 0 ? `${trimmed.toFixed(2)} s of silence trimmed` : null,
      told.speed > 1 ? `sped up \u00d7${told.speed.toFixed(2)} from ${told.spoken_s.toFixed(2)} s` : null,
      typeof told.loudness_lufs === "number" ? `${signed(told.loudness_lufs)} LUFS (${signed(told.gain_db)} dB${short})` : null,
    ].filter((one) => one !== null);
  }

  // --- waveforms ------------------------------------------------------------------------------------------

  function wave(row) {
    const svg = make("svg", { class: "wave", viewBox: "0 0 128 40", preserveAspectRatio: "none", "aria-hidden": "true" });
    if (!row.sound) return svg;
    svg.append(make("path", { d: bars(row, 0, 1) }), make("path", { class: "heard" }));
    svg.addEventListener("click", (event) => {
      const box = svg.getBoundingClientRect();
      select(row, false);
      play(row, (event.clientX - box.left) / box.width);
    });
    return svg;
  }

  // The bars of a row's outline from one share of it to another, as an SVG path. The text holds one digit a bar.
  function bars(row, from, to) {
    const outline = row.peaks ?? "A";
    const step = 128 / outline.length;
    let path = "";
    for (let bar = Math.round(from * outline.length); bar < Math.round(to * outline.length); bar += 1) {
      const half = 0.6 + 18.4 * (Math.max(0, DIGITS.indexOf(outline[bar])) / 63) ** 1.6;
      path += `M${((bar + 0.5) * step).toFixed(1)} ${(20 - half).toFixed(1)}v${(2 * half).toFixed(1)}`;
    }
    return path;
  }

  // --- choosing -------------------------------------------------------------------------------------------

  function select(row, focus = true) {
    const before = chosen.row;
    chosen.row = row;
    if (before && before.line >= 0) refresh(before);
    if (row.line < 0) return;
    bringIntoView(row);
    drawList();
    refresh(row);
    if (focus) made.get(row.line)?.focus({ preventScroll: true });
    showNow();
  }

  function refresh(row) {
    const element = made.get(row.line);
    if (!element) return;
    const focused = element.contains(document.activeElement) ? document.activeElement.className : null;
    const fresh = makeRow(row, row.line);
    element.replaceWith(fresh);
    made.set(row.line, fresh);
    if (focused !== null) (fresh.querySelector(`button.${focused.split(" ")[0]}`) ?? fresh).focus({ preventScroll: true });
    showPlaying();
  }

  function bringIntoView(row) {
    const top = list.getBoundingClientRect().top + row.line * rowHeight;
    const over = find("tools").getBoundingClientRect();
    const upper = Math.max(over.top === 0 ? over.bottom : 0, 0) + 8;
    const lower = innerHeight - find("bar").offsetHeight - 8;
    if (top < upper) scrollBy({ top: top - upper });
    else if (top + rowHeight > lower) scrollBy({ top: top + rowHeight - lower });
  }

  function step(by) {
    if (!shown.length) return null;
    const line = chosen.row && chosen.row.line >= 0 ? chosen.row.line + by : by > 0 ? 0 : shown.length - 1;
    const row = shown[Math.max(0, Math.min(shown.length - 1, line))];
    select(row);
    return row;
  }

  // The next row in a direction that can be heard, after the chosen one.
  function nextSound(by) {
    const from = chosen.row && chosen.row.line >= 0 ? chosen.row.line : by > 0 ? -1 : shown.length;
    for (let line = from + by; line >= 0 && line < shown.length; line += by) if (shown[line].sound) return shown[line];
    return null;
  }

  // --- playing --------------------------------------------------------------------------------------------

  let playing = null;

  function play(row, share = 0) {
    if (!row.sound) return;
    if (playing !== row) {
      const before = playing;
      playing = row;
      audio.src = encodeURIComponent(row.file);
      if (before) refresh(before);
    }
    const seek = () => { audio.currentTime = share * (row.duration ?? 0); };
    if (share && audio.readyState > 0) seek();
    else if (share) audio.addEventListener("loadedmetadata", seek, { once: true });
    audio.play().then(() => tell(`Playing ${row.index}, ${job.speakers[row.speaker]}`), (error) => {
      // Another one was chosen before this one began.
      if (error.name !== "AbortError" && playing === row) failToPlay(row);
    });
    showPlaying();
    showNow();
  }

  function failToPlay(row) {
    through = false;
    find("now").querySelector(".now-facts")?.append(make("span", { class: "bad", text: `${row.file} can't be played: it is not beside this page, or this browser does not know its format.` }));
    showPlaying();
  }

  function toggle(row) {
    if (row && row !== playing) {
      through = false;
      play(row);
    } else if (playing && audio.paused) audio.play().catch(() => failToPlay(playing));
    else audio.pause();
  }

  function playThrough() {
    if (through && playing && !audio.paused) {
      audio.pause();
      through = false;
      showPlaying();
      return;
    }
    const from = chosen.row && chosen.row.line >= 0 && chosen.row.sound ? chosen.row : nextSound(1) ?? shown.find((row) => row.sound);
    if (!from) return;
    through = true;
    select(from, false);
    if (playing === from && audio.paused && !audio.ended) audio.play().catch(() => failToPlay(from));
    else play(from);
  }

  function go(by) {
    const row = nextSound(by);
    if (!row) return;
    select(row);
    play(row);
  }

  audio.addEventListener("ended", () => {
    showPlaying();
    if (!through || !playing) return;
    if (chosen.row !== playing && playing.line >= 0) select(playing, false);
    const next = playing.line >= 0 ? shown.slice(playing.line + 1).find((row) => row.sound) : null;
    if (!next) { through = false; showPlaying(); return; }
    select(next, false);
    play(next);
  });
  for (const event of ["play", "pause", "seeked", "timeupdate"]) audio.addEventListener(event, () => { showPlaying(); });

  // A browser tells the time four times a second; a cursor has to move more often.
  let ticking = false;
  audio.addEventListener("play", () => {
    if (ticking) return;
    ticking = true;
    const tick = () => {
      showPlaying();
      if (audio.paused) ticking = false;
      else requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  });

  function heard() {
    return playing && playing.duration ? Math.min(1, audio.currentTime / playing.duration) : 0;
  }

  function showPlaying() {
    const on = playing !== null && !audio.paused;
    for (const element of document.querySelectorAll(".play.on")) {
      if (element.closest(".row")?.dataset.index !== String(playing?.index)) setPlay(element, false, "Play");
    }
    const element = playing && made.get(playing.line);
    if (element) {
      setPlay(element.querySelector(".play"), on, on ? "Pause" : "Play");
      element.querySelector("path.heard")?.setAttribute("d", bars(playing, 0, heard()));
    }
    const now = find("now");
    if (chosen.row && chosen.row === playing) {
      const button = now.querySelector(".play.main");
      if (button) setPlay(button, on, on ? "Pause" : "Play");
      now.querySelector("path.heard")?.setAttribute("d", bars(playing, 0, heard()));
      const time = now.querySelector(".time");
      if (time) time.textContent = page.clock(audio.currentTime, 2);
    }
    const all = find("play-all");
    const label = through && on ? "Pause" : "Play through";
    if (all.dataset.label !== label) {
      all.dataset.label = label;
      all.replaceChildren(icon(through && on ? "pause" : "play"), label);
    }
    all.disabled = !shown.some((row) => row.sound);
    moveCursor();
  }

  function setPlay(button, on, verb) {
    if (button.dataset.on === String(on)) return;
    button.dataset.on = String(on);
    button.classList.toggle("on", on);
    button.replaceChildren(icon(on ? "pause" : "play"));
    button.setAttribute("aria-label", button.getAttribute("aria-label").replace(/^\w+/, verb));
  }

  // --- the bar: the chosen segment, and what is to be redone -----------------------------------------------

  function showNow() {
    const row = chosen.row;
    find("bar").hidden = !row && !chosen.redo.size;
    find("now").hidden = !row;
    if (!row) return;
    const name = `${row.index}, ${job.speakers[row.speaker]}`;
    const button = (shape, label, by) => make("button", { type: "button", class: "play step", "aria-label": label, disabled: !nextSound(by),
      on: { click: () => go(by) } }, icon(shape));
    const facts = [
      `#${row.index}`, said(job.speakers[row.speaker]),
      row.start === null ? null : `${page.clock(row.start)}${row.slot === null ? "" : ` to ${page.clock(row.start + row.slot)}`}`,
      row.duration === null ? null : `${row.duration.toFixed(2)} s spoken`,
      row.over ? `${row.overrun.toFixed(2)} s beyond its slot` : null,
      row.seeds ? `seeds ${row.seeds.join(", ")}` : row.seed === null ? null : `seed ${row.seed}`,
      row.attempts ? page.count(row.attempts, "try", "tries") : null,
      row.truncated ? "cut off at max_new_tokens" : null,
      ...finishing(row.finishing),
      row.device ? `${row.device}, ${page.duration(row.generate)}` : null,
      ...(row.flaws ?? []).map((flaw) => said(flaw)),
    ].filter((one) => one !== null);
    const text = make("div", {},
      make("p", { class: "now-text", dir: "auto", lang: job.language, text: row.text, tabindex: 0 }),
      make("p", { class: "now-facts" }, ...facts.map((one) => make("span", {}, one))));
    if (row.status === "failed") {
      text.append(make("p", { class: "now-why", text: `${row.code}: ${row.message}.`.replace(/([.!?])\.$/, "$1") }, make("br"), job.advice[row.code] ?? ""));
    }
    if (row.history) text.append(takes(row));
    find("now").replaceChildren(
      make("div", { class: "player" }, button("before", "Play the one before", -1),
        make("button", { type: "button", class: "play main", "aria-label": `Play ${name}`, disabled: !row.sound,
          on: { click: () => toggle(row) } }, icon("play")),
        button("next", "Play the one after", 1)),
      text,
      make("div", { class: "now-wave", hidden: !row.sound }, wave(row),
        make("p", {}, make("span", { class: "time", text: page.clock(0, 2) }), make("span", { text: page.clock(row.duration, 2) }))));
    showPlaying();
  }

  function takes(row) {
    return make("div", { class: "takes" }, ...row.history.map((take, number) => {
      const label = `Take ${number + 1}: ${take.status === "ok" ? page.duration(take.duration_s) : take.status}, seed ${take.seed ?? "\u2013"}`;
      return make("button", { type: "button", class: "tiny", disabled: !take.file, text: label, on: { click: () => playTake(row, take) } });
    }));
  }

  function playTake(row, take) {
    const before = playing;
    playing = null;
    through = false;
    audio.src = take.file.split("/").map(encodeURIComponent).join("/");
    audio.play().catch(() => failToPlay({ file: take.file }));
    if (before) refresh(before);
  }

  function mark(row) {
    if (!chosen.redo.delete(row)) chosen.redo.add(row);
    afterMark();
    copy();
  }

  function afterMark() {
    const count = kindButtons.get("redo")?.querySelector("b");
    if (count) count.textContent = chosen.redo.size.toLocaleString("en");
    if (chosen.kind === "redo") filter();
    else for (const line of [...made.keys()]) made.get(line).querySelector(".mark").setAttribute("aria-pressed", String(chosen.redo.has(shown[line])));
    showRedo();
  }

  function showRedo() {
    const bar = find("redo");
    const wasThere = !bar.hidden;
    bar.hidden = !chosen.redo.size;
    showNow();
    find("bar").hidden = !chosen.row && !chosen.redo.size;
    if (bar.hidden) return;
    const count = page.count(chosen.redo.size, "segment");
    if (!wasThere) {
      bar.replaceChildren(make("b"), make("code", { id: "command", tabindex: 0 }),
        make("div", { class: "acts" },
          make("label", {}, make("input", { type: "checkbox", id: "new-seed", checked: true, on: { change: (event) => {
            chosen.newSeed = event.target.checked;
            showRedo();
            copy();
          } } }), "new seed"),
          make("button", { type: "button", class: "tiny strong", text: "Copy", on: { click: copy } }),
          make("button", { type: "button", class: "tiny", text: "Clear", on: { click: () => { chosen.redo.clear(); afterMark(); } } })));
    }
    bar.firstChild.textContent = `${count} to redo`;
    find("command").textContent = command();
  }

  function command() {
    const numbers = [...chosen.redo].map((row) => row.index).sort((one, other) => one - other);
    const ranges = [];
    for (const number of numbers) {
      const last = ranges.at(-1);
      if (last && last[1] === number - 1) last[1] = number;
      else ranges.push([number, number]);
    }
    const segments = ranges.map(([first, last]) => first === last ? `${first}` : `${first}-${last}`).join(",");
    return `dubd redo ${quoted(job.job_id)} --segments ${segments}${chosen.newSeed ? " --seed new" : ""}`;
  }

  // A job_id as one word for a shell.
  function quoted(text) {
    return /^[A-Za-z0-9_][A-Za-z0-9_.,+@%-]*$/.test(text) ? text : `${text.startsWith("-") ? "-- " : ""}'${text.replaceAll("'", "'\\''")}'`;
  }

  function copy() {
    if (!chosen.redo.size) { tell("Nothing is left to redo"); return; }
    const text = command();
    const done = () => tell(`${page.count(chosen.redo.size, "segment")} to redo; the command is copied`);
    const byHand = () => {
      // Where the clipboard is closed to pages: select the command, and let the browser copy what is selected.
      const selection = getSelection();
      selection.selectAllChildren(find("command"));
      if (document.execCommand("copy")) done();
      else tell("The command is selected; copy it");
      selection.removeAllRanges();
    };
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, byHand);
    else byHand();
  }

  // --- the timeline ---------------------------------------------------------------------------------------

  const LANE = 26;
  const AXIS = 26;
  const onClock = rows.some((row) => row.start !== null);
  let length = 1;
  let zoom = 1;
  let cursor = null;

  function placeOnTimeline() {
    // Lines without times are laid one after another, so that they can be found there too.
    let at = 0;
    for (const row of rows) {
      row.from = onClock ? row.start : at;
      const spoken = row.duration ?? 0;
      if (!onClock) at += (spoken || 1) + 0.15;
      if (row.from !== null) length = Math.max(length, row.from + Math.max(row.slot ?? 0, spoken));
    }
    if (!onClock) find("film-title").textContent = "Timeline (the job gives no times: laid end to end)";
    find("lanes").append(...job.speakers.map((name) => make("li", { title: name }, said(name))));
    find("canvas").setAttribute("aria-label", `Timeline of ${page.count(rows.length, "segment")} of ${page.count(job.speakers.length, "speaker")} ` +
      `over ${page.duration(length)}; the list below says the same.`);
  }

  function drawTimeline() {
    const strip = find("strip");
    const canvas = find("canvas");
    const wide = strip.clientWidth;
    const high = AXIS + job.speakers.length * LANE + 8;
    const ratio = Math.min(devicePixelRatio || 1, 3);
    find("strip-width").style.width = `${wide * zoom}px`;
    if (canvas.width !== Math.round(wide * ratio) || canvas.height !== Math.round(high * ratio)) {
      canvas.width = Math.round(wide * ratio);
      canvas.height = Math.round(high * ratio);
      canvas.style.width = `${wide}px`;
      canvas.style.height = `${high}px`;
    }
    const style = getComputedStyle(document.documentElement);
    const ink = (name) => style.getPropertyValue(`--${name}`).trim();
    const [line, muted, bad, warn] = ["line", "muted", "bad", "warn"].map(ink);
    const dark = isDark();
    const brush = canvas.getContext("2d");
    brush.setTransform(ratio, 0, 0, ratio, 0, 0);
    brush.clearRect(0, 0, wide, high);
    const left = strip.scrollLeft;
    const scale = (wide * zoom - 16) / length;
    const x = (seconds) => 8 + seconds * scale - left;

    brush.font = "11px system-ui, sans-serif";
    brush.textBaseline = "middle";
    const tick = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200].find((one) => one * scale > 74) ?? 14400;
    for (let second = Math.max(0, Math.floor((left - 80) / scale / tick) * tick); second <= length && x(second) < wide; second += tick) {
      const at = Math.round(x(second)) + 0.5;
      brush.fillStyle = line;
      brush.fillRect(at, AXIS - 5, 1, high);
      brush.fillStyle = muted;
      brush.textAlign = "left";
      const label = page.clock(second, tick < 1 ? 1 : 0);
      if (at + 3 + brush.measureText(label).width <= wide) brush.fillText(label, at + 3, 13);
    }
    const isKept = (row) => row.line >= 0;
    for (const row of rows) {
      if (row.from === null) continue;
      const spoken = row.duration ?? 0;
      const [from, whole] = [x(row.from), Math.max(row.slot ?? 0, spoken) * scale];
      if (from > wide || from + Math.max(whole, 2) < 0) continue;
      const top = AXIS + row.speaker * LANE + 5;
      brush.globalAlpha = isKept(row) ? 1 : 0.18;
      if (row.slot !== null && row.slot * scale > 3) {
        brush.strokeStyle = row.status === "failed" ? bad : muted;
        brush.globalAlpha *= 0.6;
        box(brush, from + 0.5, top + 0.5, Math.max(1, row.slot * scale - 1), LANE - 11, 4);
        brush.stroke();
        brush.globalAlpha = isKept(row) ? 1 : 0.18;
      }
      if (row.status === "failed") {
        brush.fillStyle = bad;
        box(brush, from, top, Math.max(2, (row.slot ?? 1) * scale), LANE - 10, 4);
        brush.globalAlpha *= 0.55;
        brush.fill();
      } else if (spoken) {
        const inside = row.over && row.slot !== null ? row.slot : spoken;
        brush.fillStyle = colour(row.speaker, dark);
        box(brush, from, top, Math.max(1.5, inside * scale), LANE - 10, 4);
        brush.fill();
        if (row.over) {
          brush.fillStyle = warn;
          box(brush, from + inside * scale, top - 2, Math.max(2, row.overrun * scale), LANE - 6, 2);
          brush.fill();
        }
      }
      if (row === chosen.row) {
        brush.globalAlpha = 1;
        brush.strokeStyle = ink("ink");
        brush.lineWidth = 2;
        box(brush, from - 2, top - 3, Math.max(4, whole) + 4, LANE - 4, 5);
        brush.stroke();
        brush.lineWidth = 1;
      }
    }
    brush.globalAlpha = 1;
    if (cursor !== null) {
      brush.fillStyle = ink("ink");
      brush.fillRect(Math.round(x(cursor)), AXIS - 8, 1.5, high);
    }
  }

  function box(brush, left, top, wide, high, round) {
    brush.beginPath();
    brush.roundRect(left, top, wide, high, Math.min(round, wide / 2));
  }

  let drawnFor = "";

  function moveCursor() {
    cursor = playing && playing.from !== null && (!audio.paused || audio.currentTime > 0) ? playing.from + audio.currentTime : null;
    // Ten thousand boxes are not drawn sixty times a second for a cursor that has not moved by a pixel.
    const pixel = cursor === null ? "" : Math.round(cursor * (find("strip").clientWidth * zoom) / length);
    const state = `${pixel} ${chosen.row?.place} ${isDark()}`;
    if (state === drawnFor) return;
    drawnFor = state;
    if (cursor !== null && zoom > 1) follow(cursor);
    drawTimeline();
  }

  function follow(seconds) {
    const strip = find("strip");
    const at = 8 + seconds * (strip.clientWidth * zoom - 16) / length;
    if (at < strip.scrollLeft || at > strip.scrollLeft + strip.clientWidth) strip.scrollLeft = at - strip.clientWidth * 0.2;
  }

  function setZoom(to) {
    const strip = find("strip");
    const middle = (strip.scrollLeft + strip.clientWidth / 2) / (strip.clientWidth * zoom);
    zoom = Math.max(1, Math.min(to, Math.max(1, length / 4)));
    find("strip-width").style.width = `${strip.clientWidth * zoom}px`;
    strip.scrollLeft = middle * strip.clientWidth * zoom - strip.clientWidth / 2;
    drawTimeline();
  }

  function rowAt(event) {
    const strip = find("strip");
    const bounds = find("canvas").getBoundingClientRect();
    const scale = (strip.clientWidth * zoom - 16) / length;
    const second = (event.clientX - bounds.left + strip.scrollLeft - 8) / scale;
    const lane = Math.floor((event.clientY - bounds.top - AXIS) / LANE);
    const reach = 4 / scale;
    return rows.find((row) => row.speaker === lane && row.line >= 0 && row.from !== null && second >= row.from - reach &&
      second <= row.from + Math.max(row.slot ?? 0, row.duration ?? 0) + reach);
  }

  // --- keys -----------------------------------------------------------------------------------------------

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const inField = event.target.closest("input");
    if (inField && inField.type === "search") {
      if (event.key === "Escape" || event.key === "Enter") inField.blur();
      return;
    }
    const onButton = event.target.closest("button, summary, input");
    const keys = {
      " ": () => { if (chosen.row && !chosen.row.sound) return; if (!chosen.row) playThrough(); else toggle(chosen.row); },
      ArrowDown: () => step(1),
      ArrowUp: () => step(-1),
      ArrowRight: () => go(1),
      ArrowLeft: () => go(-1),
      Home: () => { if (shown.length) select(shown[0]); },
      End: () => { if (shown.length) select(shown.at(-1)); },
      r: () => { if (chosen.row) mark(chosen.row); },
      "/": () => find("find").focus(),
    };
    const act = keys[event.key];
    // A button that was reached by the tab key keeps what space means to it.
    if (!act || (event.key === " " && onButton && !onButton.closest(".row"))) return;
    event.preventDefault();
    act();
  }

  // --- all together ---------------------------------------------------------------------------------------

  showHead();
  showFilters();
  placeOnTimeline();
  filter();
  document.addEventListener("keydown", onKey);
  addEventListener("scroll", drawList, { passive: true });
  addEventListener("resize", () => { clearList(); layOut(); drawTimeline(); showPlaying(); });
  find("strip").addEventListener("scroll", drawTimeline, { passive: true });
  find("canvas").addEventListener("click", (event) => { const row = rowAt(event); if (row) { select(row, false); toggle(row); } });
  find("canvas").addEventListener("mousemove", (event) => {
    const row = rowAt(event);
    find("canvas").title = row ? `#${row.index} ${row.text.slice(0, 200)}` : "";
  });
  find("zoom-in").addEventListener("click", () => setZoom(zoom * 2));
  find("zoom-out").addEventListener("click", () => setZoom(zoom / 2));
  find("zoom-fit").addEventListener("click", () => setZoom(1));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    voiceButtons.forEach((button, speaker) => paint(button.firstChild, speaker));
    clearList();
    drawList();
    drawTimeline();
    showPlaying();
  });
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("paper");
    printing = true;
    clearList();
    drawList();
    drawTimeline();
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("paper");
    printing = false;
    clearList();
    drawList();
    drawTimeline();
  });
  if (job.status === "running") {
    // The newer page is loaded when nobody is in the middle of something.
    setInterval(() => {
      if (audio.paused && !chosen.redo.size && !chosen.words && !document.hidden) location.reload();
    }, 20000);
  }
})();
