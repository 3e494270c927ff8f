"""What the docs link to stands where they say."""

import pytest

from tests import doc_links

PAGES = sorted((doc_links.ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_lines_are_right(page):
  assert page.read_text(encoding="utf-8") == doc_links.renewed(page), "run: python -m tests.doc_links"


def test_what_moved_is_found_and_what_is_gone_is_named(tmp_path):
  (tmp_path / "code.py").write_text(
    "A = 1\n\n\nclass B:\n  c: int = 0\n\n  def d(self):\n    def e():\n      pass\n"
  )
  page = tmp_path / "page.md"
  page.write_text("[`A`](code.py#L9) [`B.c`](code.py#L1) [`B.d`](code.py#L1) [`B.d.e`](code.py#L1)")
  lines = [link[2] for link in doc_links.LINK.findall(doc_links.renewed(page))]
  assert lines == ["1", "5", "7", "8"]
  page.write_text("[`gone`](code.py#L1)")
  with pytest.raises(LookupError, match=r"code\.py defines no gone"):
    doc_links.renewed(page)
