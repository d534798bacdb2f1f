"""Sizes as text: the small grammar in which an archive writes expressions of its dynamic sizes.

    expression := term (("+" | "-") term)*
    term       := factor (("*" | "//" | "%") factor)*
    factor     := "-" factor | atom ("**" factor)?
    atom       := integer | name | name "(" argument ("," argument)* ")" | "(" expression ")"
    argument   := expression | name "=" ("True" | "False") | quoted name

torch writes sympy's constructor form, `Mul(Integer(2), Symbol('s58', positive=True, integer=True))`; plain infix
is understood too. Names of functions are those of `FUNCTIONS` and nothing else; the result is a tree of our own
(tensor_meta.py), and no text is ever given to sympy or to Python.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from workers.graph.tensor_meta import Apply, Expression, Symbol

LONGEST = 4096  # characters
DEEPEST = 64  # nested brackets, signs and powers
TOKEN = re.compile(r"\s*(?:([0-9]{1,19})|([A-Za-z_][A-Za-z0-9_]*)|('[A-Za-z_][A-Za-z0-9_]*')|(\*\*|//|[-+*%(),=]))")


class NotAnExpression(ValueError):
    """The text is not in the grammar."""


def parse_size(text: str) -> Expression:
    """The expression that `text` writes; `NotAnExpression` where it is not in the grammar."""
    if len(text) > LONGEST:
        raise NotAnExpression(f"it has {len(text)} characters, more than {LONGEST}")
    parser = Parser(tokenize(text))
    expression = parser.expression(0)
    if parser.peek():
        raise NotAnExpression(f"{parser.peek()!r} follows its end")
    return expression


def tokenize(text: str) -> list[str]:
    """Integers, names, quoted names and signs, in order."""
    tokens, position, text = [], 0, text.strip()
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            raise NotAnExpression(f"{text[position]!r} has no place in a size")
        tokens.append(match.group().strip())
        position = match.end()
    return tokens


@dataclass
class Parser:
    """Recursive descent over the tokens."""

    tokens: list[str]
    position: int = 0

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        """The next token, which must be `expected` where that is given."""
        found = self.peek()
        if not found or expected not in {"", found}:
            raise NotAnExpression(f"{expected or 'more'} was expected, not {found or 'the end'}")
        self.position += 1
        return found

    def expression(self, depth: int) -> Expression:
        terms = [self.term(depth)]
        while self.peek() in {"+", "-"}:
            sign = self.take()
            term = self.term(depth)
            terms.append(term if sign == "+" else negative(term))
        return terms[0] if len(terms) == 1 else Apply("add", tuple(terms))

    def term(self, depth: int) -> Expression:
        result, nesting = self.factor(depth), depth
        while self.peek() in INFIX:
            nesting = deeper(nesting)
            result = Apply(INFIX[self.take()], (result, self.factor(depth)))
        return result

    def factor(self, depth: int) -> Expression:
        if self.peek() == "-":
            self.take()
            return negative(self.factor(deeper(depth)))
        atom = self.atom(deeper(depth))
        if self.peek() == "**":
            self.take()
            return Apply("power", (atom, self.factor(deeper(depth))))
        return atom

    def atom(self, depth: int) -> Expression:
        word = self.take()
        if word.isdigit():
            return int(word)
        if word == "(":
            inner = self.expression(depth)
            self.take(")")
            return inner
        if not word.isidentifier():
            raise NotAnExpression(f"{word!r} is no size")
        return self.call(word, depth) if self.peek() == "(" else Symbol(word)

    def call(self, name: str, depth: int) -> Expression:
        self.take("(")
        if name == "Symbol":
            return self.symbol()
        if name not in FUNCTIONS:
            raise NotAnExpression(f"{name!r} is no function of sizes; they are {', '.join(['Symbol', *FUNCTIONS])}")
        arguments = [self.expression(depth)]
        while self.peek() == ",":
            self.take()
            arguments.append(self.expression(depth))
        self.take(")")
        return FUNCTIONS[name](*bounded(name, arguments))

    def symbol(self) -> Symbol:
        """The rest of `Symbol('s0', positive=True, integer=True)`; its assumptions say nothing new."""
        quoted = self.take()
        if not quoted.startswith("'"):
            raise NotAnExpression("a symbol's name stands in quotes")
        while self.peek() == ",":
            self.take()
            assumption, _, value = self.take(), self.take("="), self.take()
            if assumption not in ASSUMPTIONS or value not in {"True", "False"}:
                raise NotAnExpression(f"{assumption}={value} is no assumption about a size")
        self.take(")")
        return Symbol(quoted.strip("'"))


def deeper(depth: int) -> int:
    """The next depth of nesting, or `NotAnExpression`: a tree is no deeper than Python's stack bears."""
    if depth >= DEEPEST:
        raise NotAnExpression(f"it is nested deeper than {DEEPEST}")
    return depth + 1


def negative(expression: Expression) -> Expression:
    return -expression if isinstance(expression, int) else Apply("multiply", (-1, expression))


def binary(operator: str) -> Callable[[Expression, Expression], Expression]:
    return lambda left, right: Apply(operator, (left, right))


def variadic(operator: str) -> Callable[..., Expression]:
    return lambda *operands: Apply(operator, operands)


def literal(value: Expression) -> Expression:
    """`Integer(16)`: the number itself."""
    if not isinstance(value, int):
        raise NotAnExpression("Integer takes a number")
    return value


def bounded(name: str, arguments: list[Expression]) -> list[Expression]:
    """`arguments`, or `NotAnExpression` where the function takes another number of them."""
    wanted = ARITY.get(name)
    if wanted is not None and len(arguments) != wanted:
        raise NotAnExpression(f"{name} takes {wanted} arguments, not {len(arguments)}")
    return arguments


INFIX = {"*": "multiply", "//": "floor_divide", "%": "modulo"}
ASSUMPTIONS = {"positive", "integer", "nonnegative", "nonzero", "finite", "real"}
# sympy's and torch's names (torch.utils._sympy.functions) for the arithmetic of sizes.
FUNCTIONS: dict[str, Callable[..., Expression]] = {
    "Integer": literal,
    "Add": variadic("add"),
    "Mul": variadic("multiply"),
    "Max": variadic("maximum"),
    "Min": variadic("minimum"),
    "Pow": binary("power"),
    "PowByNatural": binary("power"),
    "Mod": binary("modulo"),
    "PythonMod": binary("modulo"),
    "FloorDiv": binary("floor_divide"),
    "CleanDiv": binary("exact_divide"),
}
ARITY = {"Integer": 1} | dict.fromkeys(["Pow", "PowByNatural", "Mod", "PythonMod", "FloorDiv", "CleanDiv"], 2)
