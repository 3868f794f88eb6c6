// Captions while they are edited: saved after a pause, over the text that was seen, kept in this browser until they are.
import { useEffect, useState } from "preact/hooks";
import { api, ApiError, type DatasetImage } from "./api";
import { said } from "./parts";

export interface Draft {
  text: string;
  /** Names the caption that this one is to replace. */
  etag: string;
  state: "dirty" | "saving" | "saved" | "conflict" | "failed";
  /** Of a conflict: what somebody else has written meanwhile. */
  theirs?: { text: string; etag: string };
  problem?: string;
}

const PAUSE = 1000;
const PREFIX = "kiln-draft:";

/** The drafts of one dataset. */
export class Captions {
  private drafts = new Map<string, Draft>();
  private timers = new Map<string, ReturnType<typeof setTimeout>>();
  private listeners = new Set<() => void>();

  constructor(
    readonly dataset: string,
    /** Told when the server has another caption than was known. */
    private readonly saved: (file: string, caption: string, etag: string) => void,
  ) {
    // What was typed and not saved when the page was left.
    for (const key of Object.keys(localStorage)) {
      const start = PREFIX + dataset + ":";
      if (!key.startsWith(start)) continue;
      const { text, etag } = JSON.parse(localStorage.getItem(key)!) as { text: string; etag: string };
      this.put(key.slice(start.length), { text, etag, state: "dirty" });
      this.later(key.slice(start.length));
    }
  }

  get(file: string): Draft | undefined {
    return this.drafts.get(file);
  }

  get unsaved(): number {
    return [...this.drafts.values()].filter(({ state }) => state !== "saved").length;
  }

  edit(image: DatasetImage, text: string): void {
    const before = this.drafts.get(image.file);
    const state = before?.state === "saving" || before?.state === "conflict" ? before.state : "dirty";
    this.put(image.file, { ...before, text, etag: before?.etag ?? image.etag!, state });
    if (state !== "conflict") this.later(image.file);
  }

  /** Saves at once. */
  flush(file: string): void {
    if (this.drafts.get(file)?.state === "dirty" || this.drafts.get(file)?.state === "failed") void this.save(file);
  }

  /** Ends a conflict. */
  settle(file: string, mine: boolean): void {
    const draft = this.drafts.get(file);
    if (!draft?.theirs) return;
    const { text, etag } = draft.theirs;
    this.saved(file, text, etag);
    if (mine) {
      this.put(file, { text: draft.text, etag, state: "dirty" });
      void this.save(file);
    } else {
      this.drop(file);
    }
  }

  subscribe(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => void this.listeners.delete(listener);
  }

  private later(file: string): void {
    clearTimeout(this.timers.get(file));
    this.timers.set(
      file,
      setTimeout(() => void this.save(file), PAUSE),
    );
  }

  private async save(file: string): Promise<void> {
    clearTimeout(this.timers.get(file));
    const draft = this.drafts.get(file);
    if (!draft || draft.state === "saving" || draft.state === "conflict" || draft.state === "saved") return;
    this.put(file, { ...draft, state: "saving", problem: undefined });
    try {
      const { text, etag } = await api.saveCaption(this.dataset, file, draft.text, draft.etag);
      this.saved(file, text, etag);
      const now = this.drafts.get(file)!;
      if (now.text === draft.text) {
        this.put(file, { ...now, etag, state: "saved" });
        setTimeout(() => this.drafts.get(file)?.state === "saved" && this.drop(file), 1500);
      } else {
        this.put(file, { ...now, etag, state: "dirty" });
        this.later(file);
      }
    } catch (error) {
      const now = this.drafts.get(file)!;
      const theirs = error instanceof ApiError && error.status === 409 ? (error.body as { error?: { current?: Draft["theirs"] } }).error?.current : undefined;
      if (theirs && theirs.text === now.text.trim()) {
        this.saved(file, theirs.text, theirs.etag); // both wrote the same
        this.drop(file);
      } else if (theirs) {
        this.put(file, { ...now, state: "conflict", theirs });
      } else {
        this.put(file, { ...now, state: "failed", problem: said(error).text });
      }
    }
  }

  private put(file: string, draft: Draft): void {
    this.drafts.set(file, draft);
    const key = PREFIX + this.dataset + ":" + file;
    if (draft.state === "saved") localStorage.removeItem(key);
    else localStorage.setItem(key, JSON.stringify({ text: draft.text, etag: draft.etag }));
    this.listeners.forEach((listener) => listener());
  }

  private drop(file: string): void {
    this.drafts.delete(file);
    localStorage.removeItem(PREFIX + this.dataset + ":" + file);
    this.listeners.forEach((listener) => listener());
  }
}

/** The page changes with the drafts. */
export function useCaptions(captions: Captions): void {
  const [, again] = useState(0);
  useEffect(() => captions.subscribe(() => again((n) => n + 1)), [captions]);
}
