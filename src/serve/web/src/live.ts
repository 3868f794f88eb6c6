// What the server tells by itself: one stream of events for the whole page.
import { useEffect, useState } from "preact/hooks";
import { api, EVENTS, type Job, type Made, type Failure, type RunState } from "./api";

export interface Progress {
  step: number;
  of: number;
  eta?: number;
}

/** A run has changed. */
export interface RunChange {
  name: string;
  state: RunState;
  bytes: number;
}

type Listener = () => void;

const listeners = new Set<Listener>();
const runListeners = new Set<(change: RunChange) => void>();
const jobs = new Map<string, Job>();
const progress = new Map<string, Progress>();
const previews = new Map<string, ImageBitmap>();
let connected: boolean | undefined;
let scheduled = false;

function changed(): void {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    listeners.forEach((listener) => listener());
  });
}

async function refresh(id: string): Promise<void> {
  try {
    jobs.set(id, await api.job(id));
    changed();
  } catch {
    // it expired meanwhile; the list will say
  }
}

/** Sees to it that a job is known. */
export async function know(id: string): Promise<void> {
  if (jobs.has(id)) return;
  jobs.set(id, await api.job(id));
  changed();
}

/** Reads all jobs anew: at the start, and after the stream was broken. */
export async function refreshJobs(): Promise<void> {
  const all = await api.jobs();
  jobs.clear();
  all.forEach((job) => jobs.set(job.id, job));
  changed();
}

async function preview(id: string, base64: string): Promise<void> {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes]));
  previews.get(id)?.close();
  previews.set(id, bitmap);
  changed();
}

interface Told {
  job: string;
  position?: number;
  step?: number;
  of?: number;
  eta_seconds?: number;
  png?: string;
  images?: Made[];
  error?: Failure;
}

function told(kind: string, event: Told): void {
  const job = jobs.get(event.job);
  if (!job) {
    if (kind !== "preview") void refresh(event.job);
    return;
  }
  switch (kind) {
    case "queued":
      jobs.set(job.id, { ...job, status: "queued", queue_position: event.position });
      break;
    case "started":
      jobs.set(job.id, { ...job, status: "running", queue_position: undefined, started: job.started ?? Date.now() / 1000 });
      break;
    case "progress":
      progress.set(job.id, { step: event.step ?? 0, of: event.of ?? 0, eta: event.eta_seconds });
      if (job.status === "queued") jobs.set(job.id, { ...job, status: "running" });
      break;
    case "preview":
      if (event.png) void preview(job.id, event.png);
      return;
    default:
      progress.delete(job.id);
      previews.get(job.id)?.close();
      previews.delete(job.id);
      void refresh(job.id);
  }
  changed();
}

/** Opens the stream. The browser opens it again by itself when it breaks. */
export function connect(): () => void {
  void refreshJobs().catch(() => {});
  const source = new EventSource(EVENTS);
  source.onopen = () => {
    connected = true;
    changed();
    void refreshJobs().catch(() => {});
    runListeners.forEach((listener) => listener({ name: "", state: "ended", bytes: 0 }));
  };
  source.onerror = () => {
    connected = false;
    changed();
    // A stream that the server refused stays closed: try again.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), 5000);
  };
  for (const kind of ["queued", "started", "progress", "preview", "completed", "failed", "cancelled"]) {
    source.addEventListener(kind, (event) => told(kind, JSON.parse((event as MessageEvent<string>).data) as Told));
  }
  source.addEventListener("run", (event) => {
    const change = JSON.parse((event as MessageEvent<string>).data) as RunChange;
    runListeners.forEach((listener) => listener(change));
  });
  return () => source.close();
}

export interface Live {
  connected: boolean | undefined;
  jobs: Map<string, Job>;
  progress: Map<string, Progress>;
  previews: Map<string, ImageBitmap>;
}

/** All jobs and what is known of them, always the newest. */
export function useLive(): Live {
  const [, again] = useState(0);
  useEffect(() => {
    const listener = () => again((n) => n + 1);
    listeners.add(listener);
    return () => void listeners.delete(listener);
  }, []);
  return { connected, jobs, progress, previews };
}

/** Calls `told` when a run changes; with an empty name when any may have, after the stream was broken. */
export function useRunChanges(told: (change: RunChange) => void): void {
  useEffect(() => {
    runListeners.add(told);
    return () => void runListeners.delete(told);
  }, [told]);
}
