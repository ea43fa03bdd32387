"""Apache Beam jobs: export of paired patches."""
