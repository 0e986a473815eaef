// status.html: the daemon at a glance. In a frame of an older self it only hands over what it holds.
(() => {
  const first = page.data();
  if (window !== window.parent) {
    window.parent.postMessage({ dubd: first }, "*");
    return;
  }
  const { find, make, said } = page;
  const SILENT_S = Math.max(20, 4 * first.write_s);
  let status = first;
  let movedAt = performance.now(); // when something new was last seen, by this browser's own measure
  let asked = false; // whether anything but the page as it was opened has been seen
  let unreadable = 0;

  const TONES = { running: "good", ready: "good", busy: "live", done: "good", starting: "warn", restarting: "warn", draining: "warn",
    partial: "warn", cancelled: "warn", broken: "bad", failed: "bad", stopped: "bad" };

  function pill(word) {
    return make("span", { class: `pill ${TONES[word] ?? ""}`, text: word });
  }

  function show() {
    document.title = `dubd \u00b7 ${status.state}`;
    showFacts();
    fill("warnings", status.warnings.map((warning) => make("li", {}, said(warning))));
    showJobs();
    showHour();
    showDevices();
    showFailures();
    showRecent();
    find("foot").textContent = [`dubd ${status.version}`, `process ${status.pid}`, status.config ?? "no configuration file", `written ${page.moment(status.updated_at)}`].join(" \u00b7 ");
    showSilence();
  }

  function fill(id, elements, otherwise = null) {
    find(id).replaceChildren(...(elements.length || !otherwise ? elements : [make("li", { class: "empty", text: otherwise })]));
  }

  function fact(name, value, small) {
    return make("div", {}, make("dt", { text: name }), make("dd", {}, value, small ? make("small", {}, " ", said(small)) : null));
  }

  function inboxInWords() {
    if (!status.inbox.reachable) return "the inbox can't be reached";
    if (status.disk?.taking_jobs === false) return "no more are taken: no disk space";
    return status.inbox.waiting ? `${status.inbox.waiting} more in the inbox` : "";
  }

  function showFacts() {
    const open = status.jobs.length;
    const busy = status.workers.filter((worker) => worker.in_flight > 0).length;
    find("facts").replaceChildren(
      fact("Workers busy", `${busy} of ${status.workers.length}`),
      fact("Jobs", String(open), inboxInWords()),
      fact("Now", `${Math.round(status.throughput.segments_per_minute)} a minute`, `${status.throughput.audio_s_per_s} xRT`),
      fact("Engine", status.engine.name, status.engine.model ?? "not loaded yet"),
      fact("Up", page.duration(status.updated_at - status.started_at)),
    );
  }

  // --- jobs -----------------------------------------------------------------------------------------------

  function showJobs() {
    fill("jobs", status.jobs.map((job) => {
      const { counts } = job;
      const ended = counts.ok + counts.failed + counts.skipped + counts.cancelled;
      const note = [job.note, job.priority ? `priority ${job.priority}` : null, counts.cached ? `${counts.cached} from before` : null,
        counts.failed ? `${counts.failed} failed` : null].filter(Boolean).join(" \u00b7 ");
      const left = page.isNumber(job.eta_s) && job.state === "running" ? `, ${page.duration(job.eta_s)} left` : "";
      return make("li", {},
        make("div", { class: "job-head" }, make("b", { title: job.job_id }, said(job.job_id)), pill(job.state),
          make("span", { class: "left", text: `${ended.toLocaleString("en")} of ${counts.total.toLocaleString("en")}${left}` })),
        bar(`${ended} of ${counts.total} segments`, counts.total, [["known", counts.cached], ["good", counts.ok - counts.cached], ["bad", counts.failed],
          ["warn", counts.skipped + counts.cancelled]]),
        note ? make("p", { class: "job-note" }, said(note)) : null);
    }), "Nothing to do. Jobs that are dropped into the inbox appear here.");
  }

  function bar(label, whole, parts) {
    const made = make("div", { class: "bar", role: "img", "aria-label": label });
    for (const [tone, amount] of parts) {
      const piece = make("i", { class: tone });
      piece.style.width = `${100 * amount / Math.max(whole, 1)}%`;
      if (amount > 0) made.append(piece);
    }
    return made;
  }

  // --- the last hour --------------------------------------------------------------------------------------

  function showHour() {
    const { segments, audio_s: seconds } = status.throughput.last_hour;
    const most = Math.max(1, ...segments);
    const wide = 100 / segments.length;
    const svg = make("svg", { viewBox: "0 0 100 40", preserveAspectRatio: "none", role: "img", "aria-label": `Segments spoken in each minute; at most ${most}` });
    svg.append(make("line", { x1: 0, x2: 100, y1: 39.7, y2: 39.7, "stroke-width": 0.6 }));
    segments.forEach((amount, minute) => {
      const high = amount ? Math.max(0.8, 38 * amount / most) : 0;
      if (high) svg.append(make("rect", { x: (minute * wide).toFixed(2), y: (39.4 - high).toFixed(2), width: (wide * 0.74).toFixed(2), height: high.toFixed(2),
        class: minute === segments.length - 1 ? "now" : null }));
    });
    const sum = (list) => list.reduce((total, one) => total + one, 0);
    find("hour").replaceChildren(
      make("p", { class: "sum" }, make("span", { text: page.count(sum(segments), "segment") }), make("span", { text: `${page.duration(sum(seconds))} of audio` }),
        make("span", { class: "muted", text: `at most ${most.toLocaleString("en")} a minute` })),
      svg, make("p", {}, make("span", { text: `${segments.length} minutes ago` }), make("span", { text: "now" })));
  }

  // --- workers --------------------------------------------------------------------------------------------

  function showDevices() {
    const devices = new Map();
    for (const worker of status.workers) {
      const place = worker.gpu === null ? "CPU" : `GPU ${worker.gpu}`;
      const name = worker.node ? `${place} of ${worker.node}` : place;
      if (!devices.has(name)) devices.set(name, []);
      devices.get(name).push(worker);
    }
    find("devices").replaceChildren(...[...devices].map(([name, workers]) => {
      const used = workers.reduce((sum, worker) => sum + worker.memory_bytes, 0);
      const allowed = status.memory_budget_bytes * workers.length;
      const onGpu = workers[0].gpu !== null;
      const memory = used ? `${page.size(used)}${onGpu ? ` of ${page.size(allowed)}` : ""}` : page.count(workers.length, "worker");
      return make("div", { class: "card device" },
        make("h3", {}, name, make("span", { text: memory })),
        onGpu && used ? bar(`${page.size(used)} of ${page.size(allowed)} of memory`, allowed, [["accent", Math.min(used, allowed)]]) : null,
        ...workers.map(worker));
    }));
  }

  function worker(row) {
    const doing = row.speaker && row.in_flight ? row.speaker : row.activity === row.state ? "" : row.activity;
    const more = [
      row.job, row.speaker && row.activity !== row.state && row.in_flight ? row.activity : null, row.in_flight ? `${row.in_flight} in flight` : null, page.count(row.slots, "slot"),
      `${row.spoken.toLocaleString("en")} spoken`, row.memory_bytes ? page.size(row.memory_bytes) : null,
      row.restarts ? page.count(row.restarts, "restart") : null,
    ].filter(Boolean).join(" \u00b7 ");
    return make("div", { class: "worker" },
      make("span", { class: "number", text: `${row.worker}`, title: `worker ${row.worker}` }), make("span", { class: "doing" }, said(doing || (row.state === "ready" ? "idle" : "\u2013"))), pill(row.state),
      make("span", { class: "more" }, said(more)), row.error ? make("span", { class: "error" }, said(row.error)) : null);
  }

  // --- what failed, what ended ----------------------------------------------------------------------------

  function link(jobId, text) {
    const folder = status.outbox.split("/").map(encodeURIComponent).join("/");
    return make("a", { href: `${folder}/${encodeURIComponent(jobId)}/report.html` }, said(text));
  }

  function showFailures() {
    find("failures-part").hidden = !status.failures.length;
    // Segments that failed alike are told of once.
    const alike = new Map();
    for (const failure of status.failures) {
      const key = JSON.stringify([failure.job_id, failure.code, failure.message]);
      if (!alike.has(key)) alike.set(key, { ...failure, places: [] });
      alike.get(key).places.unshift(`${failure.index} (${failure.speaker})`);
    }
    fill("failures", [...alike.values()].map((failure) => make("li", {},
      make("p", { class: "where" }, said(failure.job_id), " \u00b7 ", said(`${failure.places.length === 1 ? "segment" : "segments"} ${failure.places.join(", ")}`),
        ` \u00b7 ${page.moment(failure.failed_at)}`),
      make("p", {}, said(`${failure.code}: ${failure.message}`)), make("p", { class: "mend", text: failure.advice }))));
  }

  function showRecent() {
    find("recent-part").hidden = !status.recent.length;
    find("recent").replaceChildren(...status.recent.slice(0, 20).map(({ job_id: jobId, status: outcome, counts, ended_at: endedAt, report }) => make("tr", {},
      make("td", {}, report === false ? said(jobId) : link(jobId, jobId)), make("td", {}, pill(outcome)), make("td", { class: "figure", text: `${counts.ok} of ${counts.total}` }),
      make("td", { class: "figure", text: String(counts.failed) }), make("td", { class: "figure", text: page.moment(endedAt) }))));
  }

  // --- is it alive ----------------------------------------------------------------------------------------

  // Two clocks may differ, so what counts is whether anything new comes while we look. Only at first, before
  // anything could have come, is the page's own time believed.
  function showSilence() {
    const looked = (performance.now() - movedAt) / 1000;
    const age = asked ? looked : Math.max(looked, Date.now() / 1000 - first.updated_at);
    const stopped = status.state === "stopped";
    const silent = !stopped && age > SILENT_S;
    const notice = find("silent");
    notice.hidden = !stopped && !silent;
    const text = stopped ? `The daemon has stopped, at ${page.moment(status.updated_at)}. What it was doing goes on when it is started again.`
      : `The daemon does not move: the last word of it is from ${page.moment(status.updated_at)}. ` +
        (unreadable > 2 ? "This page can't read itself again; is the folder still there? " : "") +
        "Look for it with 'dubd status', and for its story in its log.";
    if (notice.textContent !== text) notice.textContent = text;
    document.body.classList.toggle("silent", !notice.hidden);
    const state = find("state");
    state.textContent = silent ? "silent" : status.state;
    state.className = `pill ${silent ? "bad" : TONES[status.state] ?? ""}`;
    find("seen").textContent = silent || stopped ? "" : looked < 2 * first.write_s ? "live" : `last news ${Math.round(looked)} s ago`;
  }

  // --- the newer self -------------------------------------------------------------------------------------

  let frame = null;

  function ask() {
    if (frame) { frame.remove(); unreadable += 1; }
    frame = make("iframe", { src: `${location.pathname.split("/").at(-1)}?${Date.now()}`, title: "newer status", "aria-hidden": "true", tabindex: -1 });
    document.body.append(frame);
  }

  addEventListener("message", (event) => {
    if (!frame || event.source !== frame.contentWindow || !event.data || typeof event.data.dubd !== "object") return;
    const newer = event.data.dubd;
    frame.remove();
    frame = null;
    unreadable = 0;
    if (newer.pid === status.pid && newer.seq === status.seq) return;
    asked = true;
    movedAt = performance.now();
    status = newer;
    show();
  });

  show();
  setInterval(ask, first.refresh_s * 1000);
  setInterval(showSilence, 1000);
})();
