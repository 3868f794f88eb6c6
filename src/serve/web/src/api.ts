// The server's API, as /openapi.json describes it.

export type Status = "queued" | "running" | "completed" | "failed" | "cancelled";

export interface LoraChoice {
  name: string;
  scale: number;
}

export interface JobRequest {
  model?: string;
  prompt: string;
  negative_prompt?: string;
  count?: number;
  seed?: number;
  width?: number;
  height?: number;
  steps?: number;
  guidance?: number;
  image_guidance?: number;
  scheduler?: string;
  loras?: LoraChoice[];
  image?: string;
  previews?: boolean;
}

export interface Failure {
  message: string;
  hint?: string;
}

export interface Made {
  url: string;
  seed: number;
  width: number;
  height: number;
}

export interface Job {
  id: string;
  status: Status;
  request: JobRequest;
  created: number;
  started?: number;
  finished?: number;
  queue_position?: number;
  step: number;
  of: number;
  attempts: number;
  error?: Failure;
  images: Made[];
}

export interface Model {
  name: string;
  family: string;
  native_size: number;
  size_step: number;
  edits: boolean;
  loaded: boolean;
  default: boolean;
  defaults: { steps: number; guidance: number; image_guidance?: number; true_guidance?: number; scheduler?: string };
  schedulers: string[];
}

export interface Lora {
  name: string;
  bytes: number;
  rank?: number;
  layers: number;
  changes_text: boolean;
  fits: string[];
  in_memory: boolean;
  uploaded: boolean;
}

export interface ServerStatus {
  device: string;
  queue: { depth: number; limit: number };
  running: string[];
  memory: { device_bytes?: number; host_bytes: number };
  version: string;
}

export interface Pair {
  pair: string;
  prompt: string;
  left: string;
  right: string;
}

export type Choice = "left" | "right" | "tie" | "both_bad";

export interface Revealed {
  left: { name: string };
  right: { name: string };
}

export interface Standing {
  name: string;
  strength: number;
  low: number;
  high: number;
  votes: number;
  wins: number;
  ties: number;
  opponents: { name: string; wins: number; losses: number; ties: number }[];
}

export interface Voted {
  prompt: string;
  votes: number;
}

export type RunState = "running" | "stopping" | "finished" | "ended";

export interface Run {
  name: string;
  state: RunState;
  step: number;
  max_steps: number;
  model: string;
  objective: string;
  updated: number;
  loss?: number;
  validation_loss?: number;
  seconds_per_step?: number;
  eta_seconds?: number;
  memory_mib?: number;
  device_memory_mib?: number;
  grid?: string;
}

export interface RunDetail extends Run {
  config: string;
  checkpoints: { step: number; bytes: number; validation_loss?: number; adapter: boolean }[];
  samples: { file: string; step: number }[];
  best_step?: number;
  unreadable_lines: number;
}

export interface Started {
  run: string;
  process: number;
  is_running: boolean;
  problem?: string;
}

export interface Startable {
  enabled: boolean;
  takes_text: boolean;
  configs: { name: string; run: string; text: string }[];
  started?: Started;
}

export interface Curve {
  records: Record<string, unknown>[];
  next: string;
  restarted: boolean;
  unreadable: number;
}

export interface Dataset {
  name: string;
  images: number;
  captioned: number;
  edits: boolean;
}

export interface DatasetDetail extends Dataset {
  problems: string[];
  unused: string[];
  tags: { tag: string; count: number }[];
}

export interface DatasetImage {
  file: string;
  original?: string;
  width: number;
  height: number;
  bytes: number;
  caption: string;
  etag?: string;
  problem?: string;
}

export interface DatasetPage {
  total: number;
  offset: number;
  images: DatasetImage[];
}

export interface Replaced {
  changes: { file: string; before: string; after: string; etag: string }[];
  read_only: number;
  token: string;
  done: boolean;
}

const BASE = "/kiln/v1";

/** What the server answered instead of what was asked for. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly hint?: string,
    readonly body?: unknown,
    readonly retryAfter?: number,
  ) {
    super(message);
  }
}

async function failure(response: Response): Promise<ApiError> {
  const text = await response.text();
  let body: unknown;
  try {
    body = JSON.parse(text);
  } catch {
    return new ApiError(response.status, text.slice(0, 300) || `${response.status} ${response.statusText}`);
  }
  const error = (body as { error?: Failure }).error;
  const retry = Number(response.headers.get("retry-after"));
  const message = error?.message ?? `${response.status} ${response.statusText}`;
  return new ApiError(response.status, message, error?.hint, body, Number.isFinite(retry) ? retry : undefined);
}

export async function call<T>(method: string, path: string, body?: unknown, headers: Record<string, string> = {}): Promise<T> {
  const json = body !== undefined && !(body instanceof Blob) && typeof body !== "string";
  let response: Response;
  try {
    response = await fetch(BASE + path, {
      method,
      headers: { ...(json ? { "content-type": "application/json" } : {}), ...headers },
      body: json ? JSON.stringify(body) : (body as BodyInit | undefined),
    });
  } catch {
    throw new ApiError(0, "the server does not answer");
  }
  if (!response.ok) throw await failure(response);
  const kind = response.headers.get("content-type") ?? "";
  return (kind.includes("json") ? await response.json() : undefined) as T;
}

const part = encodeURIComponent;

export const api = {
  status: () => call<ServerStatus>("GET", "/status"),
  models: () => call<Model[]>("GET", "/models"),
  load: (name: string) => call<void>("POST", `/models/${part(name)}/load`),
  unload: (name: string) => call<void>("POST", `/models/${part(name)}/unload`),
  loras: () => call<Lora[]>("GET", "/loras"),
  uploadLora: (name: string, file: Blob) =>
    call<Lora>("POST", `/loras?name=${part(name)}`, file, { "content-type": "application/octet-stream" }),
  removeLora: (name: string) => call<void>("DELETE", `/loras/${part(name)}`),
  submit: (request: JobRequest, key: string) => call<{ id: string }>("POST", "/jobs", request, { "idempotency-key": key }),
  jobs: () => call<Job[]>("GET", "/jobs?limit=200"),
  job: (id: string) => call<Job>("GET", `/jobs/${part(id)}`),
  cancel: (id: string) => call<void>("DELETE", `/jobs/${part(id)}`),
  pair: (prompt?: string) => call<Pair>("POST", "/pairs", prompt ? { prompt } : {}),
  vote: (pair: string, choice: Choice) => call<Revealed>("POST", "/votes", { pair, choice }),
  leaderboard: (prompt?: string) => call<Standing[]>("GET", "/leaderboard" + (prompt ? `?prompt=${part(prompt)}` : "")),
  votedPrompts: () => call<Voted[]>("GET", "/leaderboard/prompts"),
  runs: () => call<Run[]>("GET", "/runs"),
  run: (name: string) => call<RunDetail>("GET", `/runs/${part(name)}`),
  metrics: (name: string, after?: string) =>
    call<Curve>("GET", `/runs/${part(name)}/metrics` + (after ? `?after=${part(after)}` : "")),
  startable: () => call<Startable>("GET", "/configs"),
  startRun: (start: { config?: string; toml?: string; name?: string }) => call<Started>("POST", "/runs", start),
  stopRun: (name: string) => call<void>("POST", `/runs/${part(name)}/stop`),
  serveCheckpoint: (name: string, step: number) =>
    call<Lora>("POST", `/runs/${part(name)}/checkpoints/${step}/serve`),
  datasets: () => call<Dataset[]>("GET", "/datasets"),
  dataset: (name: string) => call<DatasetDetail>("GET", `/datasets/${part(name)}`),
  images: (name: string, offset: number, limit: number, search: string, without: string) => {
    const query = new URLSearchParams({ offset: String(offset), limit: String(limit) });
    if (search) query.set("search", search);
    if (without) query.set("without", without);
    return call<DatasetPage>("GET", `/datasets/${part(name)}/images?${query}`);
  },
  saveCaption: (name: string, file: string, text: string, etag: string) =>
    call<{ text: string; etag: string }>("PUT", `/datasets/${part(name)}/images/${part(file)}/caption`, text, {
      "content-type": "text/plain; charset=utf-8",
      "if-match": etag,
    }),
  replace: (name: string, find: string, replace: string, preview: boolean, token?: string) =>
    call<Replaced>("POST", `/datasets/${part(name)}/replace`, { find, replace, preview, token }),
};

export const sampleUrl = (run: string, file: string) => `${BASE}/runs/${part(run)}/samples/${part(file)}`;
export const thumbnailUrl = (set: string, file: string) => `${BASE}/datasets/${part(set)}/images/${part(file)}/thumbnail`;
export const boardCsv = (prompt?: string) => `${BASE}/leaderboard.csv` + (prompt ? `?prompt=${part(prompt)}` : "");
export const EVENTS = BASE + "/events";
