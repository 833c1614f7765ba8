// Connects the parts of the page, and watches whether the model is served.

import { get, health } from "./api.js";
import { connectChat, serve } from "./chat.js";
import { connectExperts } from "./experts.js";
import { connectSettings } from "./settings.js";

const HEALTHY_MS = 4000;
const ILL_MS = 1500;

const banner = document.getElementById("banner");
const dot = document.getElementById("status");
let isKnown = false;

async function describe() {
  try {
    const model = (await get("/v1/models")).data[0];
    document.getElementById("model").textContent = model.id;
    serve(model);
    isKnown = true;
    return "";
  } catch (error) {
    isKnown = false;
    return error.status === 401 ? "An API key is required: enter it in Settings." : error.message;
  }
}

function show(problem) {
  banner.hidden = !problem;
  if (banner.textContent !== problem) banner.textContent = problem;
  dot.className = `dot ${problem ? "down" : "up"}`;
  dot.setAttribute("aria-label", problem ? "Not available" : "The model is served");
}

async function watch() {
  const status = await health();
  const isServing = status === "SERVING";
  let problem = "";
  if (!isServing) {
    isKnown = false;
    problem = status.startsWith("The gateway") ? `${status} Trying again …` : "The model is not available now. Trying again …";
  } else if (!isKnown) problem = await describe();
  show(problem);
  setTimeout(watch, problem ? ILL_MS : HEALTHY_MS);
}

connectSettings(() => {
  isKnown = false; // a new key may change what can be seen
});
connectChat();
connectExperts();
watch();
