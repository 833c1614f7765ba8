// The experts at work: reads /experts once a second and draws it.

import { get } from "./api.js";

const PERIOD_MS = 1000;
const ROUTES = { resident: "on the GPU", streamed: "copied to the GPU", remote: "by the CPU" };
const LARGEST_CELL = 22;
const SMALLEST_CELL = 4; // pixels: narrower ones cannot be told apart, so that neighbours share a cell

const panel = document.getElementById("experts");
const canvas = document.getElementById("map");
const text = (id, value) => {
  document.getElementById(id).textContent = value;
};
let layers = [];

function gigabytes(bytes) {
  return `${(bytes / 1e9).toFixed(1)} GB/s`;
}

function drawRoutes(shares) {
  const bar = document.getElementById("routes");
  for (const [route, words] of Object.entries(ROUTES)) {
    const share = shares?.[route] ?? 0;
    bar.querySelector(`.${route}`).style.width = `${share * 100}%`;
    text(`share-${route}`, shares ? `${Math.round(share * 100)} %` : "–");
  }
  const told = Object.entries(ROUTES).map(([route, words]) => `${Math.round((shares?.[route] ?? 0) * 100)} % ${words}`);
  bar.setAttribute("aria-label", shares ? told.join(", ") : "No expert was computed in the last seconds");
}

function drawBandwidth({ achieved_bytes_per_second: achieved, measured_bytes_per_second: limit }) {
  const share = achieved && limit ? Math.min(1, achieved / limit) : 0;
  const gauge = document.getElementById("bandwidth");
  gauge.setAttribute("aria-valuenow", share.toFixed(2));
  gauge.firstChild.style.width = `${share * 100}%`;
  if (!limit) text("bandwidth-text", "not reported");
  else if (!achieved) text("bandwidth-text", `idle; measured limit ${gigabytes(limit)}`);
  else text("bandwidth-text", `${gigabytes(achieved)} of ${gigabytes(limit)}, ${Math.round((100 * achieved) / limit)} %`);
}

/** The shares of a layer's experts, 1 for the even share. */
function shares(layer) {
  const chosen = layer.selections?.some((count) => count > 0) ? layer.selections : layer.decayed_selections;
  const total = chosen?.reduce((sum, count) => sum + count, 0);
  return total ? chosen.map((count) => (count * chosen.length) / total) : null;
}

/** What the cells of one layer show: the largest share of their experts, and the share of these that is resident. */
function cells(layer, perCell) {
  const all = shares(layer);
  const resident = new Set(layer.resident ?? []);
  const found = [];
  for (let first = 0; first < all.length; first += perCell) {
    const experts = all.slice(first, first + perCell);
    const share = Math.max(...experts);
    const there = experts.filter((_, index) => resident.has(first + index)).length / experts.length;
    found.push({ share, there, expert: first + experts.indexOf(share) });
  }
  return found;
}

let rows = []; // as they are drawn: { layer, cells }, and the size of a cell
let cellSize = [1, 1];

function emptyMap() {
  if (!layers.length) return "–";
  if (layers.every((layer) => layer.selections === null && layer.decayed_selections === null)) {
    return "Choices are not counted by expert: the GPU service runs with --metrics-by-expert off, or was read once so far.";
  }
  return "Nothing was chosen yet: no token was computed since the page was opened.";
}

function drawMap() {
  const known = layers.filter((layer) => shares(layer));
  const experts = Math.max(0, ...known.map((layer) => shares(layer).length));
  const isIdle = !layers.some((layer) => layer.selections?.some((count) => count > 0));
  canvas.hidden = !experts;
  if (!experts) {
    rows = [];
    text("map-text", emptyMap());
    return;
  }
  const width = canvas.parentElement.clientWidth;
  const perCell = Math.ceil(experts / Math.max(1, Math.floor(width / SMALLEST_CELL)));
  rows = known.map((layer) => ({ layer: layer.layer, cells: cells(layer, perCell) }));
  const cell = width / Math.ceil(experts / perCell);
  const height = Math.max(SMALLEST_CELL, Math.min(LARGEST_CELL, cell, 420 / known.length));
  cellSize = [cell, height];
  paint(width, height * known.length, isIdle);
  document.getElementById("key-resident").hidden = !known.some((layer) => layer.resident?.length);
  const all = rows.flatMap(({ layer, cells }) => cells.map((each) => ({ layer, ...each })));
  const hottest = all.reduce((most, each) => (each.share > most.share ? each : most));
  const bands = Math.max(...known.map((layer) => layer.experts_per_band));
  const merged = perCell > 1 ? `; a cell is the largest of ${perCell}` : "";
  const banded = bands > 1 ? `; counted in bands of ${bands}` : "";
  const told = `${known.length} layers of ${experts} experts${merged}${banded}; expert ${hottest.expert} of layer ${hottest.layer} was chosen ${hottest.share.toFixed(1)} times the even share`;
  canvas.setAttribute("aria-label", told);
  text("map-text", isIdle ? `Idle. ${told}.` : `${told}.`);
}

function paint(width, height, isIdle) {
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  const style = getComputedStyle(document.documentElement);
  const [accent, sunken, soft] = ["--accent", "--sunken", "--soft"].map((name) => style.getPropertyValue(name));
  const [cellWidth, cellHeight] = cellSize;
  const gap = Math.min(2, cellWidth / 6, cellHeight / 6);
  rows.forEach(({ cells }, row) => {
    cells.forEach(({ share, there }, column) => {
      const box = [column * cellWidth + gap / 2, row * cellHeight + gap / 2, cellWidth - gap, cellHeight - gap];
      context.globalAlpha = 1;
      context.fillStyle = sunken;
      context.beginPath();
      context.roundRect(...box, Math.min(4, cellWidth / 4, cellHeight / 4));
      context.fill();
      context.globalAlpha = Math.min(1, Math.sqrt(share / 3)) * (isIdle ? 0.4 : 1);
      context.fillStyle = accent;
      context.fill();
      if (there) {
        context.globalAlpha = there;
        context.strokeStyle = soft;
        context.lineWidth = Math.min(1, cellWidth / 8);
        context.stroke();
      }
    });
  });
}

/** Says which expert a cell is, while the pointer is on it. */
canvas.addEventListener("pointermove", ({ offsetX, offsetY }) => {
  const row = rows[Math.floor(offsetY / cellSize[1])];
  const cell = row?.cells[Math.floor(offsetX / cellSize[0])];
  canvas.title = cell ? `layer ${row.layer}, expert ${cell.expert}: ${cell.share.toFixed(1)} times the even share` : "";
});

function note(words) {
  const shown = document.getElementById("experts-note");
  shown.hidden = !words;
  shown.textContent = words;
}

async function update() {
  let now;
  try {
    now = await get("/experts", AbortSignal.timeout(5000));
  } catch (error) {
    note(error.status ? error.message : "No figures: the gateway cannot be reached.");
    return;
  }
  const errors = [now.gpu_service, now.cpu_expert_service].filter((service) => service?.error);
  if (!now.gpu_service) note("The gateway does not read the services' metrics.");
  else if (errors.length) note("A service's metrics cannot be read.");
  else note(now.degraded ? "The CPU expert service is lost; the GPU service computes its experts." : "");
  text("rate", now.tokens_per_second ? now.tokens_per_second.toFixed(1) : now.gpu_service?.error ? "–" : "0");
  text("load", now.running === null ? "–" : `${now.running}, ${now.waiting}`);
  drawRoutes(now.routes);
  drawBandwidth(now.bandwidth);
  layers = now.layers;
  drawMap();
}

/** Begins to read, while the panel and the page are visible. */
export function connectExperts() {
  const toggle = document.getElementById("toggle-experts");
  const show = (visible) => {
    panel.hidden = !visible;
    toggle.setAttribute("aria-expanded", String(visible));
  };
  toggle.addEventListener("click", () => show(panel.hidden));
  show(window.innerWidth > 980);
  new ResizeObserver(drawMap).observe(panel);
  const tick = async () => {
    if (!panel.hidden && !document.hidden) await update();
    setTimeout(tick, PERIOD_MS);
  };
  tick();
}
