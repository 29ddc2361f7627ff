"""Results: tidy rows and the record of events, saved in a folder, shown as a table or a page.

``rows`` defines a row, ``results`` holds rows with their provenance and events. Of a run, ``summary`` is the table,
``verdict`` one sentence, ``answers`` and ``said`` what the policies said, ``report`` its HTML page with ``captions``,
``promote`` the command that serves a policy as it was measured.
"""

from kvlab.results.folders import make_folder, new_run_folder
from kvlab.results.results import Results, merged
from kvlab.results.rows import PHASES, SCHEMA, Row, row, units
from kvlab.results.void import mark_void

__all__ = ["PHASES", "SCHEMA", "Results", "Row", "make_folder", "mark_void", "merged", "new_run_folder", "row", "units"]
