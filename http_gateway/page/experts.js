// The experts at work: reads /experts once a second and draws it.

import { get } from "./api.js";

const PERIOD_MS = 1000;
const ROUTES = { resident: "on the GPU", streamed: "copied to the GPU", remote: "by the CPU" };
const LARGEST_CELL = 22;

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

function drawMap() {
  const known = layers.filter((layer) => shares(layer));
  const experts = Math.max(0, ...known.map((layer) => shares(layer).length));
  const isIdle = !layers.some((layer) => layer.selections?.some((count) => count > 0));
  if (!experts) {
    text("map-text", layers.length ? "Nothing was chosen yet, or choices are not counted by expert." : "–");
    canvas.hidden = true;
    return;
  }
  canvas.hidden = false;
  const width = canvas.parentElement.clientWidth;
  const cell = width / experts;
  const height = Math.max(4, Math.min(LARGEST_CELL, cell, 420 / known.length));
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(known.length * height * scale);
  canvas.style.height = `${known.length * height}px`;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  const style = getComputedStyle(document.documentElement);
  const accent = style.getPropertyValue("--accent");
  const gap = Math.min(2, cell / 6, height / 6);
  document.getElementById("key-resident").hidden = !known.some((layer) => layer.resident?.length);
  let hottest = { share: 0 };
  known.forEach((layer, row) => {
    const resident = new Set(layer.resident ?? []);
    shares(layer).forEach((share, expert) => {
      const box = [expert * cell + gap / 2, row * height + gap / 2, cell - gap, height - gap];
      context.globalAlpha = 1;
      context.fillStyle = style.getPropertyValue("--sunken");
      context.beginPath();
      context.roundRect(...box, Math.min(4, cell / 4, height / 4));
      context.fill();
      context.globalAlpha = Math.min(1, Math.sqrt(share / 3)) * (isIdle ? 0.4 : 1);
      context.fillStyle = accent;
      context.fill();
      if (resident.has(expert)) {
        context.globalAlpha = 1;
        context.strokeStyle = style.getPropertyValue("--soft");
        context.lineWidth = 1;
        context.stroke();
      }
      if (share > hottest.share) hottest = { share, layer: layer.layer, expert };
    });
  });
  const told = `${known.length} layers of ${experts} experts; expert ${hottest.expert} of layer ${hottest.layer} was chosen ${hottest.share.toFixed(1)} times the even share`;
  canvas.setAttribute("aria-label", told);
  text("map-text", isIdle ? `Idle. ${told}.` : `${told}.`);
}

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
