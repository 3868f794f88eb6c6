// Where in the page one is: `#/view?key=value`, so that a link leads back there.
import { useEffect, useState } from "preact/hooks";

export interface Route {
  view: string;
  query: URLSearchParams;
}

export function route(): Route {
  const [view = "", query = ""] = location.hash.replace(/^#\/?/, "").split("?", 2) as [string?, string?];
  return { view, query: new URLSearchParams(query) };
}

export function address(view: string, query: Record<string, string | undefined> = {}): string {
  const given = Object.entries(query).filter((entry): entry is [string, string] => entry[1] !== undefined && entry[1] !== "");
  const text = new URLSearchParams(given).toString();
  return `#/${view}` + (text ? `?${text}` : "");
}

/** Goes there; with `replace` the way back does not lead through where one was. */
export function go(to: string, replace = false): void {
  if (replace) {
    history.replaceState(null, "", to);
    dispatchEvent(new HashChangeEvent("hashchange"));
  } else {
    location.hash = to;
  }
}

export function useRoute(): Route {
  const [at, setAt] = useState(route);
  useEffect(() => {
    const listener = () => setAt(route());
    addEventListener("hashchange", listener);
    return () => removeEventListener("hashchange", listener);
  }, []);
  return at;
}
