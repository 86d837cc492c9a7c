"""An extension of griffe: the description of a pydantic field becomes the docstring of its attribute."""

from __future__ import annotations

import ast
from typing import Any

import griffe


class FieldDescriptions(griffe.Extension):
    """Turns ``epochs: Annotated[int, Field(description="Passes.")] = 10`` into ``epochs: int = 10``, documented."""

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Called by griffe for each attribute that it has found."""
        annotation = getattr(node, "annotation", None)
        if not isinstance(annotation, ast.Subscript) or ast.unparse(annotation.value) != "Annotated":
            return
        kind, *metadata = annotation.slice.elts  # type: ignore[attr-defined]
        for call in metadata:
            texts = {keyword.arg: keyword.value for keyword in getattr(call, "keywords", ())}
            if "description" in texts and attr.docstring is None:
                attr.annotation = ast.unparse(kind)
                attr.docstring = griffe.Docstring(ast.literal_eval(texts["description"]), parent=attr)
