// Asks a folder of ONNX files within transformers.js: node transformers_js.mjs PACKAGES ASKED.json
// PACKAGES: a folder in which @huggingface/transformers is installed. ASKED: {models, name, dtypes, text, picture,
// pixels: {file, dims}, count}. Prints one line of JSON.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [packages, file] = process.argv.slice(2);
const require = createRequire(packages + "/");
const js = require("@huggingface/transformers");
const asked = JSON.parse(readFileSync(file, "utf8"));
js.env.allowRemoteModels = false;
js.env.allowLocalModels = true;
js.env.localModelPath = asked.models;
js.env.useFSCache = false;

const processor = await js.AutoProcessor.from_pretrained(asked.name);
const content = [{ type: "image" }, { type: "text", text: asked.text }];
const prompt = processor.apply_chat_template([{ role: "user", content }], { add_generation_prompt: true });
const inputs = await processor(prompt, [await js.RawImage.read(asked.picture)]);
const ids = Array.from(inputs.input_ids.data, Number);

const bytes = readFileSync(asked.pixels.file);
const given = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
const own = inputs.pixel_values.data;
let most = own.length === given.length ? 0 : null;
if (most !== null) own.forEach((value, place) => (most = Math.max(most, Math.abs(value - given[place]))));

const answers = {};
for (const dtype of asked.dtypes) {
  const model = await js.AutoModelForImageTextToText.from_pretrained(asked.name, { dtype, device: "cpu" });
  const answer = async (pixel_values) => {
    const settings = { max_new_tokens: asked.count, do_sample: false };
    const out = await model.generate({ ...inputs, pixel_values, ...settings });
    return Array.from(out.data, Number).slice(ids.length);
  };
  const pixels = new js.Tensor("float32", new Float32Array(given), asked.pixels.dims);
  answers[dtype] = { given: await answer(pixels), own: await answer(inputs.pixel_values) };
  await model.dispose();
}
const version = js.env.version;
console.log(JSON.stringify({ version, prompt, ids, dims: inputs.pixel_values.dims, pixels: most, answers }));
process.exit(0);
