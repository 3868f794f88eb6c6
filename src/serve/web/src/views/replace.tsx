// Find and replace in all captions: looked at first, and undone with one press.
import { useState } from "preact/hooks";
import { api, ApiError, type Replaced } from "../api";
import { Button, complain, Dialog, Field, note } from "../parts";
import { plural } from "../text";

export function ReplaceDialog({ dataset, onClose, onDone }: { dataset: string; onClose: () => void; onDone: () => void }) {
  const [find, setFind] = useState("");
  const [replace, setReplace] = useState("");
  const [preview, setPreview] = useState<Replaced>();
  const [busy, setBusy] = useState(false);

  const look = async () => {
    if (!find) return;
    setBusy(true);
    try {
      setPreview(await api.replace(dataset, find, replace, true));
    } catch (error) {
      complain(error);
    }
    setBusy(false);
  };
  const undo = async (done: Replaced) => {
    let failed = 0;
    for (const { file, before, etag } of done.changes) {
      await api.saveCaption(dataset, file, before, etag).catch(() => (failed += 1));
    }
    note(failed ? `${plural(failed, "caption")} had changed since and were kept` : "Undone");
    onDone();
  };
  const apply = async () => {
    if (!preview) return;
    setBusy(true);
    try {
      const done = await api.replace(dataset, find, replace, false, preview.token);
      note(`${plural(done.changes.length, "caption")} changed`, () => void undo(done));
      onDone();
      onClose();
    } catch (error) {
      if (error instanceof ApiError && error.status === 409) {
        setPreview((error.body as { error: { current: Replaced } }).error.current);
        note("Captions have changed: check the preview again");
      } else {
        complain(error);
      }
    }
    setBusy(false);
  };
  return (
    <Dialog title="Find and replace" onClose={onClose} wide>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void look();
        }}
      >
        <div class="pairs">
          <Field label="Find">
            <input type="text" value={find} onInput={(event) => (setFind(event.currentTarget.value), setPreview(undefined))} />
          </Field>
          <Field label="Replace with">
            <input type="text" value={replace} onInput={(event) => (setReplace(event.currentTarget.value), setPreview(undefined))} />
          </Field>
        </div>
        <div class="row between">
          <span class="muted" role="status">
            {preview && (preview.changes.length === 0 ? "In no caption" : `In ${plural(preview.changes.length, "caption")}`)}
            {preview && preview.read_only > 0 && `, and in ${preview.read_only} that cannot be edited here`}
          </span>
          {preview && preview.changes.length > 0 ? (
            <Button kind="primary" disabled={busy} onClick={() => void apply()}>
              Replace
            </Button>
          ) : (
            <Button kind="primary" type="submit" disabled={busy || !find}>
              Preview
            </Button>
          )}
        </div>
      </form>
      {preview && preview.changes.length > 0 && (
        <ul class="changes" tabIndex={0} aria-label="Changes">
          {preview.changes.slice(0, 200).map((change) => (
            <li key={change.file}>
              <span class="muted small">{change.file}</span>
              <del>{change.before}</del>
              <ins>{change.after}</ins>
            </li>
          ))}
          {preview.changes.length > 200 && <li class="muted">and {preview.changes.length - 200} more</li>}
        </ul>
      )}
    </Dialog>
  );
}
