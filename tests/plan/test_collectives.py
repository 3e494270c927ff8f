"""Messages between devices, read out of programs' texts as compilers for TPUs, GPUs and CPUs write them."""

from pathlib import Path

from spatialvlm.plan import collectives

# As a TPU's compiler writes, shortened: an operation that stands twice, a combined one, one in a loop, one of
# groups of one.
TPU = (Path(__file__).parent / "tpu.hlo.txt").read_text()


def test_channels_count_once_and_loops_as_often_as_they_turn():
  found = {(one.kind, one.shape): one for one in collectives.read(TPU, 8)}
  assert set(found) == {
    ("all-gather", "bf16[960,16]"),
    ("all-gather", "bf16[8,8]"),
    ("all-gather", "bf16[960,2560]"),
    ("all-to-all", "bf16[8]"),
    ("all-reduce", "f32[16,960] f32[960,16]"),
    ("all-reduce", "f32[64]"),
    ("reduce-scatter", "bf16[120]"),
    ("collective-permute", "u8[100]"),
  }
  gather = found["all-gather", "bf16[960,16]"]
  assert (gather.bytes, gather.group, gather.times) == (960 * 16 * 2, 2, 1)
  assert gather.received == 960 * 16  # half of it is there already
  assert found["all-gather", "bf16[960,2560]"].group == 2 and found["all-to-all", "bf16[8]"].group == 4
  looped = found["all-reduce", "f32[64]"]
  assert (looped.bytes, looped.group, looped.times) == (256, 4, 32)
  assert looped.received == 2 * 3 / 4 * 256 * 32
  assert found["all-reduce", "f32[16,960] f32[960,16]"].bytes == 2 * 4 * 16 * 960
  assert found["reduce-scatter", "bf16[120]"].received == 3 * 240
  assert found["collective-permute", "u8[100]"].received == 100
  assert collectives.loops(TPU) == 1


def test_a_loop_that_does_not_say_how_often_it_turns_is_asked_for_its_end():
  """As the compiler for TPUs leaves jax's loops."""
  unsaid = TPU.replace(', backend_config={"known_trip_count":{"n":"32"}}', "")
  reduced = lambda text: next(one for one in collectives.read(text, 8) if one.shape == "f32[64]")
  assert reduced(unsaid).times == 1 and collectives.loops(unsaid) == 1
  limit = """  %constant.9.clone = s32[]{:T(128)} constant(5)
  %carry.1 = (s32[]{:T(128)}, f32[64]{0}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%carry.1), index=0
  ROOT %lt.95 = pred[]{:T(512)} compare(%counter, %constant.9.clone), direction=LT, metadata={op_name="lt"}"""
  told = unsaid.replace("  ROOT %less = pred[] constant(true)", limit)
  assert told != unsaid and reduced(told).times == 5 and collectives.loops(told) == 1
  assert reduced(told.replace("direction=LT", "direction=NE")).times == 1
  once = told.replace("constant(5)", "constant(1)")
  assert reduced(once).times == 1 and collectives.loops(once) == 0


def test_sums_and_what_sends_most():
  found = collectives.read(TPU, 8)
  sums = collectives.summed(found)
  assert list(sums) == ["all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"]
  sizes = {"bytes": 2 * 960 * (16 + 2560) + 128, "received": 960 * (16 + 2560) + 64.0}
  assert sums["all-gather"] == {"operations": 3, "times": 3, "overlapped": 2, **sizes}
  # One between a start and an end, one fused with products.
  assert {one.shape for one in found if one.overlapped} == {"bf16[960,16]", "bf16[8,8]"}
  assert sums["all-reduce"]["overlapped"] == 0
  assert sums["all-reduce"]["operations"] == 2 and sums["all-reduce"]["times"] == 33
  (most, number), *_ = collectives.commonest(found * 2)
  assert most.shape == "bf16[960,2560]" and number == 2


def test_nothing_is_sent_by_one_device():
  assert collectives.read(TPU.replace("[4,2]<=[8]", "[8,1]<=[8]"), 1)
  alone = (
    "ENTRY %main (p: f32[4]) -> f32[4] {\n  ROOT %all-reduce = f32[4]{0} all-reduce(%p), channel_id=1\n}\n"
  )
  assert collectives.read(alone, 1) == []
  (one,) = collectives.read(alone, 4)
  assert one.group == 4
