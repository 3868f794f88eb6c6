// The frame: views, their links, the state of the server.
import { useEffect, useRef, useState } from "preact/hooks";
import { api, type ServerStatus } from "./api";
import { connect, useLive } from "./live";
import { Icon, Notices } from "./parts";
import { useRoute } from "./route";
import { setTheme, theme, type Theme } from "./theme";
import { CompareView } from "./views/compare";
import { DatasetView } from "./views/dataset";
import { LeaderboardView } from "./views/leaderboard";
import { QueueView } from "./views/queue";
import { RunsView } from "./views/runs";
import { VoteView } from "./views/vote";

const VIEWS = [
  { name: "compare", title: "Compare", short: "Compare", icon: "compare", view: CompareView },
  { name: "vote", title: "Vote", short: "Vote", icon: "vote", view: VoteView },
  { name: "leaderboard", title: "Leaderboard", short: "Board", icon: "board", view: LeaderboardView },
  { name: "runs", title: "Runs", short: "Runs", icon: "runs", view: RunsView },
  { name: "dataset", title: "Dataset", short: "Data", icon: "dataset", view: DatasetView },
  { name: "queue", title: "Queue", short: "Queue", icon: "queue", view: QueueView },
] as const;

export function App() {
  const { view, query } = useRoute();
  const shown = VIEWS.find((known) => known.name === view) ?? VIEWS[0];
  const main = useRef<HTMLElement>(null);
  const first = useRef(true);
  useEffect(connect, []);
  useEffect(() => {
    document.title = `${shown.title} · kiln`;
    if (!first.current) main.current?.focus();
    first.current = false;
  }, [shown.name]);
  const View = shown.view;
  return (
    <>
      <a class="skip" href="#main" onClick={(event) => (event.preventDefault(), main.current?.focus())}>
        Skip to the content
      </a>
      <header class="side">
        <a class="brand" href="#/compare" aria-label="kiln">
          <img src="/kiln.svg" alt="" width="26" height="26" />
          <span>kiln</span>
        </a>
        <nav aria-label="Views">
          {VIEWS.map((known) => (
            <a
              key={known.name}
              href={`#/${known.name}`}
              class="nav-link"
              aria-current={known === shown ? "page" : undefined}
            >
              <Icon name={known.icon} />
              <span class="long">{known.title}</span>
              <span class="short">{known.short}</span>
            </a>
          ))}
        </nav>
        <ServerState />
      </header>
      <main id="main" ref={main} tabIndex={-1} class={`main view-${shown.name}`}>
        <View query={query} />
      </main>
      <Notices />
    </>
  );
}

function ServerState() {
  const { connected, jobs } = useLive();
  const [status, setStatus] = useState<ServerStatus>();
  const open = [...jobs.values()].filter((job) => job.status === "queued" || job.status === "running").length;
  useEffect(() => {
    api.status().then(setStatus, () => {});
  }, [connected]);
  const words = connected === false ? "Not connected" : connected ? "Connected" : "Connecting…";
  return (
    <div class="state">
      <p class={`link ${connected === false ? "off" : connected ? "on" : ""}`}>
        <span class="dot" aria-hidden="true" />
        <span>{words}</span>
      </p>
      {status && (
        <p class="muted small">
          {status.device} · {open === 0 ? "idle" : open === 1 ? "1 job" : `${open} jobs`}
          <br />
          kiln {status.version}
        </p>
      )}
      <ThemeSwitch />
    </div>
  );
}

const THEMES: { value: Theme; text: string; icon: string }[] = [
  { value: "system", text: "System", icon: "system" },
  { value: "light", text: "Light", icon: "sun" },
  { value: "dark", text: "Dark", icon: "moon" },
];

function ThemeSwitch() {
  const [chosen, setChosen] = useState(theme);
  return (
    <div class="segments themes" role="group" aria-label="Colors">
      {THEMES.map(({ value, text, icon }) => (
        <button
          type="button"
          key={value}
          aria-label={text}
          title={text}
          aria-pressed={chosen === value}
          onClick={() => {
            setTheme(value);
            setChosen(value);
          }}
        >
          <Icon name={icon} />
        </button>
      ))}
    </div>
  );
}
