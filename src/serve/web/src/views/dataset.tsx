// The images of a dataset with their captions under them.
import { useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { api, thumbnailUrl, type DatasetImage } from "../api";
import { Captions, useCaptions } from "../captions";
import { Button, complain, Empty, Field, Icon, Problem, useRead } from "../parts";
import { address, go } from "../route";
import { plural } from "../text";
import { ReplaceDialog } from "./replace";

const CHUNK = 100;
const GAP = 14;
/** Below the image: the caption and the line under it. */
const BELOW = 132;

export function DatasetView({ query }: { query: URLSearchParams }) {
  const { value: sets, error, again } = useRead(api.datasets, []);
  if (error !== undefined) return <Problem error={error} again={again} />;
  if (!sets) return null;
  if (sets.length === 0) {
    return (
      <Empty title="No datasets">
        <p>
          Folders of images appear here when the server's configuration lists them under <code>[page] datasets</code>.
        </p>
      </Empty>
    );
  }
  const chosen = sets.find((set) => set.name === query.get("set")) ?? sets[0]!;
  return (
    <div class="dataset">
      <header class="view-head row between wrap end">
        <div>
          <h1>{chosen.name}</h1>
          <p class="muted">
            {plural(chosen.images, "image")}, {chosen.captioned} with {chosen.edits ? "instructions" : "captions"}
          </p>
        </div>
        {sets.length > 1 && (
          <Field label="Dataset">
            <select value={chosen.name} onChange={(event) => go(address("dataset", { set: event.currentTarget.value }))}>
              {sets.map((set) => <option key={set.name}>{set.name}</option>)}
            </select>
          </Field>
        )}
      </header>
      <Images key={chosen.name} name={chosen.name} />
    </div>
  );
}

/** A value that follows another after a pause. */
function useCalm(value: string): string {
  const [calm, setCalm] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setCalm(value), 250);
    return () => clearTimeout(timer);
  }, [value]);
  return calm;
}

function Images({ name }: { name: string }) {
  const detail = useRead(() => api.dataset(name), [name]);
  const [searched, setSearched] = useState("");
  const [lacking, setLacking] = useState("");
  const [replacing, setReplacing] = useState(false);
  const [search, without] = [useCalm(searched), useCalm(lacking)];
  const [total, setTotal] = useState<number>();
  const [error, setError] = useState<unknown>();
  const [turn, setTurn] = useState(0);
  const [, again] = useState(0);
  const chunks = useRef(new Map<number, DatasetImage[] | "coming">());

  const captions = useMemo(
    () =>
      new Captions(name, (file, caption, etag) => {
        for (const chunk of chunks.current.values()) {
          const image = chunk !== "coming" && chunk.find((known) => known.file === file);
          if (image) Object.assign(image, { caption, etag });
        }
      }),
    [name],
  );
  useCaptions(captions);

  const want = useCallback(
    (chunk: number) => {
      if (chunks.current.has(chunk)) return;
      chunks.current.set(chunk, "coming");
      const into = chunks.current;
      api.images(name, chunk * CHUNK, CHUNK, search, without).then(
        (page) => {
          into.set(chunk, page.images);
          if (into === chunks.current) {
            setTotal(page.total);
            again((n) => n + 1);
          }
        },
        (problem) => {
          into.delete(chunk);
          setError(problem);
        },
      );
    },
    [name, search, without, turn],
  );
  useLayoutEffect(() => {
    chunks.current = new Map();
    setError(undefined);
    want(0);
  }, [want]);

  const image = (index: number): DatasetImage | undefined => {
    const chunk = chunks.current.get(Math.floor(index / CHUNK));
    return chunk === undefined || chunk === "coming" ? undefined : chunk[index % CHUNK];
  };
  const problems = detail.value?.problems ?? [];
  return (
    <>
      <div class="row wrap end dataset-tools">
        <Field label="Search">
          <input type="search" value={searched} placeholder="In names and captions" onInput={(event) => setSearched(event.currentTarget.value)} />
        </Field>
        <Field label="Without">
          <input type="search" value={lacking} placeholder="A trigger word" onInput={(event) => setLacking(event.currentTarget.value)} />
        </Field>
        <Button icon="swap" onClick={() => setReplacing(true)}>
          Find and replace
        </Button>
        {captions.unsaved > 0 && <span class="muted">{plural(captions.unsaved, "caption")} not saved yet</span>}
      </div>
      {detail.value && detail.value.tags.length > 0 && (
        <details class="more tags">
          <summary>Tags</summary>
          <div class="row wrap">
            {detail.value.tags.slice(0, 60).map(({ tag, count }) => (
              <button type="button" class="chip" key={tag} aria-pressed={searched === tag} onClick={() => setSearched(searched === tag ? "" : tag)}>
                {tag} <small>{count}</small>
              </button>
            ))}
          </div>
        </details>
      )}
      {problems.length > 0 && (
        <details class="more panel">
          <summary class="warn">
            <Icon name="warn" /> {plural(problems.length, "problem")} that training would refuse
          </summary>
          <ul>
            {problems.slice(0, 200).map((problem) => (
              <li key={problem}>{problem}</li>
            ))}
          </ul>
        </details>
      )}
      {(search || without) && total !== undefined && (
        <p class="muted" role="status">
          {plural(total, "image")} {search && <>with “{search}” </>}
          {without && <>without “{without}”</>}
        </p>
      )}
      {error !== undefined && <Problem error={error} again={() => setTurn(turn + 1)} />}
      {total !== undefined && <VirtualGrid total={total} image={image} want={want} dataset={name} captions={captions} />}
      {replacing && (
        <ReplaceDialog
          dataset={name}
          onClose={() => setReplacing(false)}
          onDone={() => {
            setTurn((before) => before + 1);
            detail.again();
          }}
        />
      )}
    </>
  );
}

/** Only what can be seen, and a little around it, is in the page. */
function VirtualGrid({
  total,
  image,
  want,
  dataset,
  captions,
}: {
  total: number;
  image: (index: number) => DatasetImage | undefined;
  want: (chunk: number) => void;
  dataset: string;
  captions: Captions;
}) {
  const box = useRef<HTMLDivElement>(null);
  const [view, setView] = useState({ width: 0, first: 0, last: 0 });
  const columns = Math.max(1, Math.floor((view.width + GAP) / ((view.width < 500 ? 150 : 200) + GAP)));
  const side = (view.width - GAP * (columns - 1)) / columns;
  const height = Math.round(side + BELOW);
  const rows = Math.ceil(total / columns);

  useLayoutEffect(() => {
    const look = () => {
      const element = box.current;
      if (!element) return;
      const { top, width } = element.getBoundingClientRect();
      const row = height + GAP;
      const first = Math.max(0, Math.floor(-top / row) - 1);
      const last = Math.ceil((innerHeight - top) / row) + 1;
      setView((before) => (before.width === width && before.first === first && before.last === last ? before : { width, first, last }));
    };
    let asked = 0;
    const soon = () => {
      cancelAnimationFrame(asked);
      asked = requestAnimationFrame(look);
    };
    look();
    addEventListener("scroll", soon, { passive: true });
    const observer = new ResizeObserver(soon);
    observer.observe(box.current!);
    return () => {
      cancelAnimationFrame(asked);
      removeEventListener("scroll", soon);
      observer.disconnect();
    };
  }, [height]);

  const from = Math.min(view.first, rows) * columns;
  const to = Math.min(total, (view.last + 1) * columns);
  useEffect(() => {
    for (let chunk = Math.floor(from / CHUNK); chunk * CHUNK < to; chunk++) want(chunk);
  }, [from, to, want]);

  const cards = [];
  for (let index = from; index < to && view.width > 0; index++) {
    const known = image(index);
    const style = {
      width: `${side}px`,
      height: `${height}px`,
      left: `${(index % columns) * (side + GAP)}px`,
      top: `${Math.floor(index / columns) * (height + GAP)}px`,
    };
    cards.push(
      <li key={known?.file ?? index} class="card" style={style} aria-setsize={total} aria-posinset={index + 1}>
        {known && <Card image={known} side={side} dataset={dataset} captions={captions} />}
      </li>,
    );
  }
  return (
    <div ref={box} class="virtual" style={{ height: `${Math.max(0, rows * (height + GAP) - GAP)}px` }}>
      <ul class="plain">{cards}</ul>
    </div>
  );
}

function Card({ image, side, dataset, captions }: { image: DatasetImage; side: number; dataset: string; captions: Captions }) {
  const draft = captions.get(image.file);
  const text = draft?.text ?? image.caption;
  const readOnly = image.etag === undefined;
  return (
    <>
      <div class="card-image" style={{ height: `${side}px` }}>
        {image.problem ? (
          <p class="bad small">{image.problem}</p>
        ) : (
          <>
            {image.original && <img src={thumbnailUrl(dataset, image.original)} alt={`Before: ${image.original}`} />}
            <img src={thumbnailUrl(dataset, image.file)} alt={image.file} />
          </>
        )}
      </div>
      {draft?.state === "conflict" && draft.theirs ? (
        <div class="conflict" role="alert">
          <p class="small">
            Somebody else wrote: <q>{draft.theirs.text || "(nothing)"}</q>
          </p>
          <div class="row">
            <Button onClick={() => captions.settle(image.file, true)}>Keep mine</Button>
            <Button onClick={() => captions.settle(image.file, false)}>Take theirs</Button>
          </div>
        </div>
      ) : (
        <textarea
          aria-label={`Caption of ${image.file}`}
          value={text}
          readOnly={readOnly}
          title={readOnly ? "This caption is in a table of the folder: edit that file" : undefined}
          spellcheck={false}
          onInput={(event) => captions.edit(image, event.currentTarget.value)}
          onBlur={() => captions.flush(image.file)}
        />
      )}
      <p class="card-foot small muted">
        <span class="clip" title={image.file}>
          {image.file}
        </span>
        <span>{draft ? <DraftState draft={draft} retry={() => captions.flush(image.file)} /> : `${image.width}×${image.height}`}</span>
      </p>
    </>
  );
}

function DraftState({ draft, retry }: { draft: NonNullable<ReturnType<Captions["get"]>>; retry: () => void }) {
  switch (draft.state) {
    case "dirty":
      return <>edited</>;
    case "saving":
      return <>saving…</>;
    case "saved":
      return (
        <span class="good">
          <Icon name="check" /> saved
        </span>
      );
    case "conflict":
      return <span class="bad">two versions</span>;
    case "failed":
      return (
        <button type="button" class="link-button bad" title={draft.problem} onClick={() => (complain(new Error(draft.problem)), retry())}>
          not saved: try again
        </button>
      );
  }
}
