// The form of a comparison.
import { useState } from "preact/hooks";
import type { Lora, Model } from "../api";
import { Button, Field } from "../parts";
import { freshToken, seeds, type Column, type Comparison } from "./compare-request";

export function CompareForm({
  comparison,
  models,
  loras,
  hasImage,
  onImage,
  onCompare,
}: {
  comparison: Comparison;
  models: Model[];
  loras: Lora[];
  hasImage: boolean;
  onImage: (base64: string | undefined) => void;
  onCompare: (wanted: Comparison) => void;
}) {
  const [draft, setDraft] = useState(comparison);
  const [seedText, setSeedText] = useState(comparison.seeds.join(", "));
  const [image, setImage] = useState(hasImage && comparison.edits);
  const put = (change: Partial<Comparison>) => setDraft((before) => ({ ...before, ...change }));
  const model = models.find((known) => known.name === draft.model) ?? models.find((known) => known.default) ?? models[0];
  const fitting = loras.filter((lora) => !model || lora.fits.includes(model.name));
  const wanted = seeds(seedText);
  const count = wanted.length * draft.columns.length;
  const missing = model?.edits && !image;
  const compare = () => {
    if (count === 0 || missing) return;
    onCompare({ ...draft, model: model?.name ?? "", seeds: wanted, edits: image, token: freshToken() });
  };
  const number = (key: "width" | "height" | "steps" | "guidance") => (event: Event) => {
    const { value } = event.target as HTMLInputElement;
    put({ [key]: value === "" ? undefined : Number(value) });
  };
  const pick = async (event: Event) => {
    const file = (event.target as HTMLInputElement).files?.[0];
    const bytes = file && new Uint8Array(await file.arrayBuffer());
    let binary = "";
    bytes?.forEach((byte) => (binary += String.fromCharCode(byte)));
    onImage(bytes ? btoa(binary) : undefined);
    setImage(bytes !== undefined);
  };
  return (
    <form
      class="compare-form panel"
      onSubmit={(event) => {
        event.preventDefault();
        compare();
      }}
      onKeyDown={(event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) compare();
      }}
    >
      <Field label={model?.edits ? "Instruction" : "Prompt"}>
        <textarea rows={3} value={draft.prompt} placeholder={model?.edits ? "make it blue" : "red apple"} onInput={(event) => put({ prompt: event.currentTarget.value })} />
      </Field>
      {model?.edits && (
        <Field label="Image to edit">
          <input type="file" accept="image/png,image/jpeg,image/webp" onChange={(event) => void pick(event)} />
        </Field>
      )}
      {models.length > 1 && (
        <Field label="Model">
          <select value={model?.name} onChange={(event) => put({ model: event.currentTarget.value, columns: [[]] })}>
            {models.map((known) => (
              <option key={known.name} value={known.name}>
                {known.name} · {known.family}
              </option>
            ))}
          </select>
        </Field>
      )}
      <Field label="Seeds" hint="Numbers and ranges, such as 0-3, 42">
        <input type="text" inputMode="text" value={seedText} onInput={(event) => setSeedText(event.currentTarget.value)} />
      </Field>
      <fieldset class="columns">
        <legend>Columns</legend>
        {draft.columns.map((column, index) => (
          <ColumnEditor
            key={index}
            number={index + 1}
            column={column}
            loras={fitting}
            onChange={(changed) => put({ columns: draft.columns.map((old, i) => (i === index ? changed : old)) })}
            onRemove={draft.columns.length > 1 ? () => put({ columns: draft.columns.filter((_, i) => i !== index) }) : undefined}
          />
        ))}
        <div class="row wrap">
          {!draft.columns.some((column) => column.length === 0) && (
            <Button icon="plus" onClick={() => put({ columns: [[], ...draft.columns] })}>
              Base model
            </Button>
          )}
          <Button
            icon="plus"
            disabled={fitting.length === 0}
            onClick={() => {
              const used = draft.columns.flat().map(({ name }) => name);
              const next = fitting.find(({ name }) => !used.includes(name)) ?? fitting[0]!;
              put({ columns: [...draft.columns, [{ name: next.name, scale: 1 }]] });
            }}
          >
            Adapter
          </Button>
        </div>
        {fitting.length === 0 && (
          <p class="field-hint">
            No adapter for this model yet: upload one in <a href="#/queue">Queue</a>, or serve a checkpoint in <a href="#/runs">Runs</a>.
          </p>
        )}
      </fieldset>
      <details class="more">
        <summary>Sampling</summary>
        <div class="pairs">
          <Field label="Steps">
            <input type="number" min={1} value={draft.steps ?? ""} placeholder={String(model?.defaults.steps ?? "")} onInput={number("steps")} />
          </Field>
          <Field label="Guidance scale">
            <input type="number" min={0} step="any" value={draft.guidance ?? ""} placeholder={String(model?.defaults.guidance ?? "")} onInput={number("guidance")} />
          </Field>
          <Field label="Width">
            <input type="number" min={model?.size_step} step={model?.size_step} value={draft.width ?? ""} placeholder={String(model?.native_size ?? "")} onInput={number("width")} />
          </Field>
          <Field label="Height">
            <input type="number" min={model?.size_step} step={model?.size_step} value={draft.height ?? ""} placeholder={String(model?.native_size ?? "")} onInput={number("height")} />
          </Field>
        </div>
        {(model?.schedulers.length ?? 0) > 0 && (
          <Field label="Sampler">
            <select value={draft.scheduler ?? ""} onChange={(event) => put({ scheduler: event.currentTarget.value || undefined })}>
              <option value="">{`Default${model?.defaults.scheduler ? ` (${model.defaults.scheduler})` : ""}`}</option>
              {model?.schedulers.map((name) => <option key={name}>{name}</option>)}
            </select>
          </Field>
        )}
        <Field label="Negative prompt">
          <input type="text" value={draft.negative} onInput={(event) => put({ negative: event.currentTarget.value })} />
        </Field>
      </details>
      <Button kind="primary" type="submit" disabled={count === 0 || missing}>
        Compare {count > 0 && <span class="count">{count === 1 ? "1 image" : `${count} images`}</span>}
      </Button>
    </form>
  );
}

function ColumnEditor({
  number,
  column,
  loras,
  onChange,
  onRemove,
}: {
  number: number;
  column: Column;
  loras: Lora[];
  onChange: (column: Column) => void;
  onRemove?: () => void;
}) {
  const names = [...new Set([...loras.map(({ name }) => name), ...column.map(({ name }) => name)])];
  return (
    <div class="column">
      <div class="column-parts">
        {column.length === 0 && <span class="column-base">Base model</span>}
        {column.map((part, index) => (
          <div class="column-part" key={index}>
            <select
              aria-label={`Adapter of column ${number}`}
              value={part.name}
              onChange={(event) => onChange(column.map((old, i) => (i === index ? { ...old, name: event.currentTarget.value } : old)))}
            >
              {names.map((name) => <option key={name}>{name}</option>)}
            </select>
            <input
              type="number"
              step="0.05"
              aria-label={`Scale of ${part.name} in column ${number}`}
              value={part.scale}
              onInput={(event) => {
                const scale = event.currentTarget.valueAsNumber;
                if (Number.isFinite(scale)) onChange(column.map((old, i) => (i === index ? { ...old, scale } : old)));
              }}
            />
            {column.length > 1 && (
              <Button kind="quiet" icon="close" aria-label={`Take ${part.name} out of column ${number}`} onClick={() => onChange(column.filter((_, i) => i !== index))} />
            )}
          </div>
        ))}
      </div>
      {column.length > 0 && loras.length > column.length && (
        <Button
          kind="quiet"
          icon="plus"
          aria-label={`Another adapter in column ${number}`}
          title="Several adapters at once"
          onClick={() => {
            const next = loras.find(({ name }) => !column.some((part) => part.name === name));
            if (next) onChange([...column, { name: next.name, scale: 1 }]);
          }}
        />
      )}
      {onRemove && <Button kind="quiet" icon="close" aria-label={`Remove column ${number}`} onClick={onRemove} />}
    </div>
  );
}
