// Goes through every view of the page as a person does, in dark and light, on a screen and on a phone. Any error in the console,
// any request to elsewhere, any finding of axe, anything that a caption could run ends it with an error.
import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { AxeBuilder } from "@axe-core/playwright";
import { chromium } from "playwright-core";

const { ADDRESS, BROWSER, FOLDER, IMAGES } = process.env;
fs.mkdirSync(IMAGES, { recursive: true });
const arguments_ = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const browser = await chromium.launch({ executablePath: BROWSER, args: arguments_ });
const measured = {};

/** A page that keeps what went wrong in it. */
async function open(width, height, colorScheme) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme, reducedMotion: "no-preference" });
  const page = await context.newPage();
  page.wrong = [];
  page.streams = 0;
  // A refusal that is wanted here is an error to the console.
  const isWanted = (text) => text.includes("409 (Conflict)");
  page.on("console", (message) => message.type() === "error" && !isWanted(message.text()) && page.wrong.push(message.text()));
  page.on("pageerror", (error) => page.wrong.push(String(error)));
  page.on("request", (request) => {
    if (!request.url().startsWith(ADDRESS) && !request.url().startsWith("blob:")) page.wrong.push("asked " + request.url());
    if (request.url().endsWith("/kiln/v1/events")) page.streams += 1;
  });
  page.setDefaultTimeout(60_000);
  return page;
}

async function check(page, name) {
  const { violations } = await new AxeBuilder({ page }).analyze();
  const said = violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.target.join(" ")).slice(0, 3).join("; ")}`);
  assert.deepEqual(said, [], `axe on ${name}`);
  const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(over <= 0, `${name} is ${over} pixels too wide`);
  assert.equal(await page.evaluate(() => window.harmed), undefined, `a caption ran on ${name}`);
  assert.deepEqual(page.wrong, [], name);
}

const go = (page, view) => page.goto(`${ADDRESS}/#/${view}`);
const shot = (page, name) => page.screenshot({ path: path.join(IMAGES, `${name}.png`) });
/** The shown image of the element has pixels. */
const loaded = (page, selector, count) =>
  page.waitForFunction(
    ([selector, count]) => [...document.querySelectorAll(selector)].filter((image) => image.complete && image.naturalWidth > 0).length >= count,
    [selector, count],
  );

// By keyboard and pointer, once.

const page = await open(1280, 860, "dark");
await go(page, "runs");
const curves = page.locator(".chart canvas");
await curves.waitFor();
measured.firstPaint = await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime);
assert.ok(measured.firstPaint < 5000, `first paint after ${measured.firstPaint} ms`);

// A point that is written appears.
const metrics = path.join(FOLDER, "runs/quickstart/metrics.jsonl");
await page.waitForTimeout(1200);
const begun = Date.now();
fs.appendFileSync(metrics, '{"step":4,"loss":0.1234,"learning_rate":0.001,"grad_norm":0.1,"seconds_per_step":0.05,"memory_mib":60.0}\n');
await page.getByText("0.1234").first().waitFor();
measured.newPoint = Date.now() - begun;
assert.ok(measured.newPoint < 5000, `a new point after ${measured.newPoint} ms`);
for (const name of ["By level", "Rate", "Gradient", "Loss"]) await page.getByRole("button", { name, exact: true }).click();
await page.getByRole("checkbox", { name: "Log scale" }).check();
await page.getByRole("button", { name: /enlarge/ }).click();
await page.getByRole("dialog").waitFor();
await page.keyboard.press("Escape");
await page.locator("dialog").waitFor({ state: "detached" });

// Compare a checkpoint with the base model.
await page.getByRole("button", { name: "Compare step 4" }).click();
await page.getByRole("textbox", { name: "Prompt", exact: true }).fill("red apple");
await page.getByRole("textbox", { name: "Seeds" }).fill("0-1");
await page.getByRole("textbox", { name: "Seeds" }).press("Control+Enter");
await loaded(page, ".grid img", 4);
const link = page.url();
await page.reload();
await loaded(page, ".grid img", 4);
const jobs = await (await page.request.get(`${ADDRESS}/kiln/v1/jobs`)).json();
assert.equal(jobs.length, 4, "after a reload the same images are shown, not made again");
await page.getByRole("button", { name: /Base model, seed 0/ }).click();
await page.getByText("Guidance scale").last().waitFor();
await page.keyboard.press("Escape");
await page.getByRole("button", { name: "Slider" }).click();
const border = page.getByRole("slider", { name: /Border between/ });
await border.focus();
const before = await page.locator(".slider .over").getAttribute("style");
await page.keyboard.press("ArrowRight");
assert.notEqual(await page.locator(".slider .over").getAttribute("style"), before, "an arrow moves the border");
await check(page, "slider");
await shot(page, "slider-dark");
await page.getByRole("button", { name: "Flicker" }).click();
await page.getByRole("button", { name: "Pause" }).click();
await check(page, "flicker");

// Vote by keys.
await go(page, "vote");
await page.locator(".vote-side canvas").nth(1).waitFor();
for (const key of ["ArrowLeft", "ArrowRight", "ArrowDown", "ArrowUp"]) {
  const html = await page.locator(".vote-pair").innerHTML();
  assert.ok(!/nano|quickstart|src=/.test(html), "nothing tells who made an image before the vote");
  await page.keyboard.press(key);
  await page.getByText("nano-flux", { exact: true }).waitFor();
  await page.keyboard.press(" ");
  await page.getByText("A", { exact: true }).waitFor();
}
assert.equal(await page.getByText("4 voted now").count(), 1);
await go(page, "leaderboard");
await page.getByText("4 blind votes").waitFor();
await page.getByRole("button", { name: "Opponents" }).first().click();
await check(page, "leaderboard");

// Captions.
await go(page, "dataset?set=drawings");
const captions = page.locator(".card textarea");
await captions.first().waitFor();
const file = async (caption) => path.join(FOLDER, "drawings", (await caption.getAttribute("aria-label")).replace("Caption of ", "").replace(/png$/, "txt"));
const first = await file(captions.first());
await captions.first().fill("a caption from the page");
await page.getByText("saved", { exact: true }).waitFor();
assert.equal(fs.readFileSync(first, "utf8").trim(), "a caption from the page");
fs.writeFileSync(first, "a caption from elsewhere");
await captions.first().fill("mine");
await page.getByText("Somebody else wrote").waitFor();
await check(page, "conflict");
await shot(page, "conflict-dark");
await page.getByRole("button", { name: "Keep mine" }).click();
await page.getByText("saved", { exact: true }).waitFor();
assert.equal(fs.readFileSync(first, "utf8").trim(), "mine");
// What is typed when the page is left is saved when it is there again.
const second = await file(captions.nth(1));
await captions.nth(1).fill("typed and not waited for");
await page.reload();
await page.waitForFunction(() => Object.keys(localStorage).every((key) => !key.startsWith("kiln-draft:")), undefined, { timeout: 15_000 });
assert.equal(fs.readFileSync(second, "utf8").trim(), "typed and not waited for");
const shown = await captions.evaluateAll((all) => all.map(({ value }) => value));
assert.ok(shown.some((text) => text.startsWith("<img src=x onerror")), `a harmful caption is text: ${shown}`);
await page.getByRole("button", { name: "Find and replace" }).click();
await page.getByRole("textbox", { name: "Find" }).fill("blue ink");
await page.getByRole("textbox", { name: "Replace with" }).fill("<b>zpf</b>");
await page.keyboard.press("Enter");
await page.getByText(/In \d+ captions/).waitFor();
await check(page, "find and replace");
await page.getByRole("button", { name: "Replace", exact: true }).click();
await page.getByRole("button", { name: "Undo" }).click();
await page.getByText("Undone").waitFor();
const texts = fs.readdirSync(path.join(FOLDER, "drawings")).filter((name) => name.endsWith(".txt"));
assert.ok(texts.every((name) => !fs.readFileSync(path.join(FOLDER, "drawings", name), "utf8").includes("zpf")), "undone");
await page.getByRole("searchbox", { name: "Search" }).fill("onerror");
await page.getByText(/1 image/).first().waitFor();

// Two thousand images: few of them are in the page, and scrolling never holds it up for long.
await go(page, "dataset?set=many");
await page.locator(".card textarea").first().waitFor();
measured.long = await page.evaluate(async () => {
  let longest = 0;
  new PerformanceObserver((list) => list.getEntries().forEach(({ duration }) => (longest = Math.max(longest, duration)))).observe({ type: "longtask" });
  let most = 0;
  for (let step = 0; step < 60; step++) {
    scrollBy(0, 700);
    await new Promise((resolve) => setTimeout(resolve, 60));
    most = Math.max(most, document.querySelectorAll("img").length);
  }
  return { longest, most };
});
assert.ok(measured.long.most <= 200, `${measured.long.most} images in the page`);
await check(page, "many images");

// Jobs.
await go(page, "queue");
await page.locator(".job").nth(3).waitFor();
await page.request.post(`${ADDRESS}/kiln/v1/jobs`, { data: { prompt: "umbrella", steps: 200, count: 4 } });
await page.getByRole("button", { name: "Cancel umbrella" }).click();
await page.getByText("cancelled").first().waitFor();
await check(page, "queue");

// Every view is reached by the keyboard alone.
await go(page, "compare");
await page.reload();
await page.getByRole("heading").first().waitFor();
await page.keyboard.press("Tab");
assert.equal(await page.evaluate(() => document.activeElement?.textContent?.trim()), "Skip to the content");
for (const name of ["kiln", "Compare", "Vote", "Leaderboard", "Runs", "Dataset", "Queue"]) {
  await page.keyboard.press("Tab");
  assert.ok((await page.evaluate(() => document.activeElement?.innerText)).includes(name), `Tab leads to ${name}`);
}
await page.keyboard.press("Enter");
await page.getByRole("heading", { name: "Queue" }).waitFor();
await page.context().close();

// In all colors and sizes.

const views = { compare: link.split("#/")[1], vote: "vote", leaderboard: "leaderboard", runs: "runs", dataset: "dataset?set=drawings", queue: "queue" };
for (const [width, height] of [[1280, 860], [360, 740]]) {
  for (const scheme of ["dark", "light"]) {
    const small = await open(width, height, scheme);
    await small.goto(ADDRESS);
    for (const [name, at] of Object.entries(views)) {
      await go(small, at);
      await small.locator(`main.view-${name} :is(h1, img, canvas)`).first().waitFor();
      await small.waitForTimeout(700);
      await check(small, `${name}, ${scheme}, ${width}`);
      await shot(small, `${name}-${scheme}-${width}`);
    }
    assert.equal(small.streams, 1, "one stream of events for all views");
    await small.context().close();
  }
}
// Twice as large: as if the window were half as wide.
const zoomed = await open(640, 430, "light");
for (const at of Object.values(views)) {
  await go(zoomed, at);
  await zoomed.waitForTimeout(500);
  const over = await zoomed.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(over <= 0, `${at} at 200 % is ${over} pixels too wide`);
}

// Start a run and stop it.
const last = await open(1280, 860, "light");
await go(last, "runs");
await last.getByRole("button", { name: "Start a run" }).click();
await last.getByRole("textbox", { name: "Name of the run" }).fill("../no");
await last.getByRole("button", { name: "Start", exact: true }).click();
await last.getByText("is not a valid name").waitFor();
last.wrong = last.wrong.filter((text) => !text.includes("400 (Bad Request)"));
await check(last, "start");
await shot(last, "start-light");
await last.getByRole("textbox", { name: "Name of the run" }).fill("from-the-page");
await last.getByRole("button", { name: "Start", exact: true }).click();
await last.getByText("from-the-page has started").waitFor();
await last.getByRole("link", { name: /from-the-page/ }).click();
await last.getByRole("button", { name: "Stop", exact: true }).click();
await last.getByRole("dialog").getByRole("button", { name: "Stop", exact: true }).click();
await last.getByText("Stopped early").first().waitFor();
await check(last, "a stopped run");
await browser.close();
console.log(JSON.stringify(measured));
