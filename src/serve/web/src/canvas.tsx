// An image that is drawn, not linked: its address says nothing, and the page's policy allows images from the server alone.
import { useLayoutEffect, useRef } from "preact/hooks";

export function CanvasImage({ bitmap, label }: { bitmap: ImageBitmap; label: string }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  useLayoutEffect(() => {
    const element = canvas.current;
    if (!element || bitmap.width === 0) return; // it was closed: a newer one is on its way
    element.width = bitmap.width;
    element.height = bitmap.height;
    element.classList.toggle("small-image", bitmap.width < element.clientWidth * devicePixelRatio);
    element.getContext("2d")?.drawImage(bitmap, 0, 0);
  }, [bitmap]);
  return <canvas ref={canvas} role="img" aria-label={label} />;
}
