// Jobs, models and adapters of the server.
import { useEffect, useRef, useState } from "preact/hooks";
import { api, type Job, type Lora, type Model } from "../api";
import { useLive } from "../live";
import { Bar, Button, complain, Empty, Icon, note, Segments, useRead } from "../parts";
import { ago, bytes, duration, plural } from "../text";

type Shown = "open" | "all" | "failed";

const SHOWN = [
  { value: "all", text: "All" },
  { value: "open", text: "Open" },
  { value: "failed", text: "Failed" },
] as const;

export function QueueView() {
  const { jobs, progress } = useLive();
  const [shown, setShown] = useState<Shown>("all");
  const all = [...jobs.values()].sort((a, b) => order(a) - order(b) || b.created - a.created);
  const listed = all.filter((job) => shown === "all" || (shown === "open" ? isOpen(job) : job.status === "failed"));
  const open = all.filter(isOpen);
  return (
    <div class="queue">
      <section aria-label="Jobs" class="jobs">
        <header class="view-head row between wrap">
          <div>
            <h1>Queue</h1>
            <p class="muted">{open.length === 0 ? "Nothing to do" : plural(open.length, "open job")}</p>
          </div>
          <div class="row wrap">
            <Segments label="Jobs" value={shown} options={SHOWN} onChange={setShown} />
            {open.length > 1 && (
              <Button kind="danger" icon="stop" onClick={() => open.forEach((job) => void api.cancel(job.id).catch(complain))}>
                Cancel all
              </Button>
            )}
          </div>
        </header>
        {listed.length === 0 ? (
          <Empty title={shown === "all" ? "No jobs" : "None of these"}>
            {shown === "all" && <p>Jobs from this page and from all API clients appear here.</p>}
          </Empty>
        ) : (
          <ul class="job-list">
            {listed.slice(0, 100).map((job) => (
              <JobRow key={job.id} job={job} at={progress.get(job.id)} />
            ))}
          </ul>
        )}
        {listed.length > 100 && <p class="muted">{listed.length - 100} more are not shown.</p>}
      </section>
      <aside class="server" aria-label="Server">
        <Server />
        <Models />
        <Adapters />
      </aside>
    </div>
  );
}

const isOpen = (job: Job) => job.status === "queued" || job.status === "running";
const order = (job: Job) => (job.status === "running" ? 0 : job.status === "queued" ? 1 : 2);

function JobRow({ job, at }: { job: Job; at?: { step: number; of: number; eta?: number } }) {
  const { request } = job;
  const adapters = request.loras?.map(({ name, scale }) => (scale === 1 ? name : `${name} × ${scale}`)).join(", ");
  return (
    <li class={`job ${job.status}`}>
      <div class="job-images">
        {job.images.slice(0, 4).map((image) => (
          <img key={image.url} src={image.url} alt="" loading="lazy" />
        ))}
        {job.images.length === 0 && <span class="job-blank" />}
      </div>
      <div class="job-text">
        <p class="job-prompt">{request.prompt || "(empty prompt)"}</p>
        <p class="muted small">
          <span class={`status ${job.status}`}>{job.status}</span>
          {job.queue_position !== undefined && job.status === "queued" && ` · ${job.queue_position} before it`}
          {request.model && ` · ${request.model}`}
          {adapters && ` · ${adapters}`}
          {request.seed !== undefined && ` · seed ${request.seed}`}
          {" · "}
          {job.finished && job.started ? `${duration(job.finished - job.started)}, ${ago(job.finished)}` : ago(job.created)}
          {job.attempts > 1 && ` · ${job.attempts} attempts`}
        </p>
        {job.error && (
          <p class="bad small">
            {job.error.message}
            {job.error.hint && <span class="muted"> ({job.error.hint})</span>}
          </p>
        )}
        {job.status === "running" && (
          <div class="job-progress">
            <Bar value={at?.step ?? job.step} of={at?.of ?? job.of} label="Steps done" />
            <span class="muted small">
              {at?.step ?? job.step}/{at?.of ?? job.of}
              {at?.eta !== undefined && ` · ${duration(at.eta)} left`}
            </span>
          </div>
        )}
      </div>
      {isOpen(job) && (
        <Button kind="quiet" icon="close" aria-label={`Cancel ${request.prompt}`} onClick={() => void api.cancel(job.id).catch(complain)} />
      )}
    </li>
  );
}

function Server() {
  const { value: status, again } = useRead(api.status, []);
  useEffect(() => {
    const timer = setInterval(() => !document.hidden && again(), 5000);
    return () => clearInterval(timer);
  }, [again]);
  if (!status) return null;
  return (
    <section class="panel">
      <h2>Server</h2>
      <dl class="facts">
        <div>
          <dt>Device</dt>
          <dd>{status.device}</dd>
        </div>
        <div>
          <dt>Waiting</dt>
          <dd>
            {status.queue.depth} of {status.queue.limit}
          </dd>
        </div>
        <div>
          <dt>Host memory</dt>
          <dd>{bytes(status.memory.host_bytes)}</dd>
        </div>
        {status.memory.device_bytes !== undefined && (
          <div>
            <dt>GPU memory</dt>
            <dd>{bytes(status.memory.device_bytes)}</dd>
          </div>
        )}
      </dl>
    </section>
  );
}

function Models() {
  const { value: models, again } = useRead(api.models, []);
  const [busy, setBusy] = useState<string>();
  const toggle = async (model: Model) => {
    setBusy(model.name);
    try {
      await (model.loaded ? api.unload(model.name) : api.load(model.name));
    } catch (error) {
      complain(error);
    }
    setBusy(undefined);
    again();
  };
  return (
    <section class="panel">
      <h2>Models</h2>
      <ul class="plain">
        {models?.map((model) => (
          <li key={model.name} class="row between">
            <span class="clip">
              <strong>{model.name}</strong>
              <br />
              <span class="muted small">
                {model.family} · {model.native_size} px{model.edits && " · edits images"}
              </span>
            </span>
            <Button disabled={busy === model.name} aria-label={`${model.loaded ? "Unload" : "Load"} ${model.name}`} onClick={() => void toggle(model)}>
              {busy === model.name ? "…" : model.loaded ? "Unload" : "Load"}
            </Button>
          </li>
        ))}
      </ul>
    </section>
  );
}

function Adapters() {
  const { value: loras, again } = useRead(api.loras, []);
  const input = useRef<HTMLInputElement>(null);
  const [over, setOver] = useState(false);
  const upload = async (files: Iterable<File>) => {
    for (const file of files) {
      const name = file.name.replace(/\.safetensors$/, "").replace(/[^A-Za-z0-9._-]+/g, "-").slice(0, 128);
      try {
        await api.uploadLora(name, file);
        note(`${name} can be used now`);
      } catch (error) {
        complain(error);
      }
    }
    again();
  };
  const remove = async (lora: Lora) => {
    try {
      await api.removeLora(lora.name);
      note(`${lora.name} was removed`);
    } catch (error) {
      complain(error);
    }
    again();
  };
  return (
    <section
      class={over ? "panel drop" : "panel"}
      onDragOver={(event) => (event.preventDefault(), setOver(true))}
      onDragLeave={() => setOver(false)}
      onDrop={(event) => {
        event.preventDefault();
        setOver(false);
        void upload(event.dataTransfer?.files ?? []);
      }}
    >
      <div class="row between">
        <h2>Adapters</h2>
        <Button icon="upload" onClick={() => input.current?.click()}>
          Upload
        </Button>
        <input
          ref={input}
          type="file"
          accept=".safetensors"
          multiple
          hidden
          aria-label="LoRA files"
          onChange={(event) => {
            const files = [...(event.currentTarget.files ?? [])];
            event.currentTarget.value = "";
            void upload(files);
          }}
        />
      </div>
      {loras?.length === 0 && <p class="muted small">None yet. Drop a LoRA file (.safetensors) here.</p>}
      <ul class="plain">
        {loras?.map((lora) => (
          <li key={lora.name} class="row between">
            <span class="clip">
              <strong>{lora.name}</strong>
              {lora.in_memory && (
                <span class="muted" title="in memory">
                  {" "}
                  <Icon name="check" />
                </span>
              )}
              <br />
              <span class="muted small">
                {lora.rank !== undefined && `rank ${lora.rank} · `}
                {plural(lora.layers, "layer")} · {bytes(lora.bytes)}
                {lora.fits.length > 0 && ` · for ${lora.fits.join(", ")}`}
              </span>
            </span>
            {lora.uploaded && <Button kind="quiet" icon="close" aria-label={`Remove ${lora.name}`} onClick={() => void remove(lora)} />}
          </li>
        ))}
      </ul>
    </section>
  );
}
