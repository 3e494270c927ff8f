"""What the docs link to stands where they say."""

import re

import pytest

from tests import doc_links, rooms_picture

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


def references() -> list[tuple[str, str]]:
  """(file, reference) of what docs and docstrings name in backticks as a place in one of our rooms."""
  rooms = {path.stem for path in (doc_links.ROOT / "spatialvlm").glob("[a-z]*")} - {"config", "peft"}
  pattern = re.compile(rf"`((?:spatialvlm\.)?(?:{'|'.join(sorted(rooms))})(?:\.\w+)+)(?:\([^`]*\))?`")
  files = [*PAGES, *(doc_links.ROOT / "spatialvlm").rglob("*.py"), *(doc_links.ROOT / "configs").glob("*.py")]
  return [
    (str(file.relative_to(doc_links.ROOT)), found)
    for file in files
    for found in pattern.findall(file.read_text(encoding="utf-8"))
  ]


def exists(reference: str) -> bool:
  """Whether a dotted name is a module of ours, or one followed by what that module's text knows."""
  parts = reference.removeprefix("spatialvlm.").split(".")
  for count in range(len(parts), 0, -1):
    place = doc_links.ROOT.joinpath("spatialvlm", *parts[:count])
    file = next((f for f in (place.with_suffix(".py"), place / "__init__.py") if f.is_file()), None)
    if file is not None:
      text = file.read_text(encoding="utf-8")
      return parts[count:] == ["py"] or all(re.search(rf"\b{part}\b", text) for part in parts[count:])
  return False


def test_what_is_named_exists():
  wrong = [f"{file}: {name}" for file, name in references() if not exists(name)]
  assert not wrong, "\n".join(wrong)
  assert len(references()) > 20 and not exists("data.nothing.at_all") and exists("types.Batch.tokens_BT")


def test_the_picture_of_the_rooms_is_what_the_imports_say():
  assert rooms_picture.PICTURE.read_text(encoding="utf-8") == rooms_picture.draw(), (
    "run: python -m tests.rooms_picture"
  )
