// The server's HTTP API: the key, errors in one shape, and streams of server-sent events.

const KEY = "msa-key";

/** An answer that is an error, or none at all (`status` 0: the server was not reached). */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, requestId = null, retryAfter = null } = {}) {
    super(sentence(message));
    Object.assign(this, { status, code, requestId, retryAfter });
  }

  /** For a small line under the message. */
  get details() {
    const parts = [this.status ? `HTTP ${this.status}` : null, this.code, this.requestId];
    return parts.filter(Boolean).join(" · ");
  }
}

/** Begin with a capital, but leave a name that stands first as it is. */
const sentence = (message) =>
  message.replace(/^[a-z]+(?=[\s,:;])/, (word) => word.charAt(0).toUpperCase() + word.slice(1));

const unreachable = () => new ApiError("The server cannot be reached. Does msa serve still run?");

let keyHere = null; // where storage is blocked

/** The API key of this tab; empty: none. */
export function apiKey() {
  try {
    return sessionStorage.getItem(KEY) ?? keyHere ?? "";
  } catch {
    return keyHere ?? "";
  }
}

export function setApiKey(key) {
  keyHere = key || null;
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch {
    // kept in this page alone
  }
}

/** The path of a memory, or of something in it. */
export function memoryPath(memory, ...rest) {
  const parts = [memory, ...rest];
  // browsers take such a part for a step up, however it is written
  if (parts.some((part) => part === "." || part === ".."))
    throw new ApiError("a document called “.” or “..” has no address; use msa show or msa delete");
  return ["v1/memories", ...parts.map(encodeURIComponent)].join("/");
}

function headers(json) {
  const found = new Headers();
  const key = apiKey();
  // a header takes Latin-1 alone; what else was typed is surely no key of the server
  if (key) found.set("authorization", `Bearer ${/^[\x21-\x7e]+$/.test(key) ? key : "-"}`);
  if (json) found.set("content-type", "application/json");
  return found;
}

/** The error that a response holds. */
function errorOf(status, text, header) {
  let error = null;
  try {
    error = JSON.parse(text).error;
  } catch {
    // not from our server: a proxy perhaps
  }
  const message = error?.message ?? `The server answered ${status} and did not say why.`;
  return new ApiError(message, {
    status,
    code: error?.code ?? null,
    requestId: header("x-request-id"),
    retryAfter: Number(header("retry-after")) || null,
  });
}

async function send(method, path, body, signal) {
  const init = { method, headers: headers(body !== undefined), signal, cache: "no-store" };
  if (body !== undefined) init.body = JSON.stringify(body);
  let response;
  try {
    response = await fetch(path, init);
  } catch (error) {
    throw error.name === "AbortError" ? error : unreachable();
  }
  if (!response.ok) throw errorOf(response.status, await response.text(), (name) => response.headers.get(name));
  return response;
}

/** One request and the JSON of its answer. */
export async function request(method, path, body, signal) {
  return (await send(method, path, body, signal)).json();
}

/** A request whose answer is a stream: yields each event's JSON until `[DONE]`; an error event is thrown. */
export async function* stream(path, body, signal) {
  const response = await send("POST", path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new ApiError("The connection ended before the answer did. Ask again.");
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines.map((text) => text.replace(/\r$/, ""))) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        if (line !== "" || !data.length) continue;
        const text = data.join("\n");
        data = [];
        if (text === "[DONE]") return;
        const event = JSON.parse(text);
        if (event.error) {
          const requestId = response.headers.get("x-request-id");
          throw new ApiError(event.error.message, { code: event.error.code, requestId });
        }
        yield event;
      }
    }
  } catch (error) {
    throw error instanceof ApiError || error.name === "AbortError" ? error : unreachable();
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Send a file; `onProgress` hears the share that has been sent, which fetch cannot tell. */
export function upload(path, file, name, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    form.append("file", file, name);
    const sending = new XMLHttpRequest();
    sending.open("POST", path);
    headers(false).forEach((value, header) => sending.setRequestHeader(header, value));
    sending.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    sending.onload = () => {
      const { status, responseText: text } = sending;
      try {
        if (status >= 200 && status < 300) resolve(JSON.parse(text));
      } catch {
        // a proxy's page: an error as well
      }
      reject(errorOf(status, text, (header) => sending.getResponseHeader(header)));
    };
    sending.onerror = () => reject(unreachable());
    sending.onabort = () => reject(new DOMException("called off", "AbortError"));
    signal.addEventListener("abort", () => sending.abort());
    sending.send(form);
  });
}
