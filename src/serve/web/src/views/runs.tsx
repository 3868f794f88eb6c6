// Training runs: their state, losses and samples.
import { useCallback, useEffect, useMemo, useRef, useState } from "preact/hooks";
import { api, sampleUrl, type Run, type RunDetail } from "../api";
import { Chart, smoothed, type Series } from "../chart";
import { useRunChanges } from "../live";
import { Bar, Button, complain, Dialog, Empty, note, Problem, Segments, useRead } from "../parts";
import { address, go } from "../route";
import { ago, bytes, duration, number } from "../text";
import { StartRun } from "./start";

const STATES = { running: "Running", stopping: "Stopping", finished: "Finished", ended: "Stopped early" } as const;

export function RunsView({ query }: { query: URLSearchParams }) {
  const { value: runs, error, again } = useRead(api.runs, []);
  useRunChanges(again);
  if (error !== undefined && !runs) return <Problem error={error} again={again} />;
  if (!runs) return null;
  if (runs.length === 0) {
    return (
      <Empty title="No runs yet">
        <p>
          Runs appear here when they are in a folder that the server's configuration lists under <code>[page] runs</code>. The
          quickstart makes one in a minute:
        </p>
        <pre>kiln train --config configs/quickstart.toml</pre>
        <StartRun runs={runs} again={again} />
      </Empty>
    );
  }
  const chosen = runs.find((run) => run.name === query.get("run")) ?? runs[0]!;
  return (
    <div class="runs">
      <section aria-label="Runs" class="run-list">
        <h1>Runs</h1>
        <StartRun runs={runs} again={again} />
        <ul>
          {runs.map((run) => (
            <li key={run.name}>
              <a href={address("runs", { run: run.name })} class="run-card" aria-current={run === chosen ? "true" : undefined}>
                {run.grid ? <img src={sampleUrl(run.name, run.grid)} alt="" loading="lazy" /> : <span class="run-blank" />}
                <span class="run-card-text">
                  <strong>{run.name}</strong>
                  <span class="small muted">
                    <State run={run} /> · step {run.step}
                    {run.max_steps > 0 && ` of ${run.max_steps}`}
                  </span>
                </span>
              </a>
            </li>
          ))}
        </ul>
      </section>
      <RunPage key={chosen.name} run={chosen} />
    </div>
  );
}

function State({ run }: { run: Run }) {
  return <span class={`run-state ${run.state}`}>{STATES[run.state]}</span>;
}

function RunPage({ run }: { run: Run }) {
  const { value: detail, error, again } = useRead(() => api.run(run.name), [run.name]);
  const [kept, setKept] = useState<RunDetail>();
  useEffect(() => {
    if (detail) setKept(detail);
  }, [detail]);
  useEffect(again, [run.updated, run.state]);
  if (error !== undefined && !kept) return <Problem error={error} again={again} />;
  const live = run.state === "running" || run.state === "stopping";
  return (
    <article class="run" aria-label={run.name}>
      <header class="view-head row between wrap">
        <div>
          <h2 class="run-name">{run.name}</h2>
          <p class="muted small">
            <State run={run} /> · {run.model || "unknown model"} · {ago(run.updated)}
          </p>
        </div>
        {live && <Stop run={run} />}
      </header>
      {run.max_steps > 0 && live && <Bar value={run.step} of={run.max_steps} label="Steps done" />}
      <dl class="tiles">
        <Tile name="Step" value={run.max_steps > 0 ? `${run.step} / ${run.max_steps}` : String(run.step)} />
        <Tile name="Training loss" value={number(run.loss)} />
        <Tile name="Held-out loss" value={number(run.validation_loss)} />
        <Tile name="Time per step" value={run.seconds_per_step === undefined ? "–" : duration(run.seconds_per_step)} />
        {run.eta_seconds !== undefined && <Tile name="Time left" value={duration(run.eta_seconds)} />}
        {run.memory_mib !== undefined && <Tile name="Memory" value={bytes(run.memory_mib * 1048576)} />}
        {run.device_memory_mib !== undefined && <Tile name="GPU memory" value={bytes(run.device_memory_mib * 1048576)} />}
      </dl>
      <Loss name={run.name} />
      {kept && <Samples run={kept} />}
      {kept && <Checkpoints run={kept} />}
      {kept && kept.unreadable_lines > 0 && <p class="muted small">{kept.unreadable_lines} lines of its metrics cannot be read.</p>}
      {kept && (
        <details class="more panel">
          <summary>Configuration</summary>
          <pre class="config" tabIndex={0} aria-label="Configuration as it was written">{kept.config}</pre>
        </details>
      )}
    </article>
  );
}

function Tile({ name, value }: { name: string; value: string }) {
  return (
    <div class="tile">
      <dt>{name}</dt>
      <dd>{value}</dd>
    </div>
  );
}

function Stop({ run }: { run: Run }) {
  const [asks, setAsks] = useState(false);
  return (
    <>
      <Button kind="danger" icon="stop" disabled={run.state === "stopping"} onClick={() => setAsks(true)}>
        {run.state === "stopping" ? "Stopping…" : "Stop"}
      </Button>
      {asks && (
        <Dialog title={`Stop ${run.name}?`} onClose={() => setAsks(false)}>
          <p>It stops after the current step and saves a checkpoint. To resume it later:</p>
          <pre>kiln train --resume checkpoints/{run.name}</pre>
          <div class="row end">
            <Button onClick={() => setAsks(false)}>Keep training</Button>
            <Button
              kind="danger"
              onClick={() => {
                setAsks(false);
                api.stopRun(run.name).then(() => note("Stops after this step"), complain);
              }}
            >
              Stop
            </Button>
          </div>
        </Dialog>
      )}
    </>
  );
}

type Kind = "loss" | "levels" | "rate" | "gradient";

const KINDS = [
  { value: "loss", text: "Loss" },
  { value: "levels", text: "By level" },
  { value: "rate", text: "Rate" },
  { value: "gradient", text: "Gradient" },
] as const;

const LEVEL_COLORS = ["--curve-1", "--curve-2", "--curve-3", "--curve-4", "--curve-5", "--curve-6"];

function points(records: Record<string, unknown>[], key: string): [number, number][] {
  return records.flatMap((record) => {
    const [x, y] = [record.step, record[key]];
    return typeof x === "number" && typeof y === "number" && Number.isFinite(y) ? [[x, y] as [number, number]] : [];
  });
}

/** The curves of a run, to which new points are added as they are written. */
function Loss({ name }: { name: string }) {
  const [records, setRecords] = useState<Record<string, unknown>[]>([]);
  const [kind, setKind] = useState<Kind>("loss");
  const [log, setLog] = useState(false);
  const [smooth, setSmooth] = useState(0.6);
  const at = useRef<string>(undefined);
  const reading = useRef(false);
  const read = useCallback(async () => {
    if (reading.current) return;
    reading.current = true;
    try {
      const curve = await api.metrics(name, at.current);
      at.current = curve.next;
      if (curve.restarted) setRecords(curve.records);
      else if (curve.records.length > 0) setRecords((before) => [...before, ...curve.records]);
    } catch {
      // the next change asks again
    } finally {
      reading.current = false;
    }
  }, [name]);
  useEffect(() => void read(), [read]);
  useRunChanges(useCallback((change) => void ((change.name === name || change.name === "") && read()), [name, read]));
  const series = useMemo((): Series[] => {
    if (kind === "rate") return [{ name: "learning rate", color: "--curve-1", points: points(records, "learning_rate") }];
    if (kind === "gradient") return [{ name: "gradient norm", color: "--curve-1", points: points(records, "grad_norm") }];
    if (kind === "levels") {
      const at = new Map<string, [number, number][]>();
      for (const { step, validation_loss_at_level: levels } of records) {
        if (typeof step !== "number" || typeof levels !== "object" || levels === null) continue;
        for (const [level, loss] of Object.entries(levels)) {
          if (typeof loss === "number") at.set(level, [...(at.get(level) ?? []), [step, loss]]);
        }
      }
      return [...at].map(([level, points], index) => ({ name: level, color: LEVEL_COLORS[index % LEVEL_COLORS.length]!, points, dots: true }));
    }
    const training = points(records, "loss");
    const all: Series[] = [{ name: "training", color: "--curve-1", points: smoothed(training, smooth) }];
    if (smooth > 0) all.unshift({ name: "as recorded", color: "--curve-1", points: training, faint: true });
    const held = points(records, "validation_loss");
    if (held.length > 0) all.push({ name: "held-out", color: "--curve-2", points: held, dots: true });
    return all;
  }, [records, kind, smooth]);
  return (
    <section class="panel" aria-label="Curves">
      <div class="row between wrap">
        <Segments label="Curve" value={kind} options={KINDS} onChange={setKind} />
        <div class="row wrap">
          <label class="check">
            <input type="checkbox" checked={log} onChange={(event) => setLog(event.currentTarget.checked)} /> Log scale
          </label>
          {kind === "loss" && (
            <label class="check">
              Smooth
              <input type="range" min={0} max={0.98} step={0.02} value={smooth} onInput={(event) => setSmooth(event.currentTarget.valueAsNumber)} />
            </label>
          )}
        </div>
      </div>
      {records.length > 0 ? <Chart series={series} log={log} label={`${KINDS.find((one) => one.value === kind)!.text} of ${name}`} /> : <p class="muted">Nothing recorded yet.</p>}
    </section>
  );
}

function Samples({ run }: { run: RunDetail }) {
  const [chosen, setChosen] = useState<number>();
  const [large, setLarge] = useState(false);
  if (run.samples.length === 0) return null;
  const last = run.samples.length - 1;
  const at = Math.min(chosen ?? last, last);
  const sample = run.samples[at]!;
  const label = `Samples after ${sample.step} steps`;
  return (
    <section class="panel" aria-label="Samples">
      <div class="row between wrap">
        <h3>Samples at step {sample.step}</h3>
        {last > 0 && (
          <label class="check">
            Step
            <input
              type="range"
              min={0}
              max={last}
              value={at}
              aria-valuetext={`step ${sample.step}`}
              onInput={(event) => {
                const value = event.currentTarget.valueAsNumber;
                setChosen(value === last ? undefined : value);
              }}
            />
          </label>
        )}
      </div>
      <button type="button" class="sample" onClick={() => setLarge(true)} aria-label={`${label}: enlarge`}>
        <img src={sampleUrl(run.name, sample.file)} alt={label} />
      </button>
      <p class="muted small">One row per prompt. In each pair of columns, the left is without the trained weights, the right with them.</p>
      {large && (
        <Dialog title={label} onClose={() => setLarge(false)} wide>
          <img class="sample-large" src={sampleUrl(run.name, sample.file)} alt={label} />
        </Dialog>
      )}
    </section>
  );
}

function Checkpoints({ run }: { run: RunDetail }) {
  if (run.checkpoints.length === 0) return <p class="muted">No checkpoint yet.</p>;
  const use = async (step: number) => {
    try {
      const lora = await api.serveCheckpoint(run.name, step);
      note(`${lora.name} can be used now`);
      const prompt = new URLSearchParams([["column", ""], ["column", `${lora.name}@1`]]);
      go(`#/compare?${prompt}`);
    } catch (error) {
      complain(error);
    }
  };
  return (
    <section class="panel" aria-label="Checkpoints">
      <h3>Checkpoints</h3>
      <table class="table">
        <thead>
          <tr>
            <th scope="col">Step</th>
            <th scope="col" class="right">Held-out loss</th>
            <th scope="col" class="right">Size</th>
            <th scope="col">
              <span class="visually-hidden">Actions</span>
            </th>
          </tr>
        </thead>
        <tbody>
          {[...run.checkpoints].reverse().map((checkpoint) => (
            <tr key={checkpoint.step}>
              <th scope="row">
                {checkpoint.step} {checkpoint.step === run.best_step && <span class="badge">best: lowest held-out loss</span>}
              </th>
              <td class="right">{number(checkpoint.validation_loss)}</td>
              <td class="right">{bytes(checkpoint.bytes)}</td>
              <td class="right">
                {checkpoint.adapter && (
                  <Button kind="quiet" aria-label={`Compare step ${checkpoint.step}`} onClick={() => void use(checkpoint.step)}>
                    Compare
                  </Button>
                )}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      <p class="muted small">The held-out loss does not judge style: compare the images, or have people vote on them.</p>
    </section>
  );
}
