// A hundred times: a caption is typed, an image is asked for, and the page is loaded again at some moment after. At the end every
// caption is in its file as it was typed last, and every image that was asked for was made, once.
import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { chromium } from "playwright-core";

const { ADDRESS, BROWSER, FOLDER } = process.env;
const ROUNDS = 100;
const browser = await chromium.launch({ executablePath: BROWSER, args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"] });
const page = await (await browser.newContext({ viewport: { width: 1280, height: 860 } })).newPage();
page.setDefaultTimeout(60_000);
const wrong = [];
page.on("pageerror", (error) => wrong.push(String(error)));

/** Numbers of a fixed sequence: a failure can be had again. */
let state = 1;
const draw = (below) => (state = (state * 48271) % 2147483647) % below;

await page.goto(`${ADDRESS}/#/dataset?set=drawings`);
const captions = page.locator(".card textarea");
await captions.first().waitFor();
const typed = new Map();
for (let round = 0; round < ROUNDS; round++) {
  const caption = captions.nth(round % 4);
  const file = (await caption.getAttribute("aria-label")).replace("Caption of ", "").replace(/png$/, "txt");
  typed.set(file, `round ${round}`);
  await caption.fill(typed.get(file));
  // Before the pause after which it is saved, while it is, or after.
  await page.waitForTimeout(draw(1600));
  await page.reload();
  await captions.first().waitFor();
  const shown = await captions.evaluateAll((all) => all.map(({ value }) => value));
  for (const text of typed.values()) assert.ok(shown.includes(text), `round ${round}: ${text} is not among ${shown}`);
}
await page.waitForFunction(() => Object.keys(localStorage).every((key) => !key.startsWith("kiln-draft:")), undefined, { timeout: 30_000 });
for (const [file, text] of typed) assert.equal(fs.readFileSync(path.join(FOLDER, "drawings", file), "utf8").trim(), text, file);

// Images that are being made when the page is loaded again.
await page.goto(`${ADDRESS}/#/compare`);
await page.getByRole("textbox", { name: "Prompt", exact: true }).fill("red apple");
await page.getByRole("textbox", { name: "Seeds" }).fill("0-3");
await page.getByRole("textbox", { name: "Seeds" }).press("Control+Enter");
for (let round = 0; round < ROUNDS; round++) {
  await page.waitForTimeout(draw(120));
  await page.reload();
}
await page.waitForFunction(() => [...document.querySelectorAll(".grid img")].filter(({ complete, naturalWidth }) => complete && naturalWidth > 0).length >= 4);
const jobs = await (await page.request.get(`${ADDRESS}/kiln/v1/jobs`)).json();
assert.deepEqual(jobs.map(({ status }) => status), Array(4).fill("completed"), "each image was made once");
assert.deepEqual(wrong, []);
await browser.close();
console.log(`${2 * ROUNDS} reloads`);
