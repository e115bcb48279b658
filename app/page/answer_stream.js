// An answer of the API, event by event. Takes a path and a body, gives what the events hold, or throws one line that says
// what went wrong. Knows nothing of what an event means.

export class AnswerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export function authorization(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

// Yields every `data:` as an object, in order; returns at [DONE].
export async function* answerStream(path, body, key, signal) {
  const response = await send(path, body, key, signal);
  if (!response.ok) {
    throw await refusal(response);
  }
  for await (const data of dataOf(response.body)) {
    if (data === "[DONE]") {
      return;
    }
    const event = JSON.parse(data);
    if (event.error) {
      throw new AnswerError(`The answer broke off: ${event.error.message}`);
    }
    yield event;
  }
  throw new AnswerError("The connection was lost before the answer's end.");
}

async function send(path, body, key, signal) {
  const headers = { "content-type": "application/json", ...authorization(key) };
  try {
    return await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  } catch (error) {
    throw lost(error);
  }
}

// What a status other than 2xx says, with when to come back where it says so.
async function refusal(response) {
  const body = await response.json().catch(() => null);
  const reason = body?.error?.message ?? response.statusText;
  const retryAfter = response.headers.get("retry-after");
  const again = retryAfter ? `. Try again in ${retryAfter} s` : "";
  return new AnswerError(`${response.status}: ${reason}${again}.`, response.status);
}

// Comments (": keep-alive") are skipped: they have no data.
async function* dataOf(stream) {
  let rest = "";
  try {
    const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
      const frames = (rest + piece.value).split("\n\n");
      rest = frames.pop();
      yield* frames.filter((frame) => frame.startsWith("data: ")).map((frame) => frame.slice("data: ".length));
    }
  } catch (error) {
    throw lost(error);
  }
}

function lost(error) {
  return error.name === "AbortError" ? error : new AnswerError("The connection to the server was lost.");
}
