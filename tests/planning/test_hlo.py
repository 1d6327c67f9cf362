"""The reader of HLO text."""

import pytest

from sr1_jax.planning.hlo import Shape, parse, parse_shapes

TEXT = """HloModule jit_f

%body (x: f32[4]) -> f32[4] {
  ROOT %x = f32[4]{0} parameter(0)
}, execution_thread="main"

ENTRY %main (a: (f32[4], bf16[2,3])) -> f32[4] {
  %a = (f32[4]{0}, /*index=1*/bf16[2,3]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %one = f32[4]{0} get-tuple-element(%a), index=0
  ROOT %call.1 = f32[4]{0} call(%one), to_apply=%body, backend_config={"estimated_cycles":"17"}
}
"""


def test_instructions_operands_and_calls_are_found():
    module = parse(TEXT)
    assert module.entry == "main" and set(module.computations) == {"main", "body"}
    main = module.computations["main"]
    assert [i.opcode for i in main] == ["parameter", "get-tuple-element", "call"]
    call = main.instructions[main.root]
    assert call.operands == ("one",) and dict(call.called) == {"to_apply": "body"}
    assert call.number("estimated_cycles") == 17 and call.number("trips") is None
    assert [s.dims for s in main.instructions["a"].shapes] == [(4,), (2, 3)]
    assert [user.name for user in main.users()["one"]] == ["call.1"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("f32[3,5]{1,0}", 60),
        # Rows of 64 numbers fill half a tile of 128 lanes; 10 rows take two of 8 sublanes.
        ("bf16[10,64]{1,0:T(8,128)(2,1)}", 16 * 128 * 2),
        ("bf16[10,64]{0,1:T(8,128)(2,1)}", 64 * 128 * 2),
        ("f32[7]{0:T(1024)}", 4096),
        ("s32[]{:T(128)}", 512),
        ("pred[3]{0}", 3),
        ("s4[6]{0}", 3),
        ("token[]", 0),
    ],
)
def test_bytes_count_whole_tiles(text, size):
    (shape,) = parse_shapes(text)
    assert shape.bytes == size


def test_memory_spaces():
    assert parse_shapes("bf16[2]{0:T(256)S(1)}") == (Shape("bf16", (2,), (0,), (256,), 1),)
    assert parse_shapes("bf16[2]{0:T(256)S(5)}")[0].space == 5


def test_text_that_is_no_module_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("nothing here")
