"""Export: Hugging Face folders in and out."""

from edgeprune.export.folder import Folder, capture_folder, is_folder, read_folder
from edgeprune.export.hugging_face import Exported, export_folder

__all__ = [
    "Exported",
    "Folder",
    "capture_folder",
    "export_folder",
    "is_folder",
    "read_folder",
]
