"""Apache Beam jobs: export of paired patches, their statistics, and products of many scenes."""

import logging
import os

# Jobs work on many patches at once; numpy's own threads, started when it is imported, would only be in the way.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Beam warns on import that BigQuery's clients are missing; nothing here uses them.
logging.getLogger().addFilter(lambda record: "apitools not found" not in record.getMessage())
# And its RunInference, wrongly, that a module of Python's is missing, which only means that torch is.
logging.getLogger().addFilter(lambda record: "Resource module is not available" not in record.getMessage())
logging.getLogger("apache_beam.io.gcp.bigquery").setLevel(logging.ERROR)
