// What is compared, as it stands in the address: a link asks for the same images again.
import type { JobRequest, LoraChoice } from "../api";

/** A column: the adapters that its images wear; none for the base model. */
export type Column = LoraChoice[];

export interface Comparison {
  model: string;
  prompt: string;
  negative: string;
  seeds: number[];
  columns: Column[];
  width?: number;
  height?: number;
  steps?: number;
  guidance?: number;
  scheduler?: string;
  /** Whether an image is to be edited; it is not part of the address. */
  edits: boolean;
  /** Names this comparison: with it the server knows the jobs again. */
  token: string;
}

const LONGEST = 24;

export function columnText(column: Column): string {
  return column.map(({ name, scale }) => `${name}@${scale}`).join("+");
}

export function columnName(column: Column): string {
  if (column.length === 0) return "Base model";
  return column.map(({ name, scale }) => (scale === 1 ? name : `${name} × ${scale}`)).join(" + ");
}

function column(text: string): Column {
  return text
    .split("+")
    .filter((one) => one !== "")
    .map((one) => {
      const at = one.lastIndexOf("@");
      const scale = at < 0 ? 1 : Number(one.slice(at + 1));
      return { name: at < 0 ? one : one.slice(0, at), scale: Number.isFinite(scale) ? scale : 1 };
    });
}

/** Numbers and ranges: `0, 3, 10-12`. */
export function seeds(text: string): number[] {
  const found: number[] = [];
  for (const part of text.split(/[\s,;]+/)) {
    const range = /^(\d{1,15})(?:-(\d{1,15}))?$/.exec(part);
    if (!range) continue;
    const first = Number(range[1]);
    const last = range[2] === undefined ? first : Number(range[2]);
    for (let seed = first; seed <= last && found.length < LONGEST; seed++) found.push(seed);
  }
  return [...new Set(found)];
}

function positive(text: string | null): number | undefined {
  const value = Number(text);
  return text && Number.isFinite(value) && value >= 0 ? value : undefined;
}

export function parse(query: URLSearchParams): Comparison {
  const columns = query.getAll("column").map(column);
  return {
    model: query.get("model") ?? "",
    prompt: query.get("prompt") ?? "",
    negative: query.get("negative") ?? "",
    seeds: seeds(query.get("seeds") ?? "0-3"),
    columns: columns.length > 0 ? columns : [[]],
    width: positive(query.get("width")),
    height: positive(query.get("height")),
    steps: positive(query.get("steps")),
    guidance: positive(query.get("guidance")),
    scheduler: query.get("scheduler") ?? undefined,
    edits: query.has("edits"),
    token: query.get("token") ?? "",
  };
}

export function link(comparison: Comparison): string {
  const query = new URLSearchParams();
  const put = (key: string, value: string | number | undefined) => {
    if (value !== undefined && value !== "") query.append(key, String(value));
  };
  put("model", comparison.model);
  put("prompt", comparison.prompt);
  put("negative", comparison.negative);
  put("seeds", comparison.seeds.join(","));
  comparison.columns.forEach((one) => query.append("column", columnText(one)));
  put("width", comparison.width);
  put("height", comparison.height);
  put("steps", comparison.steps);
  put("guidance", comparison.guidance);
  put("scheduler", comparison.scheduler);
  if (comparison.edits) query.append("edits", "1");
  put("token", comparison.token);
  return `#/compare?${query}`;
}

export function request(comparison: Comparison, column: Column, seed: number, image?: string): JobRequest {
  const { model, prompt, negative, width, height, steps, guidance, scheduler } = comparison;
  return {
    model: model || undefined,
    prompt,
    negative_prompt: negative || undefined,
    seed,
    width,
    height,
    steps,
    guidance,
    scheduler,
    loras: column.length > 0 ? column : undefined,
    image,
    previews: true,
  };
}

/** A name that no other comparison has. */
export function freshToken(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => byte.toString(36).padStart(2, "0")).join("");
}
