"""Chat templates as published checkpoints have them, beside transformers' own rendering."""

import datetime
import json

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from spatialvlm.processing import processor_files
from spatialvlm.processing.prompts import ChatTemplate

TALK = [
  {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How <many> & 'which'?"}]},
  {"role": "assistant", "content": [{"type": "text", "text": "Two."}]},
]
TEMPLATES = {
  "answers marked for training": (
    "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content[0].text }}{% set x = 1 %}\n{% endgeneration %}\n"
    "{% else %}{{ m.content[1].text }}\n{% endif %}{% endfor %}"
  ),
  "trimmed marks": "{%- for m in messages %} {%- generation %} {{ m.role }} {%- endgeneration -%} \n"
  "{% endfor -%} .",
  "a system line with tools": "{% if tools is not none %}TOOLS {% endif %}{% if documents %}DOCS {% endif %}"
  "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
  "a conversation as JSON": "{{ messages[0] | tojson }} "
  "{{ {'b': 1, 'a': 'é'} | tojson(indent=2, sort_keys=True) }}",
  "the day of the call": "Today is {{ strftime_now('%d %B %Y') }}. {{ messages[0].role }}",
}


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("asks", [False, True])
def test_a_template_renders_as_in_transformers(kind, asks):
  source = TEMPLATES[kind] + "{% if add_generation_prompt %}assistant:{% endif %}"
  (expected,), _ = render_jinja_template([TALK], chat_template=source, add_generation_prompt=asks)
  assert ChatTemplate(source).render(TALK, add_generation_prompt=asks) == expected
  assert "assistant:" in expected or not asks


def test_the_date_is_that_of_the_call():
  template = ChatTemplate("{{ strftime_now('%Y') }}")
  assert template.render([]) in {str(datetime.datetime.now().year + d) for d in (0, -1)}


def test_an_older_tokenizer_names_its_tokens_in_special_tokens_map_alone(tmp_path):
  (tmp_path / "special_tokens_map.json").write_text(
    json.dumps({"bos_token": {"content": "<s>"}, "pad_token": "<p>"})
  )
  names = processor_files.special_tokens(tmp_path, {"pad_token": "</s>", "model_max_length": 8})
  assert names == {"bos_token": "<s>", "pad_token": "<p>"}
  newer = {"pad_token": "</s>", "added_tokens_decoder": {"0": {"content": "</s>"}}}
  assert processor_files.special_tokens(tmp_path, newer) == {"pad_token": "</s>"}


def test_a_template_gets_the_tokens_of_special_tokens_map(tmp_path):
  from spatialvlm.processing.processor import load_processor
  from tests.tiny_processor import CHAT_TEMPLATE, write, write_processor

  write_processor(tmp_path)
  settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
  named = {k: settings.pop(k) for k in ("bos_token", "pad_token", "eos_token")}
  write(tmp_path, "tokenizer_config.json", settings)
  write(tmp_path, "special_tokens_map.json", named)
  write(
    tmp_path,
    "chat_template.json",
    {"chat_template": "{{ bos_token }}" + CHAT_TEMPLATE[len("<|im_start|>") :]},
  )
  processor = load_processor(tmp_path)
  assert processor.pad_id == 2
  assert processor.template.render(TALK[1:]).startswith("<|im_start|>Assistant:")
