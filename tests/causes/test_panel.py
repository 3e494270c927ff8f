"""The section of causes on a question's page, of figures that the test chose."""

import re

import numpy as np

from spatialvlm.causes import layers, panel
from spatialvlm.causes.record import Causes
from spatialvlm.inside import page

RED, BLUE, FULL = "rgb(194,65,12)", "rgb(11,110,153)", "0.60"


def logprobs(log_odds):
  """Of two options, the first with these log-odds."""
  odds = np.asarray(log_odds, np.float32)
  return np.stack([-np.logaddexp(0, -odds), -np.logaddexp(0, odds)], -1)


def causes(cut, patched):
  """A picture's log-odds are 2, the other picture's 0."""
  return Causes(
    question="?",
    options=("a", "b"),
    right=0,
    chosen=0,
    picture=np.zeros((4, 4, 3), np.uint8),
    regions=("all",),
    kinds=("all",),
    masks=np.ones((1, 4, 4), bool),
    logprobs=logprobs(2.0),
    blind=logprobs(0.0),
    grey=logprobs([0.0]),
    swaps=(),
    swapped=np.zeros((0, 2), np.float32),
    cut_groups=("picture",),
    cut=logprobs([cut]),
    patch_groups=("last",),
    patched=logprobs([patched]),
    opposite=logprobs(0.0),
  )


def tinted(html, name):
  """(text, colour, strength) of each tinted cell in the table's row of a group."""
  row = html[html.index(layers.GROUPS[name]) :].split("</tr>")[0]
  cell = r"<td[^>]*class='[^']*\btinted\b[^']*'[^>]*>.*?</td>"
  found = []
  for text in re.findall(cell, row, re.S):
    colour, strength = re.search(r"fill='(.*?)' fill-opacity='(.*?)'", text).groups()
    found.append((re.search(r"aria-label='(.*?)'", text)[1], colour, strength))
  return found


def test_cells_are_tinted_by_what_they_hold():
  html = panel.html(causes(cut=[1.0, 2.5, -2.0], patched=[0.0, 1.0, 2.0]))
  # The furthest change, −4, has the full colour; one of −1 a quarter of it, and what gains is blue.
  assert tinted(html, "picture") == [("−1.00", RED, "0.15"), ("0.50", BLUE, "0.07"), ("−4.00", RED, FULL)]
  assert tinted(html, "last") == [("0.00", BLUE, "0.00"), ("0.50", BLUE, "0.30"), ("1.00", BLUE, FULL)]


def test_the_page_lays_tinted_cells_out():
  """A class that no rule of the page's stylesheet knows would leave the figures crowded."""
  style = (page._ASSETS / "inside.css").read_text()
  assert re.search(r"td\.tinted\s*\{[^}]*min-width", style) and re.search(r"td\.tinted svg\s*\{", style)
