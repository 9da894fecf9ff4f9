"""What a run shows: TensorBoard summaries, metrics.csv, progress, tables, pictures."""
