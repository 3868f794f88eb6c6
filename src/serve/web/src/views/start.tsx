// Starting a run: with which configuration, under which name, and what came of it.
import { useEffect, useState } from "preact/hooks";
import { api, type Run, type Startable } from "../api";
import { Button, complain, Dialog, Field, note, Problem, useRead } from "../parts";

const PASTED = "";

/** How often to look whether a run that was started is there. */
const LOOK = 2000;

/** A button, if runs can be started here, and what became of the last one until it is among `runs`. */
export function StartRun({ runs, again }: { runs: Run[]; again: () => void }) {
  const { value: startable, again: look } = useRead(api.startable, []);
  const [asks, setAsks] = useState(false);
  const started = startable?.started;
  const waits = started?.is_running === true && !runs.some((run) => run.name === started.run);
  useEffect(() => {
    if (!waits) return;
    const timer = setInterval(() => {
      look();
      again();
    }, LOOK);
    return () => clearInterval(timer);
  }, [waits, look, again]);
  if (!startable?.enabled) return null;
  return (
    <>
      <Button kind="primary" icon="plus" disabled={started?.is_running} onClick={() => setAsks(true)}>
        Start a run
      </Button>
      {waits && (
        <p class="small muted" role="status">
          {started.run} is preparing its data.{" "}
          <Button kind="quiet" onClick={() => void api.stopRun(started.run).then(() => note("Asked to stop"), complain)}>
            Stop
          </Button>
        </p>
      )}
      {started?.problem && <Problem error={new Error(`${started.run} has failed: ${started.problem}`)} />}
      {asks && (
        <StartDialog
          startable={startable}
          onClose={() => setAsks(false)}
          onStarted={(run) => {
            setAsks(false);
            note(`${run} has started`);
            look();
            again();
          }}
        />
      )}
    </>
  );
}

function StartDialog({
  startable: { configs, takes_text },
  onClose,
  onStarted,
}: {
  startable: Startable;
  onClose: () => void;
  onStarted: (run: string) => void;
}) {
  const [chosen, setChosen] = useState(configs[0]?.name ?? PASTED);
  const [toml, setToml] = useState("");
  const [name, setName] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const config = configs.find((config) => config.name === chosen);
  const start = async () => {
    setBusy(true);
    setError(undefined);
    try {
      const source = config ? { config: config.name } : { toml };
      const started = await api.startRun({ ...source, ...(name ? { name } : {}) });
      onStarted(started.run);
    } catch (error) {
      setError(error);
      setBusy(false);
    }
  };
  return (
    <Dialog title="Start a run" onClose={onClose} wide>
      <Field label="Configuration">
        <select value={chosen} onChange={(event) => setChosen(event.currentTarget.value)}>
          {configs.map((config) => (
            <option key={config.name} value={config.name}>
              {config.name}
            </option>
          ))}
          {takes_text && <option value={PASTED}>Pasted below</option>}
        </select>
      </Field>
      <Field label="Name of the run" hint="Letters, digits, dots and dashes.">
        <input value={name} placeholder={config?.run} maxLength={100} onInput={(event) => setName(event.currentTarget.value)} />
      </Field>
      <Field label="As TOML">
        <textarea
          class="start-config"
          rows={12}
          spellcheck={false}
          readOnly={config !== undefined}
          value={config?.text ?? toml}
          onInput={(event) => setToml(event.currentTarget.value)}
        />
      </Field>
      {error !== undefined && <Problem error={error} />}
      <div class="row end">
        <Button onClick={onClose}>Cancel</Button>
        <Button kind="primary" disabled={busy || (!config && !toml.trim())} onClick={() => void start()}>
          {busy ? "Checking…" : "Start"}
        </Button>
      </div>
    </Dialog>
  );
}
