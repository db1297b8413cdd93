"""Tables and lines for a terminal: rich's where it is installed, else plain ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich import box
    from rich.console import Console, Group, RenderableType
    from rich.table import Table
    from rich.text import Text
else:
    try:
        from rich import box
        from rich.console import Console, Group, RenderableType
        from rich.table import Table
        from rich.text import Text
    except ModuleNotFoundError:
        from sartor.report.plain import Console, Group, RenderableType, Table, Text, box

__all__ = ["Console", "Group", "RenderableType", "Table", "Text", "box"]
