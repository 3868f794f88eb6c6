// Parts that several views are made of.
import type { ComponentChildren, JSX } from "preact";
import { useCallback, useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { ApiError } from "./api";

const PATHS: Record<string, string> = {
  compare: "M4 5h7v14H4zM13 5h7v14h-7zM12 2v20",
  vote: "M7 11v9H4v-9zM7 11l4-8a2 2 0 0 1 2 2v4h5a2 2 0 0 1 2 2.300l-1 6A2 2 0 0 1 17 20H7",
  board: "M5 20v-7h4v7M10 20V5h4v15M15 20v-10h4v10M3 20h18",
  runs: "M3 4v16h18M6 15l4-5 3 3 5-7",
  dataset: "M3 5h18v14H3zM3 15l5-5 4 4 3-3 6 6M15.500 9h.01",
  queue: "M4 6h16M4 12h16M4 18h10",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.500 1.500M17.500 17.500 19 19M5 19l1.500-1.500M17.500 6.500 19 5",
  moon: "M20 14.500A8.500 8.500 0 1 1 9.500 4a7 7 0 0 0 10.500 10.500z",
  system: "M3 5h18v11H3zM8 20h8M12 16v4",
  close: "M6 6l12 12M18 6 6 18",
  plus: "M12 5v14M5 12h14",
  stop: "M7 7h10v10H7z",
  play: "M8 5l11 7-11 7z",
  link: "M10 14a4 4 0 0 0 6 0l3-3a4 4 0 0 0-6-6l-1 1M14 10a4 4 0 0 0-6 0l-3 3a4 4 0 0 0 6 6l1-1",
  search: "M10.500 4a6.500 6.500 0 1 0 0 13 6.500 6.500 0 0 0 0-13zM15.500 15.500 21 21",
  upload: "M12 16V4M7 9l5-5 5 5M4 17v3h16v-3",
  check: "M5 12.500l5 5L19 7",
  warn: "M12 4 2.500 20h19zM12 10v5M12 17.500v.500",
  swap: "M4 8h15l-4-4M20 16H5l4 4",
};

export function Icon({ name }: { name: string }) {
  return (
    <svg class="icon" viewBox="0 0 24 24" aria-hidden="true" fill="none" stroke="currentColor" stroke-width="1.8" stroke-linecap="round" stroke-linejoin="round">
      <path d={PATHS[name]} />
    </svg>
  );
}

export function Button({
  icon,
  kind = "",
  children,
  ...rest
}: { icon?: string; kind?: "" | "primary" | "danger" | "quiet"; children?: ComponentChildren } & JSX.IntrinsicElements["button"]) {
  return (
    <button type="button" {...rest} class={`button ${kind} ${rest.class ?? ""}`}>
      {icon && <Icon name={icon} />}
      {children}
    </button>
  );
}

/** A label above a control, which is its child. */
export function Field({ label, hint, children }: { label: string; hint?: string; children: ComponentChildren }) {
  return (
    <label class="field">
      <span class="field-label">{label}</span>
      {children}
      {hint && <span class="field-hint">{hint}</span>}
    </label>
  );
}

/** One of several, side by side. */
export function Segments<T extends string>({
  label,
  value,
  options,
  onChange,
}: {
  label: string;
  value: T;
  options: readonly { value: T; text: string }[];
  onChange: (value: T) => void;
}) {
  return (
    <div class="segments" role="group" aria-label={label}>
      {options.map((option) => (
        <button type="button" key={option.value} aria-pressed={option.value === value} onClick={() => onChange(option.value)}>
          {option.text}
        </button>
      ))}
    </div>
  );
}

export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <svg viewBox="0 0 64 64" aria-hidden="true" class="empty-art">
        <path d="M8 56V30a24 24 0 0 1 48 0v26z" class="empty-kiln" />
        <path d="M32 24c2 7 11 10 11 20a11 11 0 0 1-22 0c0-5 3-7 4-11 3 2 4 4 4 6 3-3 4-9 3-15z" class="empty-fire" />
      </svg>
      <h2>{title}</h2>
      <div class="empty-text">{children}</div>
    </div>
  );
}

/** An error as the server says it, with the next move. */
export function Problem({ error, again }: { error: unknown; again?: () => void }) {
  const { text, hint } = said(error);
  return (
    <div class="problem" role="alert">
      <Icon name="warn" />
      <div>
        <p>{text}</p>
        {hint && <p class="muted">{hint}</p>}
      </div>
      {again && <Button onClick={again}>Try again</Button>}
    </div>
  );
}

export function said(error: unknown): { text: string; hint?: string } {
  if (error instanceof ApiError) return { text: error.message, hint: error.hint };
  return { text: error instanceof Error ? error.message : String(error) };
}

export function Bar({ value, of, label }: { value: number; of: number; label: string }) {
  return <progress class="bar" value={of > 0 ? Math.min(value, of) : 0} max={of > 0 ? of : 1} aria-label={label} />;
}

/** What `read` finds, and again when `keys` change. What was there stays until the new is. */
export function useRead<T>(read: () => Promise<T>, keys: readonly unknown[]) {
  const [found, setFound] = useState<{ value?: T; error?: unknown; key: string }>({ key: "" });
  const key = JSON.stringify(keys);
  const current = useRef(0);
  const again = useCallback(() => {
    const turn = ++current.current;
    read().then(
      (value) => turn === current.current && setFound({ value, key }),
      (error: unknown) => turn === current.current && setFound((before) => ({ value: before.key === key ? before.value : undefined, error, key })),
    );
  }, [key]);
  useEffect(again, [again]);
  const fresh = found.key === key;
  return { value: fresh ? found.value : undefined, error: fresh ? found.error : undefined, again };
}

/** A dialog over the page. It takes the focus and gives it back. */
export function Dialog({ title, onClose, children, wide }: { title: string; onClose: () => void; children: ComponentChildren; wide?: boolean }) {
  const element = useRef<HTMLDialogElement>(null);
  useLayoutEffect(() => element.current?.showModal(), []);
  return (
    <dialog
      ref={element}
      class={wide ? "dialog wide" : "dialog"}
      aria-label={title}
      onClose={onClose}
      onClick={(event) => event.target === element.current && element.current?.close()}
    >
      <div class="dialog-body">
        <header class="dialog-head">
          <h2>{title}</h2>
          <Button kind="quiet" icon="close" aria-label="Close" onClick={() => element.current?.close()} />
        </header>
        {children}
      </div>
    </dialog>
  );
}

// Short messages at the edge of the page.

interface Notice {
  id: number;
  text: string;
  hint?: string;
  bad: boolean;
  undo?: () => void;
}

let notices: Notice[] = [];
let number = 0;
const noticed = new Set<() => void>();

function post(notice: Omit<Notice, "id">): void {
  const id = ++number;
  notices = [...notices.slice(-3), { ...notice, id }];
  noticed.forEach((listener) => listener());
  setTimeout(() => dismiss(id), notice.bad || notice.undo ? 12000 : 4000);
}

function dismiss(id: number): void {
  notices = notices.filter((notice) => notice.id !== id);
  noticed.forEach((listener) => listener());
}

export const note = (text: string, undo?: () => void) => post({ text, bad: false, undo });

export function complain(error: unknown): void {
  post({ ...said(error), bad: true });
}

export function Notices() {
  const [, again] = useState(0);
  useEffect(() => {
    const listener = () => again((n) => n + 1);
    noticed.add(listener);
    return () => void noticed.delete(listener);
  }, []);
  return (
    <div class="notices" role="status" aria-live="polite">
      {notices.map((notice) => (
        <div key={notice.id} class={notice.bad ? "notice bad" : "notice"}>
          <span>
            {notice.text}
            {notice.hint && <small>{notice.hint}</small>}
          </span>
          {notice.undo && (
            <Button
              onClick={() => {
                notice.undo?.();
                dismiss(notice.id);
              }}
            >
              Undo
            </Button>
          )}
          <Button kind="quiet" icon="close" aria-label="Dismiss" onClick={() => dismiss(notice.id)} />
        </div>
      ))}
    </div>
  );
}
