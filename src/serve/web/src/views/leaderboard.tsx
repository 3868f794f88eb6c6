// Who wins the votes, and how sure that is.
import { useState } from "preact/hooks";
import { api, boardCsv, type Standing } from "../api";
import { Button, Empty, Field, Problem, useRead } from "../parts";
import { address, go } from "../route";
import { plural } from "../text";

export function LeaderboardView({ query }: { query: URLSearchParams }) {
  const prompt = query.get("prompt") ?? undefined;
  const { value: standings, error, again } = useRead(() => api.leaderboard(prompt), [prompt]);
  const prompts = useRead(api.votedPrompts, []).value ?? [];
  const [open, setOpen] = useState<string>();
  if (error !== undefined) return <Problem error={error} again={again} />;
  if (!standings) return null;
  if (standings.length === 0 && !prompt) {
    return (
      <Empty title="No votes yet">
        <p>Strengths are computed from blind votes on pairs of images.</p>
        <a class="button primary" href="#/vote">
          Vote
        </a>
      </Empty>
    );
  }
  const votes = standings.reduce((sum, row) => sum + row.votes, 0) / 2;
  const low = Math.min(...standings.map((row) => row.low)) - 20;
  const high = Math.max(...standings.map((row) => row.high)) + 20;
  return (
    <div class="board">
      <header class="view-head">
        <h1>Leaderboard</h1>
        <p class="muted">
          {plural(votes, "blind vote")} · Bradley–Terry strength with 95 % intervals, 1000 in the middle
        </p>
      </header>
      <div class="row wrap end">
        <Field label="Prompt">
          <select value={prompt ?? ""} onChange={(event) => go(address("leaderboard", { prompt: event.currentTarget.value }))}>
            <option value="">All prompts</option>
            {prompts.map((known) => (
              <option key={known.prompt} value={known.prompt}>
                {known.prompt || "(empty prompt)"} ({known.votes})
              </option>
            ))}
          </select>
        </Field>
        <a class="button" href={boardCsv(prompt)} download="leaderboard.csv">
          CSV
        </a>
        <a class="button primary" href={address("vote", { prompt })}>
          Vote
        </a>
      </div>
      <ol class="standings">
        {standings.map((row, index) => (
          <Row
            key={row.name}
            row={row}
            rank={index + 1}
            close={standings[index - 1] !== undefined && standings[index - 1]!.low <= row.high}
            scale={[low, high]}
            open={open === row.name}
            onToggle={() => setOpen(open === row.name ? undefined : row.name)}
          />
        ))}
      </ol>
    </div>
  );
}

function Row({
  row,
  rank,
  close,
  scale: [low, high],
  open,
  onToggle,
}: {
  row: Standing;
  rank: number;
  close: boolean;
  scale: [number, number];
  open: boolean;
  onToggle: () => void;
}) {
  const at = (value: number) => (100 * (value - low)) / (high - low || 1);
  const rate = row.votes > 0 ? Math.round((100 * (row.wins + row.ties / 2)) / row.votes) : 0;
  return (
    <li class="standing panel">
      <div class="standing-head">
        <span class="rank">{rank}</span>
        <div class="standing-name">
          <strong>{row.name}</strong>
          <span class="muted small">
            {plural(row.votes, "vote")} · {rate} % won
            {close && <span class="close-call"> · too close to call with {rank - 1}</span>}
          </span>
        </div>
        <span class="strength">
          {Math.round(row.strength)}
          <small class="muted">
            {Math.round(row.low)} to {Math.round(row.high)}
          </small>
        </span>
      </div>
      <svg class="interval" height="16" width="100%" role="img" aria-label={`From ${Math.round(row.low)} to ${Math.round(row.high)}`}>
        <line x1="0" x2="100%" y1="8" y2="8" class="interval-axis" />
        <line x1={`${at(1000)}%`} x2={`${at(1000)}%`} y1="2" y2="14" class="interval-middle" />
        <line x1={`${at(row.low)}%`} x2={`${at(row.high)}%`} y1="8" y2="8" class="interval-range" />
        <circle cx={`${at(row.strength)}%`} cy="8" r="5" class="interval-dot" />
      </svg>
      <Button kind="quiet" aria-expanded={open} onClick={onToggle}>
        {open ? "Hide opponents" : "Opponents"}
      </Button>
      {open && (
        <table class="table">
          <thead>
            <tr>
              <th scope="col">Against</th>
              <th scope="col" class="right">Won</th>
              <th scope="col" class="right">Lost</th>
              <th scope="col" class="right">Tied</th>
            </tr>
          </thead>
          <tbody>
            {row.opponents.map((other) => (
              <tr key={other.name}>
                <th scope="row">{other.name}</th>
                <td class="right">{other.wins}</td>
                <td class="right">{other.losses}</td>
                <td class="right">{other.ties}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </li>
  );
}
