// Curves, drawn by uPlot in the colors of the page.
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";

export interface Series {
  name: string;
  /** A custom property of the page's style. */
  color: string;
  points: [number, number][];
  dots?: boolean;
  faint?: boolean;
}

export function Chart({ series, log, label, unit = "step" }: { series: Series[]; log: boolean; label: string; unit?: string }) {
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const element = box.current!;
    const all = [...new Set(series.flatMap(({ points }) => points.map(([x]) => x)))].sort((a, b) => a - b);
    const place = new Map(all.map((x, i) => [x, i]));
    const columns = series.map(({ points }) => {
      const column: (number | null)[] = new Array<null>(all.length).fill(null);
      points.forEach(([x, y]) => (column[place.get(x)!] = y));
      return column;
    });
    const draw = () => {
      const style = getComputedStyle(document.documentElement);
      const color = (name: string) => style.getPropertyValue(name).trim();
      const axis = {
        stroke: color("--muted"),
        grid: { stroke: color("--line"), width: 1 },
        ticks: { stroke: color("--line"), width: 1 },
        font: "12px system-ui, sans-serif",
      };
      return new uPlot(
        {
          width: Math.max(200, element.clientWidth),
          height: Math.max(200, Math.min(360, element.clientWidth * 0.5)),
          cursor: { points: { size: 7 } },
          legend: { live: true },
          scales: { x: { time: false }, y: log ? { distr: 3 } : {} },
          axes: [{ ...axis, space: 60 }, { ...axis, size: 58 }],
          series: [
            { label: unit },
            ...series.map((one) => ({
              label: one.name,
              stroke: color(one.color),
              width: one.faint ? 1 : 2,
              alpha: one.faint ? 0.45 : 1,
              spanGaps: true,
              points: { show: one.dots ?? false, size: 6, fill: color(one.color) },
              value: (_: uPlot, value: number | null) => (value === null ? "–" : value.toPrecision(4)),
            })),
          ],
        },
        [all, ...columns] as uPlot.AlignedData,
        element,
      );
    };
    let plot = draw();
    const again = () => {
      plot.destroy();
      plot = draw();
    };
    let width = element.clientWidth;
    const observer = new ResizeObserver(() => {
      if (Math.abs(element.clientWidth - width) < 2) return;
      width = element.clientWidth;
      plot.setSize({ width: Math.max(200, width), height: Math.max(200, Math.min(360, width * 0.5)) });
    });
    observer.observe(element);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", again);
    addEventListener("kiln-theme", again);
    return () => {
      observer.disconnect();
      dark.removeEventListener("change", again);
      removeEventListener("kiln-theme", again);
      plot.destroy();
    };
  }, [series, log]);
  return <div class="chart" ref={box} role="img" aria-label={label} />;
}

/** An exponential moving average, begun without bias: 0 leaves the points as they are. */
export function smoothed(points: [number, number][], weight: number): [number, number][] {
  let sum = 0;
  let mass = 0;
  return points.map(([x, y]) => {
    sum = weight * sum + (1 - weight) * y;
    mass = weight * mass + (1 - weight);
    return [x, sum / mass];
  });
}
