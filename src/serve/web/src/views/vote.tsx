// Blind pairs: which of two images is better, without knowing who made them.
import { useCallback, useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { api, ApiError, type Choice, type Pair, type Revealed } from "../api";
import { CanvasImage } from "../canvas";
import { Button, complain, Empty, Problem } from "../parts";

const CHOICES: { choice: Choice; key: string; sign: string; text: string }[] = [
  { choice: "left", key: "ArrowLeft", sign: "←", text: "Left" },
  { choice: "both_bad", key: "ArrowUp", sign: "↑", text: "Both bad" },
  { choice: "tie", key: "ArrowDown", sign: "↓", text: "Tie" },
  { choice: "right", key: "ArrowRight", sign: "→", text: "Right" },
];

interface Shown {
  pair: Pair;
  left: ImageBitmap;
  right: ImageBitmap;
}

/** Both images whole before either is shown: which comes first must say nothing. */
async function fetched(prompt: string | undefined): Promise<Shown> {
  const pair = await api.pair(prompt);
  const image = async (url: string) => {
    const response = await fetch(url);
    if (!response.ok) throw new ApiError(response.status, "an image of the pair is gone");
    return createImageBitmap(await response.blob());
  };
  const [left, right] = await Promise.all([image(pair.left), image(pair.right)]);
  return { pair, left, right };
}

function forget(shown: Shown): void {
  shown.left.close();
  shown.right.close();
}

export function VoteView({ query }: { query: URLSearchParams }) {
  const prompt = query.get("prompt") ?? undefined;
  const [shown, setShown] = useState<Shown>();
  const [revealed, setRevealed] = useState<Revealed & { choice: Choice }>();
  const [error, setError] = useState<unknown>();
  const [count, setCount] = useState(0);
  const ahead = useRef<Promise<Shown>>(undefined);
  const busy = useRef(false);

  const next = useCallback(async () => {
    busy.current = true;
    try {
      const coming = ahead.current ?? fetched(prompt);
      ahead.current = undefined;
      const found = await coming;
      setShown((before) => {
        if (before) forget(before);
        return found;
      });
      setRevealed(undefined);
      setError(undefined);
    } catch (problem) {
      setError(problem);
    } finally {
      busy.current = false;
    }
  }, [prompt]);

  useEffect(() => {
    ahead.current = undefined;
    setShown(undefined);
    void next();
  }, [next]);

  const choose = useCallback(
    async (choice: Choice) => {
      if (!shown || revealed || busy.current) return;
      busy.current = true;
      try {
        const names = await api.vote(shown.pair.pair, choice);
        setRevealed({ ...names, choice });
        setCount((before) => before + 1);
        ahead.current = fetched(prompt);
        ahead.current.catch(() => {}); // told when it is asked for
      } catch (problem) {
        complain(problem);
      } finally {
        busy.current = false;
      }
    },
    [shown, revealed, prompt],
  );

  // Before anything is seen: no key that is pressed at once is lost.
  useLayoutEffect(() => {
    const pressed = (event: KeyboardEvent) => {
      const target = event.target as HTMLElement;
      if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName)) return;
      if (event.key === " " && revealed && target.tagName !== "BUTTON") {
        event.preventDefault();
        void next();
        return;
      }
      const found = CHOICES.find(({ key }) => key === event.key);
      if (found && !revealed) {
        event.preventDefault();
        void choose(found.choice);
      }
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, [choose, next, revealed]);

  if (error instanceof ApiError && error.status === 404 && !shown) {
    return (
      <Empty title="No pairs to vote on yet">
        <p>A pair needs two images with the same prompt and seed, from different adapters or from an adapter and the base model.</p>
        <a class="button primary" href="#/compare">
          Make some in Compare
        </a>
      </Empty>
    );
  }
  return (
    <div class="vote">
      <header class="view-head">
        <h1>Which is better?</h1>
        <p class="muted">{prompt ? "Pairs of one prompt" : "All prompts"}{count > 0 && ` · ${count} voted now`}</p>
      </header>
      {error !== undefined && <Problem error={error} again={() => void next()} />}
      {shown && (
        <>
          <p class="vote-prompt">{shown.pair.prompt || <span class="muted">(empty prompt)</span>}</p>
          <div class="vote-pair">
            {(["left", "right"] as const).map((side) => (
              <button
                type="button"
                key={side}
                class={`vote-side ${revealed?.choice === side ? "won" : ""}`}
                disabled={revealed !== undefined}
                onClick={() => void choose(side)}
                aria-label={side === "left" ? "The left image is better" : "The right image is better"}
              >
                <CanvasImage bitmap={shown[side]} label={side === "left" ? "Left image" : "Right image"} />
                <span class="vote-name" aria-hidden={revealed ? undefined : "true"}>
                  {revealed ? revealed[side].name : side === "left" ? "A" : "B"}
                </span>
              </button>
            ))}
          </div>
          {revealed ? (
            <div class="vote-choices" role="status">
              <Button kind="primary" onClick={() => void next()}>
                Next pair <kbd>space</kbd>
              </Button>
            </div>
          ) : (
            <div class="vote-choices">
              {CHOICES.map(({ choice, sign, text }) => (
                <Button key={choice} onClick={() => void choose(choice)}>
                  <kbd>{sign}</kbd> {text}
                </Button>
              ))}
            </div>
          )}
          <p class="muted small center">Names appear after the vote. Sides are random.</p>
        </>
      )}
    </div>
  );
}
