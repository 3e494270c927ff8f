"""What others published of models of this kind on devices; none of it was measured here."""

from __future__ import annotations

from typing import NamedTuple

from spatialvlm.reporting import tables


class Published(NamedTuple):
  """A figure of somebody else's, as it stands in its source."""

  model: str
  device: str
  first_token: str
  tokens: str
  memory: str
  source: str


PUBLISHED = (
  Published(
    "SmolVLM2-256M, PyTorch", "Intel Core Ultra 7 265K", "5.15", "0.7", "", "huggingface.co/blog/openvino-vlm"
  ),
  Published(
    "SmolVLM2-256M, OpenVINO", "Intel Core Ultra 7 265K", "0.42", "47", "", "huggingface.co/blog/openvino-vlm"
  ),
  Published(
    "SmolVLM2-256M, OpenVINO, 8 bits", "Intel Core Ultra 7 265K", "0.25", "64", "",
    "huggingface.co/blog/openvino-vlm",
  ),
  Published(
    "SmolLM2-360M (text), ExecuTorch 8da4w", "vivo X300", "0.20", "100", "858 MB",
    "huggingface.co/Arm/smollm2-360m-instruct-8da4w-xnnpack-executorch",
  ),
  Published("SmolVLM-256M", "GPU", "", "", "< 1 GB", "arXiv 2504.05299"),
)  # fmt: skip


def table() -> tables.Table:
  """All of them, marked as what they are."""
  rows = [list(figure) for figure in PUBLISHED]
  head = ["", "device", "first token, s", "tokens/s", "memory", "source"]
  note = "Published by the sources named, on their models and prompts; not measured here."
  return tables.make("published", "Published of others", head, rows, note=note)
