"""The grammar of sizes, against sympy, which writes them and is never asked to read them."""

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from workers.formats.symbols import NotAnExpression, parse_size
from workers.graph.tensor_meta import Apply, Symbol, evaluate

BATCH, TOKENS = sympy.Symbol("s0", positive=True, integer=True), sympy.Symbol("s27", positive=True, integer=True)
ATOMS = st.sampled_from([BATCH, TOKENS]) | st.integers(-20, 20).map(sympy.Integer)
EXPRESSIONS = st.recursive(
    ATOMS | ATOMS.map(lambda base: base**2),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] * pair[1]),
        st.tuples(inner, inner).map(lambda pair: sympy.Max(*pair)),
    ),
    max_leaves=5,
)


@given(expression=EXPRESSIONS, batch=st.integers(1, 9), tokens=st.integers(1, 9))
def test_what_sympy_writes_is_read_and_has_the_same_value(expression: sympy.Expr, batch: int, tokens: int) -> None:
    value = int(expression.subs({BATCH: batch, TOKENS: tokens}))
    assert evaluate(parse_size(sympy.srepr(expression)), {"s0": batch, "s27": tokens}) == value


@given(expression=EXPRESSIONS, batch=st.integers(1, 9), tokens=st.integers(1, 9))
def test_infix_is_read_and_has_the_same_value(expression: sympy.Expr, batch: int, tokens: int) -> None:
    value = int(expression.subs({BATCH: batch, TOKENS: tokens}))
    assert evaluate(parse_size(str(expression)), {"s0": batch, "s27": tokens}) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("16", 16),
        ("s0", 7),
        ("2 + 3*s0", 23),
        ("-s0 + 10", 3),
        ("(s0 + 1) // 3 % 2", 0),
        ("2**3**2", 512),
        ("FloorDiv(Symbol('s0', positive=True, integer=True), Integer(2))", 3),
        ("PythonMod(Symbol('s0'), Integer(4))", 3),
        ("CleanDiv(Integer(12), Integer(4))", 3),
        ("Min(Integer(2), Symbol('s0'), Integer(9))", 2),
        ("PowByNatural(Integer(3), Integer(2))", 9),
    ],
)
def test_the_arithmetic_of_sizes(text: str, value: int) -> None:
    assert evaluate(parse_size(text), {"s0": 7}) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 +",
        "(1",
        "1)",
        "1 2",
        "s0.x",
        "f(1)",
        "Symbol(s0)",
        "Symbol('s0', evil=1)",
        "Integer('s')",
        "Integer(1, 2)",
        "Mod(1)",
        "1/2",
        "a[0]",
        "'x'",
        "1;2",
        "s0 = 1",
        "0x10",
        "1e9",
        "\n",
        "９",
    ],
)
def test_everything_else_is_no_size(text: str) -> None:
    with pytest.raises(NotAnExpression):
        parse_size(text)


@given(text=st.text(max_size=60))
def test_any_text_is_a_size_or_none(text: str) -> None:
    try:
        parse_size(text)
    except NotAnExpression:
        return


def test_long_and_deep_texts_are_refused_before_they_are_read() -> None:
    for text in [
        "1+" * 5000 + "1",
        "(" * 200 + "1" + ")" * 200,
        "-" * 200 + "1",
        "2**" * 200 + "1",
        "Max(" * 200 + "1",
    ]:
        with pytest.raises(NotAnExpression):
            parse_size(text)


def test_numbers_cannot_be_made_to_explode() -> None:
    with pytest.raises(ValueError, match="no size"):
        evaluate(Apply("power", (10, 10**9)), {})
    with pytest.raises(KeyError):
        evaluate(Symbol("s1"), {"s0": 1})
