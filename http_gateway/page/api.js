// Calls the gateway: JSON, and streams of server-sent events.

import { settings } from "./settings.js";

/** An error that the gateway answered, or that there is no gateway. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

function headers() {
  const key = settings().key;
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

async function call(path, options) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: headers(), cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.");
  }
  if (answer.ok) return answer;
  const content = await answer.json().catch(() => null);
  throw new ApiError(content?.error?.message ?? `The server answered with status ${answer.status}.`, answer.status);
}

/** The JSON at a path. */
export async function get(path, signal) {
  return (await call(path, { signal })).json();
}

/** Whether the model is served: "SERVING", or why not. */
export async function health() {
  try {
    const answer = await fetch("/health", { cache: "no-store", signal: AbortSignal.timeout(6000) });
    return (await answer.json()).status;
  } catch {
    return "The gateway cannot be reached.";
  }
}

/** Posts a body and yields the objects of the stream that answers it. */
export async function* stream(path, body, signal) {
  const answer = await call(path, { method: "POST", body: JSON.stringify(body), signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let isDone = false;
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ")) continue;
        const data = line.slice(6);
        if (data === "[DONE]") {
          isDone = true;
          return;
        }
        const content = JSON.parse(data);
        if (content.error) throw new ApiError(content.error.message);
        yield content;
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError("The connection was lost.");
  } finally {
    reader.cancel().catch(() => {});
  }
  if (!isDone) throw new ApiError("The connection was lost.");
}
