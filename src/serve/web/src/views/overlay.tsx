// Two images in one place: a slider between them, or one after the other.
import { useEffect, useState } from "preact/hooks";
import { Button, Field } from "../parts";
import { columnName, type Column } from "./compare-request";

export function Overlay({
  flickers,
  columns,
  seeds,
  image,
}: {
  flickers: boolean;
  columns: Column[];
  seeds: number[];
  image: (column: number, seed: number) => string | undefined;
}) {
  const [left, setLeft] = useState(0);
  const [right, setRight] = useState(1);
  const [seed, setSeed] = useState(seeds[0] ?? 0);
  const one = image(left, seed);
  const other = image(right, seed);
  const names = columns.map(columnName);
  return (
    <div class="overlay">
      <div class="row wrap">
        <Field label="Left">
          <select value={left} onChange={(event) => setLeft(Number(event.currentTarget.value))}>
            {names.map((name, index) => <option value={index}>{name}</option>)}
          </select>
        </Field>
        <Field label="Right">
          <select value={right} onChange={(event) => setRight(Number(event.currentTarget.value))}>
            {names.map((name, index) => <option value={index}>{name}</option>)}
          </select>
        </Field>
        <Field label="Seed">
          <select value={seed} onChange={(event) => setSeed(Number(event.currentTarget.value))}>
            {seeds.map((known) => <option>{known}</option>)}
          </select>
        </Field>
      </div>
      {!one || !other ? (
        <p class="muted">Waiting for both images.</p>
      ) : flickers ? (
        <Flicker images={[one, other]} names={[names[left]!, names[right]!]} />
      ) : (
        <Slider images={[one, other]} names={[names[left]!, names[right]!]} />
      )}
    </div>
  );
}

interface Two {
  images: [string, string];
  names: [string, string];
}

export function Slider({ images, names }: Two) {
  const [at, setAt] = useState(50);
  return (
    <div class="slider">
      <img src={images[0]} alt={names[0]} />
      <img src={images[1]} alt={names[1]} class="over" style={{ clipPath: `inset(0 0 0 ${at}%)` }} />
      <span class="tag left">{names[0]}</span>
      <span class="tag right">{names[1]}</span>
      <input
        type="range"
        min={0}
        max={100}
        step={0.5}
        value={at}
        aria-label={`Border between ${names[0]} and ${names[1]}`}
        onInput={(event) => setAt(event.currentTarget.valueAsNumber)}
      />
      <span class="slider-line" style={{ left: `${at}%` }} aria-hidden="true" />
    </div>
  );
}

function Flicker({ images, names }: Two) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const [runs, setRuns] = useState(!still);
  const [second, setSecond] = useState(false);
  useEffect(() => {
    if (!runs) return;
    const timer = setInterval(() => setSecond((before) => !before), 700);
    return () => clearInterval(timer);
  }, [runs]);
  return (
    <>
      <div class="slider">
        <img src={images[0]} alt={names[0]} />
        <img src={images[1]} alt={names[1]} class={second ? "over" : "over hidden"} />
        <span class="tag left">{names[second ? 1 : 0]}</span>
      </div>
      <div class="row">
        <Button icon={runs ? "stop" : "play"} onClick={() => setRuns(!runs)}>
          {runs ? "Pause" : "Play"}
        </Button>
        <Button icon="swap" onClick={() => (setRuns(false), setSecond(!second))}>
          Swap
        </Button>
      </div>
    </>
  );
}
