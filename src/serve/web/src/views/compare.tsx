// The same prompt and seeds, by the base model and by adapters, side by side.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { api, ApiError, type Job, type Lora, type Model } from "../api";
import { know, useLive, type Live } from "../live";
import { CanvasImage } from "../canvas";
import { Bar, Button, complain, Dialog, Empty, note, Problem, said, Segments, useRead } from "../parts";
import { go } from "../route";
import { duration } from "../text";
import { CompareForm } from "./compare-form";
import { columnName, link, parse, request, type Column, type Comparison } from "./compare-request";
import { Overlay } from "./overlay";

type Mode = "grid" | "slider" | "flicker";

const MODES = [
  { value: "grid", text: "Grid" },
  { value: "slider", text: "Slider" },
  { value: "flicker", text: "Flicker" },
] as const;

/** An image to edit stays here while the page does: it is too large for an address. */
let startImage: string | undefined;

type Cell = { id?: string; error?: unknown };

/** Asks for all images of a comparison; the same ones again if the server still has them. */
function useCells(comparison: Comparison): Map<string, Cell> {
  const [cells, setCells] = useState<{ token: string; map: Map<string, Cell> }>({ token: "", map: new Map() });
  useEffect(() => {
    const { token } = comparison;
    if (!token || (comparison.edits && !startImage)) return;
    let over = false;
    const map = new Map<string, Cell>();
    const wait = (seconds: number) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    const ask = async (column: Column, index: number, seed: number): Promise<Cell> => {
      for (;;) {
        try {
          const image = comparison.edits ? startImage : undefined;
          const { id } = await api.submit(request(comparison, column, seed, image), `${token}-${index}-${seed}`);
          await know(id);
          return { id };
        } catch (error) {
          // The queue is full: the rest waits here.
          if (!(error instanceof ApiError && error.status === 429) || over) return { error };
          await wait(Math.min(error.retryAfter ?? 2, 10));
        }
      }
    };
    void (async () => {
      for (const seed of comparison.seeds) {
        for (const [index, column] of comparison.columns.entries()) {
          if (over) return;
          map.set(`${index}-${seed}`, await ask(column, index, seed));
          if (!over) setCells({ token, map: new Map(map) });
        }
      }
    })();
    return () => {
      over = true;
    };
  }, [comparison.token]);
  return cells.token === comparison.token ? cells.map : new Map();
}

export function CompareView({ query }: { query: URLSearchParams }) {
  const text = query.toString();
  const comparison = useMemo(() => parse(query), [text]);
  const models = useRead(api.models, []);
  const loras = useRead(api.loras, []);
  const cells = useCells(comparison);
  const live = useLive();
  const [mode, setMode] = useState<Mode>("grid");
  const [detail, setDetail] = useState<Job>();
  const asked = comparison.token !== "";
  const result = useRef<HTMLElement>(null);
  useEffect(() => {
    // On a small screen the form fills it.
    if (asked && innerWidth <= 1080) result.current?.scrollIntoView({ block: "start" });
  }, [comparison.token]);
  if (models.error !== undefined) return <Problem error={models.error} again={models.again} />;
  return (
    <div class="compare">
      <CompareForm
        key={comparison.token}
        comparison={comparison}
        models={models.value ?? []}
        loras={loras.value ?? []}
        hasImage={startImage !== undefined}
        onImage={(image) => (startImage = image)}
        onCompare={(wanted) => go(link(wanted))}
      />
      <section class="compare-result" aria-label="Images" ref={result}>
        {asked && comparison.edits && !startImage && (
          <Problem error={new Error("the image to edit is not part of the link: choose it again")} />
        )}
        {asked ? (
          <>
            <header class="compare-head">
              <h1 class="compare-prompt">{comparison.prompt || "(empty prompt)"}</h1>
              <div class="row">
                {comparison.columns.length > 1 && <Segments label="Show as" value={mode} options={MODES} onChange={setMode} />}
                <CopyLink />
              </div>
            </header>
            <Overall comparison={comparison} cells={cells} live={live} />
            {mode === "grid" || comparison.columns.length < 2 ? (
              <Grid comparison={comparison} cells={cells} live={live} onDetail={setDetail} />
            ) : (
              <Overlay
                key={comparison.token}
                flickers={mode === "flicker"}
                columns={comparison.columns}
                seeds={comparison.seeds}
                image={(column, seed) => made(cells.get(`${column}-${seed}`), live)?.images[0]?.url}
              />
            )}
          </>
        ) : (
          <Empty title="See what an adapter changes">
            <p>Write a prompt, choose adapters, and look at the same seeds with and without them.</p>
          </Empty>
        )}
      </section>
      {detail && <Detail job={detail} models={models.value ?? []} loras={loras.value ?? []} onClose={() => setDetail(undefined)} />}
    </div>
  );
}

function made(cell: Cell | undefined, live: Live): Job | undefined {
  return cell?.id ? live.jobs.get(cell.id) : undefined;
}

function CopyLink() {
  return (
    <Button
      icon="link"
      kind="quiet"
      onClick={() => {
        navigator.clipboard?.writeText(location.href).then(
          () => note("Link copied"),
          () => note("Copy the address of this page: it leads to the same images"),
        );
      }}
    >
      Copy link
    </Button>
  );
}

/** How far all images together are. */
function Overall({ comparison, cells, live }: { comparison: Comparison; cells: Map<string, Cell>; live: Live }) {
  const jobs = [...cells.values()].map((cell) => made(cell, live));
  const open = jobs.filter((job) => job && (job.status === "queued" || job.status === "running")) as Job[];
  const total = comparison.columns.length * comparison.seeds.length;
  const done = [...cells.values()].filter((cell) => cell.error !== undefined).length + jobs.filter((job) => job && !open.includes(job)).length;
  if (open.length === 0) return null;
  return (
    <div class="overall">
      <Bar value={done} of={total} label="Images done" />
      <span class="muted">
        {done} of {total}
      </span>
      <Button icon="stop" kind="quiet" onClick={() => open.forEach((job) => void api.cancel(job.id).catch(complain))}>
        Cancel
      </Button>
    </div>
  );
}

function Grid({
  comparison,
  cells,
  live,
  onDetail,
}: {
  comparison: Comparison;
  cells: Map<string, Cell>;
  live: Live;
  onDetail: (job: Job) => void;
}) {
  return (
    <div class="grid-scroll" tabIndex={0} role="region" aria-label="Grid of images">
      <table class="grid">
        <thead>
          <tr>
            <th scope="col">
              <span class="visually-hidden">Seed</span>
            </th>
            {comparison.columns.map((column, index) => (
              <th scope="col" key={index}>
                {columnName(column)}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {comparison.seeds.map((seed) => (
            <tr key={seed}>
              <th scope="row">{seed}</th>
              {comparison.columns.map((column, index) => (
                <td key={index}>
                  <CellView
                    cell={cells.get(`${index}-${seed}`)}
                    live={live}
                    label={`${columnName(column)}, seed ${seed}`}
                    onDetail={onDetail}
                  />
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function CellView({ cell, live, label, onDetail }: { cell?: Cell; live: Live; label: string; onDetail: (job: Job) => void }) {
  if (cell?.error !== undefined) {
    const { text, hint } = said(cell.error);
    return (
      <div class="cell bad">
        <span>{text}</span>
        {hint && <small>{hint}</small>}
      </div>
    );
  }
  const job = made(cell, live);
  const image = job?.images[0];
  if (job && image) {
    return (
      <button type="button" class="cell" onClick={() => onDetail(job)} aria-label={`${label}: details`}>
        <img src={image.url} alt={label} width={image.width} height={image.height} loading="lazy" />
      </button>
    );
  }
  if (job?.status === "failed") return <div class="cell bad">{job.error?.message ?? "failed"}</div>;
  if (job?.status === "cancelled") return <div class="cell idle">cancelled</div>;
  const at = job && live.progress.get(job.id);
  const preview = job && live.previews.get(job.id);
  return (
    <div class="cell idle">
      {preview && <CanvasImage bitmap={preview} label={`${label}: preview`} />}
      <span class="cell-state">
        {at ? (
          <>
            <Bar value={at.step} of={at.of} label={`${label}: steps done`} />
            {at.step}/{at.of}
          </>
        ) : (
          (job?.status ?? "waiting")
        )}
      </span>
    </div>
  );
}

function Detail({ job, models, loras, onClose }: { job: Job; models: Model[]; loras: Lora[]; onClose: () => void }) {
  const image = job.images[0]!;
  const { request } = job;
  const model = models.find((known) => known.name === request.model);
  const lines: [string, string | undefined][] = [
    ["Prompt", request.prompt],
    ["Negative prompt", request.negative_prompt],
    ["Model", model ? `${model.name} (${model.family})` : request.model],
    ["Adapters", request.loras?.map(({ name, scale }) => `${name} × ${scale}`).join(", ") || "none"],
    ["Rank", request.loras?.map(({ name }) => loras.find((lora) => lora.name === name)?.rank ?? "?").join(", ")],
    ["Seed", String(image.seed)],
    ["Size", `${image.width} × ${image.height}`],
    ["Steps", String(request.steps ?? model?.defaults.steps ?? "")],
    ["Guidance scale", String(request.guidance ?? model?.defaults.guidance ?? "")],
    ["Attempts", job.attempts > 1 ? String(job.attempts) : undefined],
    ["Time", job.started && job.finished ? duration(job.finished - job.started) : undefined],
  ];
  const frame = useRef<HTMLDivElement>(null);
  return (
    <Dialog title="Image" onClose={onClose} wide>
      <div class="detail" ref={frame}>
        <img src={image.url} alt={request.prompt} width={image.width} height={image.height} />
        <div>
          <dl class="facts">
            {lines
              .filter(([, value]) => value)
              .map(([name, value]) => (
                <div key={name}>
                  <dt>{name}</dt>
                  <dd>{value}</dd>
                </div>
              ))}
          </dl>
          <a class="button" href={image.url} download={`${job.id}.png`}>
            Save PNG
          </a>
        </div>
      </div>
    </Dialog>
  );
}
