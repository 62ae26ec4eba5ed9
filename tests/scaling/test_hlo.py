"""Collectives, loops and products are read from a program's text."""

import math

import pytest

from wmjax.core.errors import UserError
from wmjax.scaling.chips import CHIPS, parse_topology
from wmjax.scaling.hlo import Program, summarise
from wmjax.scaling.roofline import cost, kernel

LOOP = """HloModule jit_f, entry_computation_layout={(f32[4,8]{1,0})->f32[4,8]{1,0}}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%fused (p0: bf16[3,8,8], p1: s32[]) -> bf16[8,8] {
  %p0 = bf16[3,8,8]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %cut = bf16[1,8,8]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,8}
  ROOT %flat = bf16[8,8]{1,0} bitcast(%cut)
}

%body (t: (s32[], bf16[4,8], bf16[3,8,8])) -> (s32[], bf16[4,8], bf16[3,8,8]) {
  %t = (s32[], bf16[4,8]{1,0}, bf16[3,8,8]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = bf16[4,8]{1,0} get-tuple-element(%t), index=1
  %w = bf16[3,8,8]{2,1,0} get-tuple-element(%t), index=2
  %one = bf16[8,8]{1,0} fusion(%w, %i), kind=kLoop, calls=%fused
  %y = bf16[4,8]{1,0} dot(%x, %one), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %ag = bf16[8,8]{1,0:T(8,128)(2,1)} all-gather(%y), channel_id=1, replica_groups={{0,1}}, dimensions={0}
  %next = s32[] add(%i, %i)
  ROOT %out = (s32[], bf16[4,8]{1,0}, bf16[3,8,8]{2,1,0}) tuple(%next, %y, %w)
}

%condition (t: (s32[], bf16[4,8], bf16[3,8,8])) -> pred[] {
  %t = (s32[], bf16[4,8]{1,0}, bf16[3,8,8]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %end = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %end), direction=LT
}

ENTRY %main (g: f32[16], t: (s32[], bf16[4,8], bf16[3,8,8])) -> f32[16] {
  %g = f32[16]{0} parameter(0)
  %t = (s32[], bf16[4,8]{1,0}, bf16[3,8,8]{2,1,0}) parameter(1)
  %loop = (s32[], bf16[4,8]{1,0}, bf16[3,8,8]{2,1,0}) while(%t), condition=%condition, body=%body
  %begin = (f32[2]{0}, f32[16]{0}) all-gather-start(%g), replica_groups=[1,8]<=[8], dimensions={0}
  %end = f32[16]{0} all-gather-done(%begin)
  %rs = f32[2]{0} reduce-scatter(%end), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%sum
  ROOT %ar = f32[16]{0} all-reduce(%end), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%sum
}
"""


def test_collectives_count_as_often_as_their_loop_runs() -> None:
    found = summarise(Program(LOOP).collectives())
    assert found["all-gather"]["calls"] == 3 + 1
    assert found["all-gather"]["mb_by_dtype"] == {"bf16": 3 * 8 * 8 * 2 / 1e6, "f32": 16 * 4 / 1e6}
    assert found["reduce-scatter"]["mb"] == 8 * 2 * 4 / 1e6
    assert found["all-reduce"]["mb"] == 16 * 4 / 1e6


def test_traffic_is_that_of_a_ring() -> None:
    one = next(c for c in Program(LOOP).collectives() if c.kind == "all-reduce")
    assert (one.group, one.traffic) == (4, 2 * 64 * 3 / 4)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1},{2,3}}", 2),
        ("[2,4]<=[8]", 4),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", 4),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", 8),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0':(1)2}", 2),
    ],
)
def test_replica_groups_are_read_in_every_form(groups: str, size: int) -> None:
    text = LOOP.replace("replica_groups={{0,1,2,3},{4,5,6,7}}", f"replica_groups={groups}")
    assert next(c for c in Program(text).collectives() if c.kind == "all-reduce").group == size


def test_a_sum_that_the_cpu_widens_is_one_of_bfloat16() -> None:
    text = LOOP.replace("ROOT %ar = f32[16]{0} all-reduce(%end), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%sum",
                        "ROOT %ar = f32[16]{0} all-reduce(%end), replica_groups={{0,1,2,3},{4,5,6,7}}, "
                        "to_apply=%add.clone_promoted")  # fmt: skip
    assert summarise(Program(text).collectives())["all-reduce"]["mb_by_dtype"] == {"bf16": 16 * 2 / 1e6}


def test_products_and_slices_are_counted_by_what_they_touch() -> None:
    program = Program(LOOP)
    body = {line.name: line for line in program.computations["body"]}
    shapes = {name: line.shape for name, line in body.items()}
    product = kernel(program, body["y"], shapes)
    assert product.flops == 2 * 4 * 8 * 8 and product.traffic == 2 * (4 * 8 + 8 * 8 + 4 * 8)
    assert kernel(program, body["one"], shapes).traffic == 8 * 8 * 2 + 8 * 8 * 2 + 4  # a slice, its copy, the index
    total = cost(program, CHIPS["v5e"])
    assert total.flops == 3 * 2 * 4 * 8 * 8 and total.seconds > 0


def test_the_cycles_that_a_compiler_states_take_the_place_of_the_model() -> None:
    line = next(line for line in LOOP.splitlines() if "%y = " in line)
    stated = LOOP.replace(line, line + ', backend_config={"window_config":{"estimated_cycles":"3000"}}')
    plain, found = (cost(Program(text), CHIPS["v5e"]) for text in (LOOP, stated))
    assert plain.by_cycles == 0 and found.by_cycles == 3 * 3000 / 1.5e9  # the loop runs three times
    product = 2 * (4 * 8 + 8 * 8 + 4 * 8) / 819e9  # what the model said: its memory traffic
    assert found.seconds - found.by_cycles == pytest.approx(plain.seconds - 3 * product)
    assert cost(Program(stated), CHIPS["h100"]).by_cycles == 0
    allocated = LOOP.replace(line, '  %y = bf16[4,8]{1,0} custom-call(), custom_call_target="AllocateBuffer"')
    assert cost(Program(allocated), CHIPS["v5e"]).seconds == pytest.approx(plain.seconds - 3 * product)


@pytest.mark.parametrize(
    ("text", "devices", "platform"),
    [
        ("v5e:4x4", 16, "tpu"),
        ("h100:8x8", 64, "gpu"),
        ("h200:1", 1, "gpu"),
        ("cpu:6", 6, "cpu"),
        ("v5p:2x2x1", 4, "tpu"),
    ],
)
def test_topologies(text: str, devices: int, platform: str) -> None:
    found = parse_topology(text)
    assert (found.devices, found.platform) == (devices, platform)
    assert found.link == math.inf if platform == "cpu" else found.link > 0


def test_hosts_of_gpus_are_connected_by_a_slower_link() -> None:
    assert parse_topology("h100:8x8").link < parse_topology("h100:8").link == parse_topology("h100:1x8").link


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("v5:4x4", "did you mean"),
        ("v5e:16", "with 1 numbers; v5e has 2"),
        ("h100:2x2x2", "h100 has 1 or 2"),
        ("cpu:0", "write a chip and its number"),
        ("h100", "write a chip and its number"),
        ("v5e:999x999", "at most 4096"),
    ],
)
def test_a_bad_topology_is_named(text: str, words: str) -> None:
    with pytest.raises(UserError, match="--topology") as caught:
        parse_topology(text)
    assert words in str(caught.value)
