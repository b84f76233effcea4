// Requests, streams of server-sent events, and what went wrong, in words.

export class RequestError extends Error {
  // `field`: the field of the form to look at; `retryAfter`: seconds
  constructor(message, { field = null, retryAfter = null } = {}) {
    super(message);
    this.field = field;
    this.retryAfter = retryAfter;
  }
}

export async function fetchJson(url, { key, signal, body } = {}) {
  const response = await send(url, { key, signal, body });
  return response.json();
}

// Yields {event, data} of every event but the last, [DONE]. A stream that ends without it was cut.
export async function* events(url, { key, signal, body }) {
  const response = await send(url, { key, signal, body });
  let rest = "";
  try {
    for await (const text of chunks(response.body)) {
      const blocks = (rest + text).replaceAll("\r\n", "\n").split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const { event, data } = parsed(block);
        if (data === "[DONE]") return;
        if (data !== "") yield { event, data: checked(JSON.parse(data)) };
      }
    }
  } catch (error) {
    if (error instanceof TypeError) throw new RequestError(CUT);
    throw error;
  }
  throw new RequestError(CUT);
}

const CUT =
  "The stream ended before the answer did; what came is shown. The server may have stopped or the connection may " +
  "have been lost. Run again: the same seed grows the same tree.";

const NO_KEY = "The server asks for a key. Enter it and run again.";
const WRONG_KEY = "The server does not know this key. Check it and run again.";
const TOO_LARGE = "The request is larger than the server allows. Shorten the prompt.";

async function* chunks(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {}); // it may have failed already, and that was said
  }
}

function parsed(block) {
  const fields = { event: "message", data: [] };
  for (const line of block.split("\n")) {
    const [, name, value] = /^(\w+): ?(.*)$/.exec(line) ?? [];
    if (name === "event") fields.event = value;
    if (name === "data") fields.data.push(value);
  }
  return { event: fields.event, data: fields.data.join("\n") };
}

function checked(data) {
  if (data.error) throw new RequestError(`The server gave up: ${data.error.message}`);
  return data;
}

async function send(url, { key, signal, body }) {
  const headers = { ...(key && { Authorization: `Bearer ${key}` }) };
  const options = { headers, signal, cache: "no-store" };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let response;
  try {
    response = await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError(`No answer from ${location.origin}. Is the server running? Start it, then run again.`);
  }
  if (!response.ok) throw await refusal(response, key);
  return response;
}

async function refusal(response, key) {
  const said = await reason(response);
  const quote = said.message ? ` It says: ${said.message}` : "";
  switch (response.status) {
    case 401:
      return new RequestError(key ? WRONG_KEY : NO_KEY, { field: "key" });
    case 413:
      return new RequestError(`${TOO_LARGE}${quote}`, { field: "prompt" });
    case 400:
    case 422:
      return new RequestError(`The server cannot do what was asked.${quote}`, { field: fieldOf(said) });
    case 429:
    case 503: {
      const retryAfter = Number(response.headers.get("Retry-After")) || null;
      const busy = response.status === 429 ? "The server is busy." : "The server is not taking requests now.";
      return new RequestError(`${busy}${quote}`, { retryAfter });
    }
    default:
      return new RequestError(`The server answered with status ${response.status}.${quote}`);
  }
}

async function reason(response) {
  try {
    return (await response.json()).error ?? {};
  } catch {
    return {}; // a proxy's page, not the server's JSON
  }
}

const FIELD_OF_PARAM = [
  [/beam_width|^search\.n$/, "width"],
  [/expansions/, "expansions"],
  [/max_steps/, "max_steps"],
  [/step\.max_tokens/, "step_tokens"],
  [/stop/, "stop"],
  [/algorithm|^search$/, "algorithm"],
  [/answer/, "answer"],
  [/max_tokens|max_completion_tokens/, "max_tokens"],
  [/temperature/, "temperature"],
  [/seed/, "seed"],
  [/prompt|messages/, "prompt"],
];

function fieldOf({ param, code }) {
  if (code === "no_chat_template") return "api";
  return FIELD_OF_PARAM.find(([pattern]) => pattern.test(param ?? ""))?.[1] ?? null;
}
