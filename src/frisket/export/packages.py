"""The packages of the extra `onnx`, which only export needs: `needed("onnxruntime")` before their import."""

from importlib.util import find_spec

from frisket.errors import UserError


def needed(*names: str) -> None:
    """Raise UserError for a package that is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise UserError(
                f"export needs {name}, which is not installed: pip install 'frisket[onnx]' -c constraints.txt"
            )
