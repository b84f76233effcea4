// What the form says, as a request, as a curl command and as a link.

export const SEARCHES_BY_STEP = ["beam", "dvts"];
const VOTES = ["majority", "weighted_majority"];

const FIELDS = {
  prompt: String,
  api: String,
  algorithm: String,
  width: Number,
  expansions: Number,
  max_steps: Number,
  step_tokens: Number,
  max_tokens: Number,
  stop: String,
  answer: String,
  temperature: Number,
  seed: Number,
  greedy: Boolean,
};

// The state of the page: everything but the key, which is in no link and in no command.
export function readForm(form) {
  const entries = Object.entries(FIELDS).map(([name, type]) => {
    const field = form.elements[name];
    return [name, type === Boolean ? field.checked : type(field.value)];
  });
  return Object.fromEntries(entries);
}

export function fillForm(form, state) {
  for (const [name, type] of Object.entries(FIELDS)) {
    if (!(name in state)) continue;
    const field = form.elements[name];
    const before = field.value;
    if (type === Boolean) field.checked = state[name] === "true" || state[name] === true;
    else field.value = state[name];
    if (field.value === "" && name !== "prompt") field.value = before; // not one of the choices
  }
}

export function fragment(state) {
  return `#${new URLSearchParams(Object.entries(state))}`;
}

export function stateOfFragment(hash) {
  return Object.fromEntries(new URLSearchParams(hash.replace(/^#/, "")));
}

export function route(state) {
  return state.api === "chat" ? "v1/chat/completions" : "v1/completions";
}

// What an answer or a value is asked of.
export function subject(state) {
  return state.api === "chat" ? { messages: [{ role: "user", content: state.prompt }] } : { prompt: state.prompt };
}

export function body(state, model) {
  const { max_tokens, temperature, seed } = state;
  const request = { model, ...subject(state), stream: true, max_tokens, temperature, seed };
  if (state.algorithm === "none") return { ...request, stream_options: { include_usage: true } };
  return { ...request, search: search(state) };
}

function search({ algorithm, width, expansions, max_steps, stop, step_tokens, answer }) {
  if (SEARCHES_BY_STEP.includes(algorithm)) {
    const step = { stop: [unescaped(stop)], max_tokens: step_tokens };
    return { algorithm, beam_width: width, expansions, max_steps, step };
  }
  return { algorithm, n: width, ...(VOTES.includes(algorithm) && { answer }) };
}

export function greedyBody(state, model) {
  return { model, ...subject(state), stream: true, max_tokens: state.max_tokens, temperature: 0 };
}

// The field is one line, so a line break is written \n in it.
function unescaped(text) {
  return text.replace(/\\([nt\\])/g, (_, letter) => ({ n: "\n", t: "\t", "\\": "\\" })[letter]);
}

// Sends byte for byte what the page sends.
export function curl(url, request) {
  return [
    `curl --no-buffer ${quoted(url)}`,
    `  -H "Authorization: Bearer $POSTTRAIN_API_KEY"`,
    `  -H 'Content-Type: application/json'`,
    `  --data-raw ${quoted(JSON.stringify(request))}`,
  ].join(" \\\n");
}

// One word of a POSIX shell, whatever is in the text.
export function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
