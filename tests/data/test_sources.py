"""Opening sources: settings that a kind does not know are refused."""

import pytest

from spatialvlm.config import SourceConfig
from spatialvlm.data.sources.registry import open_questions, open_source
from spatialvlm.types import UserError


@pytest.mark.parametrize(
  "setting", [{"turns": 2}, {"columns": {"image": "x"}}, {"image_root": "x"}, {"tasks": {"Count": 1.0}}]
)
def test_settings_that_a_kind_passes_over_are_refused(setting):
  (name,) = setting
  for open_ in (open_source, open_questions):
    with pytest.raises(UserError, match=f"kind 'cvbench' heeds no `{name}`"):
      open_(SourceConfig(kind="cvbench", path="x.parquet", **setting))
