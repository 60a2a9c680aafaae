"""The way out of a run: its rows in the formats of other libraries, its models whole, both with a card."""

from selfalign.export.contents import What
from selfalign.export.dataset import Exported, export_rows
from selfalign.export.formats import Format
from selfalign.export.model import export_model
from selfalign.export.push import Upload, push, upload_of

__all__ = ["Exported", "Format", "Upload", "What", "export_model", "export_rows", "push", "upload_of"]
