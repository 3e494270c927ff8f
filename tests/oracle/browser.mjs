// Asks the page of docs/browser in a headless Chromium: run as `node --input-type=module - ASKED.json` in a folder that
// has puppeteer-core, and @sparticuz/chromium where CHROMIUM names no other. ASKED: {url, text, shot}. Prints JSON.
import { readFileSync } from "node:fs";
import puppeteer from "puppeteer-core";

const asked = JSON.parse(readFileSync(process.argv[2], "utf8"));
const said = process.env.CHROMIUM;
const bundled = said ? null : (await import("@sparticuz/chromium")).default;
const browser = await puppeteer.launch({
  args: [...(bundled?.args ?? []), "--no-sandbox"],
  executablePath: said ?? (await bundled.executablePath()),
  headless: "shell",
});
const page = await browser.newPage();
const failed = [];
page.on("pageerror", (error) => failed.push(error.message));
page.on("requestfailed", (request) => failed.push(request.url()));
await page.setViewport({ width: 760, height: asked.height ?? 800 });
await page.goto(asked.url);
const state = () => page.$eval("#state", (element) => element.textContent);
await page.waitForFunction(
  () => !document.getElementById("ask").disabled || /^Not/.test(document.getElementById("state").textContent),
  { timeout: 120000 },
);
let answer = null;
if (!(await state()).startsWith("Not")) {
  await page.$eval("#text", (element, text) => (element.value = text), asked.text);
  await page.click("#ask");
  const done = () => /tokens in|wrong/.test(document.getElementById("state").textContent);
  await page.waitForFunction(done, { timeout: 120000 });
  answer = await page.$eval("#answer", (element) => element.textContent);
}
const out = { answer, state: await state(), failed };
if (asked.shot) await page.screenshot({ path: asked.shot });
await browser.close();
console.log(JSON.stringify(out));
