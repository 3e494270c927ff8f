"""What recipes have names for: published encoders, and layers by regexes of their names in checkpoints."""

SHORT = {
  "siglip": "google/siglip-base-patch16-224",
  "siglip-384": "google/siglip-base-patch16-384",
  "siglip-512": "google/siglip-base-patch16-512",
  "siglip-so400m": "google/siglip-so400m-patch14-384",
  "siglip2": "google/siglip2-base-patch16-256",
  "siglip2-so400m": "google/siglip2-so400m-patch14-384",
  "clip-b16": "openai/clip-vit-base-patch16",
  "clip-l14": "openai/clip-vit-large-patch14",
  "clip-l14-336": "openai/clip-vit-large-patch14-336",
  "dinov2-small": "facebook/dinov2-small",
  "dinov2-base": "facebook/dinov2-base",
  "dinov2-large": "facebook/dinov2-large",
  "dinov2-giant": "facebook/dinov2-giant",
  "dinov2-reg-small": "facebook/dinov2-with-registers-small",
  "dinov2-reg-base": "facebook/dinov2-with-registers-base",
  "dinov2-reg-large": "facebook/dinov2-with-registers-large",
  "dinov3-small": "facebook/dinov3-vits16-pretrain-lvd1689m",
  "dinov3-base": "facebook/dinov3-vitb16-pretrain-lvd1689m",
  "dinov3-large": "facebook/dinov3-vitl16-pretrain-lvd1689m",
  "internvit": "OpenGVLab/InternVL3-1B-hf",
}
# Names without a size; of CLIP the one that has long had safetensors (pickles are never read).
SHORT |= {"clip": SHORT["clip-l14"], "dinov2": SHORT["dinov2-base"], "dinov2-reg": SHORT["dinov2-reg-base"]}
SHORT |= {"dinov3": SHORT["dinov3-base"]}

CONNECTOR = r"model\.connector\..*"
DECODER = r".*(text_model|language_model)\..*\.(q|k|v|o|gate|up|down)_proj"
# Linear layers of every encoder's blocks, as their own checkpoints call them, and of a SmolVLM's tower.
TOWER = (
  r"(encoders|model\.vision_model)\..*"
  r"\.(query|key|value|dense|(q|k|v|o|out|gate|up|down)_proj|projection_layer|fc[12]|weights_out)"
)
