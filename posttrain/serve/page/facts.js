// Names with their numbers, as entries of a definition list.

import { STATE_WORDS } from "./drawing.js";
import { number } from "./scale.js";

const USAGE = {
  prompt_tokens: "Prompt tokens",
  completion_tokens: "Tokens of the answer",
  generated_tokens: "Generated tokens",
  value_calls: "Prefixes valued",
  value_tokens: "Value tokens",
  value_tokens_cached: "Value tokens cached",
  search_steps: "Search steps",
  pruned: "Pruned",
};

export function nodeFacts(node, winner) {
  if (node.index === 0) return [];
  const facts = [
    ["State", node.index === winner ? "chosen answer" : STATE_WORDS[node.state]],
    ["Value", number(node.value, 4)],
    ["Score", number(node.score, 4)],
    ["log π", number(node.logp, 3)],
    ["Same samples", node.n_merged],
  ];
  return facts.flatMap(pair);
}

export function usageFacts(usage) {
  const known = Object.entries(USAGE).filter(([name]) => typeof usage[name] === "number");
  return known.map(([name, words]) => {
    const group = document.createElement("div");
    group.append(...pair([words, usage[name].toLocaleString("en")]));
    return group;
  });
}

function pair([name, what]) {
  const [term, description] = [document.createElement("dt"), document.createElement("dd")];
  term.textContent = name;
  description.textContent = what;
  return [term, description];
}
