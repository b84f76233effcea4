// The page: reads the form, follows the stream, and shows what comes.

import { Answer } from "./answer.js";
import { TreeDrawing, shortened } from "./drawing.js";
import { nodeFacts, usageFacts } from "./facts.js";
import { Notice } from "./notice.js";
import { SEARCHES_BY_STEP, body, curl, fillForm, fragment, greedyBody } from "./request.js";
import { readForm, route, stateOfFragment, subject } from "./request.js";
import { Scale } from "./scale.js";
import { RequestError, events, fetchJson } from "./stream.js";
import { startTheme } from "./theme.js";
import { SearchTree } from "./tree.js";

const ALGORITHMS = {
  beam: "After each step the partial answers of highest value are kept and the rest are dropped.",
  dvts: "Independent trees, each of which goes on from its own best step.",
  best_of_n: "Whole answers; the one of highest value is chosen.",
  weighted_majority: "Whole answers; each votes for its result with its value.",
  majority: "Whole answers; the result that most of them reach is chosen.",
  none: "One answer, sampled from the policy alone.",
};
const $ = (id) => document.getElementById(id);
const form = $("form");
const drawing = new TreeDrawing($("frame"), showDetails);
const chosen = answerIn($("chosen"));
const greedy = answerIn($("greedy-answer"));
const notice = new Notice(form, $("error"), run);
let models = null;
let running = null; // the AbortController of the run
let tree = null;

function answerIn(article) {
  article.append($("answer-parts").content.cloneNode(true));
  return new Answer(article);
}

// ---- one run

async function run() {
  if (running || !form.reportValidity()) return;
  const state = readForm(form);
  const connection = { key: form.elements.key.value, signal: (running = new AbortController()).signal };
  history.replaceState(null, "", fragment(state));
  begin(state);
  try {
    models ??= await loadModels(connection);
    await search(state, connection);
    await finish(state, connection);
  } catch (error) {
    if (error.name === "AbortError") say("Stopped. What came so far is shown.");
    else fail(error);
  } finally {
    running = null;
    $("run").disabled = false;
    $("stop-run").disabled = true;
  }
}

function fail(error) {
  say("Not finished.");
  $("board").hidden = $("zoom").hidden = tree.nodes.size === 1;
  if (error instanceof RequestError) return notice.show(error);
  notice.show(new RequestError(`The page itself failed; reload it. ${error}`));
  throw error;
}

function begin(state) {
  notice.hide();
  $("run").disabled = true;
  $("stop-run").disabled = false;
  tree = new SearchTree(state.prompt);
  const hasTree = state.algorithm !== "none";
  for (const id of ["board", "zoom"]) $(id).hidden = !hasTree;
  $("answers").hidden = $("greedy-answer").hidden = $("after").hidden = true;
  chosen.begin(hasTree ? form.elements.algorithm.selectedOptions[0].text : "Sampled");
  if (hasTree) {
    drawing.begin(tree);
    redraw();
    showDetails(tree.root);
  }
  say("Sent. Waiting for the first step.");
}

async function search(state, connection) {
  const request = body(state, models.policy);
  $("curl").textContent = curl(new URL(route(state), document.baseURI).href, request);
  let usage = {};
  let reason = "";
  for await (const { event, data } of events(route(state), { ...connection, body: request })) {
    if (event === "step") takeStep(data);
    else if (event === "result") takeResult(data);
    else takeText(chosen, data);
    usage = { ...usage, ...data.usage };
    reason = data.finish_reason ?? data.choices?.[0]?.finish_reason ?? reason;
  }
  $("usage").replaceChildren(...usageFacts(usage));
  $("after").hidden = false;
  if (tree.winner !== null) drawing.settle(tree.winner);
  const outcome = tree.winner === null ? "" : `: ${described(tree.nodes.get(tree.winner))} is chosen`;
  say(`Finished${because(reason)}${outcome}.`);
}

async function finish(state, connection) {
  await showValues(chosen, state, connection);
  if (!state.greedy || (state.algorithm === "none" && state.temperature === 0)) return;
  $("greedy-answer").hidden = false;
  greedy.begin("Greedy");
  for await (const { data } of events(route(state), { ...connection, body: greedyBody(state, models.policy) })) {
    takeText(greedy, data);
  }
  await showValues(greedy, state, connection);
}

function takeStep(step) {
  tree.apply(step.nodes);
  redraw();
  const all = [...tree.nodes.values()].filter((node) => node.depth === step.step);
  say(`Step ${step.step}: ${counted(all.length, "candidate")}, ${step.kept.length} kept.${bestOf(step)}`);
}

function takeResult(result) {
  tree.apply(result.nodes);
  tree.winner = result.winner;
  chosen.tokenIds = result.finish_reason === "stop" ? result.token_ids.slice(0, -1) : result.token_ids;
  redraw();
}

function takeText(answer, data) {
  const text = data.choices?.[0]?.delta?.content ?? data.choices?.[0]?.text ?? "";
  $("answers").hidden = false;
  if (text) answer.append(text);
}

function redraw() {
  const scale = new Scale(tree.values());
  drawing.draw(scale);
  $("scale-low").textContent = scale.format(scale.low);
  $("scale-high").textContent = scale.format(scale.high);
  $("scale").hidden = tree.values().length === 0;
}

async function showValues(answer, state, connection) {
  if (!models.value) return answer.summarise("No value model is loaded.");
  let tokens;
  try {
    tokens = await tokensWithValues({ ...subject(state), completion: answer.completion }, connection);
  } catch (error) {
    if (!(error instanceof RequestError)) throw error;
    return answer.summarise(`Its values could not be read. ${error.message}`);
  }
  if (tokens.length === 0) return answer.summarise("The answer is empty.");
  answer.showValues(tokens);
  const shown = [chosen, greedy].flatMap((one) => one.tokens ?? []).map((token) => token.value);
  const scale = new Scale([...tree.values(), ...shown]);
  for (const one of [chosen, greedy]) one.draw(scale);
  answer.summarise(`V at its end: ${scale.format(tokens.at(-1).value)}, after ${counted(tokens.length, "token")}`);
}

// Of the answer alone: the prompt is scored with it, and left out here.
async function tokensWithValues(input, connection) {
  const { data } = await fetchJson("v1/values", { ...connection, body: { input, position: "all" } });
  const { texts, values, n_prompt_tokens } = data[0];
  return texts.map((text, i) => ({ text, value: values[i] })).slice(n_prompt_tokens);
}

async function loadModels(connection) {
  const { data } = await fetchJson("v1/models", connection);
  const [policy, value] = ["policy", "value"].map((role) => data.find((model) => model.role === role)?.id ?? null);
  offerTokens(Math.min(...data.map((model) => model.max_model_len)));
  if (!data[0].has_chat_template) offerText();
  $("models").textContent = value ? `policy ${policy}, value ${value}` : `policy ${policy}, no value model`;
  return { policy, value };
}

// A model without a chat template continues text; what a link asks for stays as it is.
function offerText() {
  if (!new URLSearchParams(location.hash.slice(1)).has("api")) form.elements.api.value = "text";
}

// Half of the positions for the answer where the usual number of tokens would not fit.
function offerTokens(room) {
  const { max_tokens } = form.elements;
  const isUntouched = max_tokens.value === max_tokens.defaultValue;
  if (isUntouched && 2 * max_tokens.value > room) max_tokens.value = Math.floor(room / 2);
}

// ---- words

function say(words) {
  $("status").textContent = words;
}

function counted(n, noun) {
  return `${n} ${noun}${n === 1 ? "" : "s"}`;
}

function because(reason) {
  const reasons = { length: ", out of tokens", budget: ", out of budget" };
  return reasons[reason] ?? "";
}

function bestOf({ best }) {
  if (!best) return "";
  const value = best.value === null ? "" : `value ${drawing.scale.format(best.value)}, `;
  return ` Best so far: ${value}“${shortened(best.text, 60)}”.`;
}

function described(node) {
  const value = node.value === null ? "" : ` with value ${drawing.scale.format(node.value)}`;
  return `an answer of ${counted(node.depth, "step")}${value}`;
}

function showDetails(node) {
  if (!node) return;
  $("details-title").textContent = node.index === 0 ? "The prompt" : `Step ${node.depth}`;
  $("details-numbers").replaceChildren(...nodeFacts(node, tree.winner));
  $("details-text").textContent = node.text;
  $("details-path").textContent = tree.textUpTo(node.index);
}

// ---- the form

function fitForm() {
  const { value } = form.elements.algorithm;
  for (const part of form.querySelectorAll("[data-for]")) {
    part.hidden = !part.dataset.for.split(" ").includes(value);
    for (const field of part.querySelectorAll("input, select")) field.disabled = part.hidden;
  }
  $("width-label").textContent = SEARCHES_BY_STEP.includes(value) ? "Width" : "Answers";
  $("algorithm-help").textContent = ALGORITHMS[value];
}

function selectCurl() {
  getSelection().selectAllChildren($("curl"));
  return "Selected: press Ctrl+C";
}

// Browsers give no clipboard to pages that come over plain HTTP from another machine.
async function copy(text, button, byHand) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = byHand();
  }
  setTimeout(() => (button.textContent = before), 2000);
}

function start() {
  startTheme($("theme"));
  form.elements.key.value = sessionStorage.getItem("key") ?? "";
  fillForm(form, stateOfFragment(location.hash));
  fitForm();
  form.elements.key.addEventListener("input", (event) => sessionStorage.setItem("key", event.target.value));
  form.elements.algorithm.addEventListener("change", fitForm);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
    if (event.key === "Escape") running?.abort();
  });
  $("stop-run").addEventListener("click", () => running?.abort());
  $("zoom-in").addEventListener("click", () => drawing.zoomBy(1));
  $("zoom-out").addEventListener("click", () => drawing.zoomBy(-1));
  $("zoom-fit").addEventListener("click", () => drawing.fit());
  $("copy-curl").addEventListener("click", ({ target }) => copy($("curl").textContent, target, selectCurl));
  $("copy-link").addEventListener("click", ({ target }) => copy(location.href, target, () => "It is in the address bar"));
  addEventListener("hashchange", () => {
    fillForm(form, stateOfFragment(location.hash));
    fitForm();
  });
  loadModels({ key: form.elements.key.value }).then(
    (loaded) => (models = loaded),
    () => {}, // without a key, say: a run asks again and says what is wrong
  );
}

start();
