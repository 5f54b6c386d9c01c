"""Search over images by a dual encoder: an index of vectors in a folder, and exact nearest neighbours in it."""
from vilg.app.search.collection import open_collection
from vilg.app.search.index import SearchIndex, build_index, open_index
from vilg.app.search.query import Hit, search_images, search_texts
from vilg.app.search.results import lines, read_hits, records, write_sheet

__all__ = ["Hit", "SearchIndex", "build_index", "lines", "open_collection", "open_index", "read_hits", "records",
           "search_images", "search_texts", "write_sheet"]
