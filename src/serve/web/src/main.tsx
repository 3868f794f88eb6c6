import { render } from "preact";
import "uplot/dist/uPlot.min.css";
import "./style/base.css";
import "./style/parts.css";
import "./style/views.css";
import { applyTheme } from "./theme";
import { App } from "./app";

applyTheme();
// Images that are shown larger than they are grow by whole pixels; others are scaled smoothly.
document.addEventListener(
  "load",
  ({ target }) => {
    if (target instanceof HTMLImageElement) {
      target.classList.toggle("small-image", target.naturalWidth < target.clientWidth * devicePixelRatio);
    }
  },
  true,
);
render(<App />, document.getElementById("page")!);
