"""What is in an export, and what is wrong with it: pure functions that `beam_jobs.compute_statistics` strings together.

    records -> totals      measure.py: one record; totals.py: sums of fixed size, added up in any order
    totals -> groups       groups.py: the figures of each split and of all, distribution.py: moments and quantiles
    groups -> protos       protos.py: statistics.pbtxt and schema.pbtxt, which TFX's tools read, and back
    groups -> anomalies    anomalies.py: against physics; comparison.py: split against split, baseline, schema
    all -> overview.html   overview.py, figures.py and their template

No file here imports TensorFlow.
"""
