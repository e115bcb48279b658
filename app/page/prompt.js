// The box: a prompt in, an answer as it comes, and how fast it came. Knows the API's two ways of asking for text.

import { AnswerError, answerStream, authorization } from "./answer_stream.js";
import { byId, say, seconds } from "./wording.js";

const WAYS = {
  chat: {
    path: "v1/chat/completions",
    prompt: (text) => ({ messages: [{ role: "user", content: text }] }),
    text: (choice) => choice.delta.content ?? "",
  },
  completion: {
    path: "v1/completions",
    prompt: (text) => ({ prompt: text }),
    text: (choice) => choice.text,
  },
};

export class PromptBox {
  // `onAnswered` is called after every answer.
  constructor(onAnswered) {
    this.onAnswered = onAnswered;
    this.model = null; // its name and the way to ask, once they are known
    this.asking = null; // the AbortController of a request that runs
    this.isReady = false;
    byId("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        byId("form").requestSubmit();
      }
    });
    byId("stop").addEventListener("click", () => this.asking?.abort());
  }

  // The box appears with the first ready state and stays, closed while the server is anything else.
  serverIs(state) {
    const wasReady = this.isReady;
    this.isReady = state === "ready";
    byId("fields").disabled = !this.isReady && this.asking === null;
    if (this.isReady && !wasReady) {
      byId("try").hidden = false;
      this.model = null;
      this.findModel().catch((error) => this.fail(error));
    }
  }

  // A model with a chat template is asked by chat: the server shows the template with the tokenizer.
  async findModel(signal) {
    const headers = authorization(byId("key").value);
    const models = await readJson("v1/models", headers, signal);
    const tokenizer = await readJson("tokenizer_info", headers, signal);
    this.model = { name: models.data[0].id, way: tokenizer.chat_template ? WAYS.chat : WAYS.completion };
    say(byId("model"), this.model.name);
    say(byId("endpoint"), `POST /${this.model.way.path}`);
    byId("max-tokens").max = models.data[0].max_model_len;
  }

  async ask() {
    if (this.asking || !this.isReady) {
      return;
    }
    this.asking = new AbortController();
    this.begin();
    try {
      if (this.model === null) {
        await this.findModel(this.asking.signal);
      }
      await this.receive();
    } catch (error) {
      this.fail(error);
    } finally {
      this.asking = null;
      this.end();
    }
  }

  begin() {
    say(byId("error"), "");
    say(byId("speed"), "");
    byId("answer").replaceChildren();
    byId("answer").setAttribute("aria-busy", "true");
    this.swapButtons(byId("send"), byId("stop"));
  }

  end() {
    byId("answer").setAttribute("aria-busy", "false");
    this.swapButtons(byId("stop"), byId("send"));
    byId("fields").disabled = !this.isReady;
    this.onAnswered();
  }

  // Whoever pressed one with the keyboard is on the other afterwards.
  swapButtons(leaving, coming) {
    const hadFocus = document.activeElement === leaving;
    leaving.hidden = true;
    coming.hidden = false;
    if (hadFocus) {
      coming.focus();
    }
  }

  async receive() {
    const { name, way } = this.model;
    const body = {
      model: name,
      ...way.prompt(byId("prompt").value),
      max_tokens: Number(byId("max-tokens").value),
      temperature: Number(byId("temperature").value),
      stream: true,
      stream_options: { include_usage: true, continuous_usage_stats: true },
    };
    const speed = new Speed(performance.now());
    const text = document.createTextNode("");
    byId("answer").append(text);
    for await (const event of answerStream(way.path, body, byId("key").value, this.asking.signal)) {
      byId("result").hidden = false;
      for (const choice of event.choices) {
        text.appendData(way.text(choice));
      }
      speed.count(performance.now(), event.usage?.completion_tokens ?? 0);
      say(byId("speed"), speed.words());
    }
  }

  fail(error) {
    const isStop = error.name === "AbortError";
    byId("error").classList.toggle("quiet", isStop);
    say(byId("error"), isStop ? "Stopped." : error.message);
    if (error.status === 401) {
      byId("key-field").hidden = false;
    }
  }
}

async function readJson(path, headers, signal) {
  const response = await fetch(path, { headers, signal });
  const body = await response.json();
  if (!response.ok) {
    throw new AnswerError(`${response.status}: ${body.error.message}.`, response.status);
  }
  return body;
}

// Time to first token, and tokens per second after what came first; both as this browser saw them.
class Speed {
  constructor(startMs) {
    this.startMs = startMs;
    this.first = null;
    this.last = null;
  }

  count(nowMs, tokens) {
    if (tokens > (this.last?.tokens ?? 0)) {
      this.last = { nowMs, tokens };
      this.first ??= this.last;
    }
  }

  words() {
    if (this.first === null) {
      return "";
    }
    const { nowMs, tokens } = this.last;
    const parts = [`first token after ${seconds((this.first.nowMs - this.startMs) / 1000)}`];
    if (tokens > this.first.tokens && nowMs > this.first.nowMs) { // events of one piece come at one time
      const perSecond = ((tokens - this.first.tokens) / (nowMs - this.first.nowMs)) * 1000;
      parts.push(`${perSecond.toFixed(perSecond < 100 ? 1 : 0)} tokens/s`);
    }
    parts.push(`${tokens} ${tokens === 1 ? "token" : "tokens"}`);
    return parts.map((part) => part.replaceAll(" ", "\u00a0")).join(" · "); // a line breaks between them only
  }
}
