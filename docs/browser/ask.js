// Runs a folder that `launch/export.py --to=onnx` wrote. In the address: ?model=NAME below models/, ?dtype=q8,
// ?device=webgpu, ?library= another copy of transformers.js, ?picture= the address of a first picture.
const said = new URLSearchParams(location.search);
const LIBRARY = said.get("library") ?? "https://cdn.jsdelivr.net/npm/@huggingface/transformers@4";
const NAME = said.get("model") ?? "smolvlm";
const OPTIONS = { dtype: said.get("dtype") ?? "q8", device: said.get("device") ?? "wasm" };
const at = (id) => document.getElementById(id);

let processor, model, picture;

function show(address) {
  at("shown").src = picture = address;
  at("shown").hidden = false;
  at("ask").disabled = !model;
}

async function load() {
  const js = await import(LIBRARY);
  Object.assign(js.env, { allowRemoteModels: false, allowLocalModels: true, localModelPath: "models/" });
  if (said.get("wasm")) js.env.backends.onnx.wasm.wasmPaths = said.get("wasm");
  processor = await js.AutoProcessor.from_pretrained(NAME);
  model = await js.AutoModelForImageTextToText.from_pretrained(NAME, OPTIONS);
  at("state").textContent = `${NAME}, ${OPTIONS.dtype}, ${OPTIONS.device}`;
  at("ask").disabled = !picture;
  return js;
}

async function ask(js) {
  at("ask").disabled = true;
  at("answer").textContent = "";
  const began = performance.now();
  try {
    const content = [{ type: "image" }, { type: "text", text: at("text").value }];
    const prompt = processor.apply_chat_template([{ role: "user", content }], { add_generation_prompt: true });
    const inputs = await processor(prompt, [await js.RawImage.read(picture)]);
    const streamer = new js.TextStreamer(processor.tokenizer, {
      skip_prompt: true,
      skip_special_tokens: true,
      callback_function: (text) => (at("answer").textContent += text),
    });
    const length = inputs.input_ids.dims[1];
    const ids = await model.generate({ ...inputs, max_new_tokens: 64, do_sample: false, streamer });
    at("answer").textContent = at("answer").textContent.trim();
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    const tokens = `${length} tokens in, ${ids.dims[1] - length} out`;
    at("state").textContent = `${NAME}, ${OPTIONS.dtype}, ${OPTIONS.device}: ${tokens}, ${seconds} s`;
  } catch (error) {
    at("state").textContent = `That went wrong: ${error.message}`;
  }
  at("ask").disabled = false;
}

at("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) show(URL.createObjectURL(file));
});
if (said.get("picture")) show(said.get("picture"));
load().then(
  (js) => at("ask").addEventListener("click", () => ask(js)),
  (error) => (at("state").textContent = `Not loaded: ${error.message}`),
);
