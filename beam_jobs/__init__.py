"""Apache Beam jobs: export of paired patches."""

import logging

# Beam warns on import that BigQuery's clients are missing; nothing here uses them.
logging.getLogger().addFilter(lambda record: "apitools not found" not in record.getMessage())
