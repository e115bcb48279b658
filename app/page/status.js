// The state, how far the load is, and the figures of a start that is over. Takes the bodies of /health and /startupz.

import { byId, bytes, element, say, seconds, wait } from "./wording.js";

const TITLES = {
  starting: "Starting",
  loading: "Loading",
  warming: "Warming up",
  ready: "Ready",
  draining: "Draining",
  failed: "Failed",
};

export function showState(health) {
  const share = health.bytes_total ? health.bytes_landed / health.bytes_total : null;
  const title = TITLES[health.state] ?? health.state;
  byId("status").dataset.state = health.state;
  say(byId("state"), title);
  say(byId("detail"), health.detail);
  showLoad(health, share);
  const percent = health.state === "loading" && share !== null ? `${Math.floor(share * 100)}% ` : "";
  document.title = `${percent}${title} · Coldstream`;
}

function showLoad(health, share) {
  const isLoading = health.state === "loading";
  const isOnTheWay = isLoading || health.state === "starting" || health.state === "warming";
  byId("load").hidden = !isOnTheWay;
  say(byId("eta"), isLoading && health.eta_s !== null ? `${wait(health.eta_s)} left` : "");
  const progress = byId("progress");
  if (share === null) {
    progress.removeAttribute("value"); // moves to and fro: nobody knows yet
    say(byId("landed"), "");
    say(byId("rate"), "");
    return;
  }
  progress.value = share;
  const landed = `${bytes(health.bytes_landed)} of ${bytes(health.bytes_total)}`;
  progress.setAttribute("aria-valuetext", landed);
  say(byId("landed"), landed);
  say(byId("rate"), isLoading && health.throughput_bytes_per_s ? `${bytes(health.throughput_bytes_per_s)}/s` : "");
}

export function showFacts(health, startup) {
  list(byId("facts"), health.state === "ready" ? facts(health, startup) : [], ([term, value]) =>
    element("div", {}, element("dt", {}, term), element("dd", {}, value)),
  );
  list(byId("fallbacks"), startup.fallbacks, ({ what, reason }) =>
    element("li", {}, element("strong", {}, what), ` ${reason}`),
  );
}

function list(target, items, made) {
  target.hidden = items.length === 0;
  target.replaceChildren(...items.map(made));
}

function facts(health, { milestones, durations }) {
  const fetched = durations.fetch_s ? `${bytes(health.bytes_total / durations.fetch_s)}/s` : null;
  const rows = [
    ["Ready after", milestones.ready_time, seconds],
    ["Weights", health.bytes_total || null, bytes],
    ["Fetched at", fetched, (text) => text],
  ];
  return rows.filter(([, value]) => value != null).map(([term, value, words]) => [term, words(value)]);
}

// `health` is what it last said, or null: a server that failed tells why before it ends.
export function showUnreachable(health) {
  byId("status").dataset.state = "unreachable";
  say(byId("state"), "Unreachable");
  const last = health ? `It last said: ${health.state}: ${health.detail}.` : "It has not answered yet.";
  say(byId("detail"), `${last} This page keeps trying.`);
  say(byId("eta"), "");
  byId("load").hidden = true;
  byId("facts").hidden = true;
  document.title = "Unreachable · Coldstream";
}
