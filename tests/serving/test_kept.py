"""What is kept within a budget."""

from spatialvlm.serving.kept import Kept


def test_the_least_recently_used_go_first():
  kept = Kept(10)
  for key, size in (("a", 4), ("b", 4)):
    kept.put(key, key.upper(), size)
  assert kept.get("a") == "A" and kept.get("x") is None
  kept.put("c", "C", 5)  # b was used longest ago
  assert "b" not in kept and kept.get("a") == "A" and kept.get("c") == "C" and kept.size == 9
  kept.put("huge", "H", 11)  # nothing goes for what cannot stay
  assert "huge" not in kept and kept.size == 9
  assert (kept.found, kept.missed) == (3, 1)
