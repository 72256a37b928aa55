"""Everything about keeping a run: folder, log, checkpoints, resume, signals, locks."""
