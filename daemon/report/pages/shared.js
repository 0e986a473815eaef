"use strict";

// What a page shows comes from jobs: it goes into text nodes and checked numbers, never into markup.
const page = {
  data() {
    return JSON.parse(document.getElementById("data").textContent);
  },

  find(id) {
    return document.getElementById(id);
  },

  // An element: its attributes (class, text, on: {event: handler}, others as they are), and what is in it.
  make(tag, attributes = {}, ...children) {
    const svg = page.svgTags.has(tag);
    const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "text") element.textContent = value;
      else if (name === "on") for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  },

  svgTags: new Set(["svg", "path", "rect", "line", "g"]),

  // Text from a job, whatever its direction, kept from turning what stands around it.
  said(text, attributes = {}) {
    return page.make("bdi", { text, ...attributes });
  },

  isNumber(value) {
    return typeof value === "number" && Number.isFinite(value);
  },

  // "0.42 s", "12.3 s", "3 min 05 s", "2 h 10 min"
  duration(seconds) {
    if (!page.isNumber(seconds)) return "\u2013";
    if (seconds < 10) return `${seconds.toFixed(2)} s`;
    if (seconds < 60) return `${seconds.toFixed(1)} s`;
    const whole = Math.round(seconds);
    if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
    return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
  },

  // A time of the film: "1:02:03.4"
  clock(seconds, digits = 1) {
    if (!page.isNumber(seconds)) return "";
    const unit = 10 ** digits;
    const all = Math.round(seconds * unit);
    const whole = Math.floor(all / unit);
    const [hours, minutes] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60)];
    const rest = String(whole % 60).padStart(2, "0") + (digits ? `.${String(all % unit).padStart(digits, "0")}` : "");
    return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
  },

  moment(unix) {
    if (!page.isNumber(unix)) return "\u2013";
    const there = new Date(unix * 1000);
    const today = new Date().toDateString() === there.toDateString();
    const time = there.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    return today ? time : `${there.toLocaleDateString([], { day: "numeric", month: "short", year: "numeric" })} ${time}`;
  },

  // Memory, in the GB (of 1024 ** 3 bytes) that GPUs are sold in and the plan counts in.
  size(bytes) {
    if (!page.isNumber(bytes) || bytes <= 0) return "\u2013";
    return bytes >= 2 ** 30 ? `${(bytes / 2 ** 30).toFixed(1)} GB` : `${Math.round(bytes / 2 ** 20)} MB`;
  },

  count(number, one, many = `${one}s`) {
    return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
  },
};
