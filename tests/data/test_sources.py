"""Opening sources, and endless ones in blocks."""

import threading

import pytest

from spatialvlm.config import SourceConfig
from spatialvlm.data.sources.registry import InBlocks, open_questions, open_source
from spatialvlm.mixture import ENDLESS
from spatialvlm.types import UserError


class Numbers:
  def __init__(self, length=ENDLESS):
    self.length, self.asked = length, []
    self.entered = threading.Semaphore(0)

  def __len__(self):
    return self.length

  def __getitems__(self, indices):
    self.asked.append(list(indices))
    return [10 * i for i in indices]


def test_whole_blocks_are_read_once():
  numbers = Numbers()
  source = InBlocks(numbers, block=4, kept=2)
  assert source.__getitems__([2, 3, 4]) == [20, 30, 40] and source[5] == 50
  assert numbers.asked == [[0, 1, 2, 3], [4, 5, 6, 7]]
  assert source[9] == 90 and source[1] == 10
  assert numbers.asked[2:] == [[8, 9, 10, 11], [0, 1, 2, 3]]
  assert len(source) == ENDLESS


def test_the_last_block_may_be_short():
  assert InBlocks(Numbers(6), block=4)[5] == 50


def test_threads_share_one_reading():
  gate = threading.Event()

  class Slow(Numbers):
    def __getitems__(self, indices):
      gate.wait(10)
      return super().__getitems__(indices)

  numbers = Slow()
  source, found = InBlocks(numbers, block=4), []
  threads = [threading.Thread(target=lambda i=i: found.append(source[i])) for i in range(4)]
  for thread in threads:
    thread.start()
  gate.set()
  for thread in threads:
    thread.join()
  assert sorted(found) == [0, 10, 20, 30] and len(numbers.asked) == 1


def test_an_error_reaches_the_caller_and_is_not_kept():
  class Once(Numbers):
    def __getitems__(self, indices):
      if not self.asked:
        self.asked.append(indices)
        raise ValueError("first")
      return super().__getitems__(indices)

  source = InBlocks(Once(), block=4)
  with pytest.raises(ValueError, match="first"):
    source[0]
  assert source[0] == 0


@pytest.mark.parametrize(
  "setting", [{"turns": 2}, {"columns": {"image": "x"}}, {"image_root": "x"}, {"tasks": {"Count": 1.0}}]
)
def test_settings_that_a_kind_passes_over_are_refused(setting):
  (name,) = setting
  for open_ in (open_source, open_questions):
    with pytest.raises(UserError, match=f"kind 'cvbench' heeds no `{name}`"):
      open_(SourceConfig(kind="cvbench", path="x.parquet", **setting))
