"""Reading Python source in tests of the code itself."""

import ast


def parsed(text: str) -> ast.Module:
    """The syntax tree of a module. Raises SyntaxError.

    CPython 3.11 sometimes loses count of its own depth in a long-lived process and raises SystemError ("AST constructor
    recursion depth mismatch", gh-106905) for source that is fine; another try succeeds.
    """
    for _ in range(4):
        try:
            return ast.parse(text)
        except SystemError:
            continue
    return ast.parse(text)
