"""What both trainings share: run folder, arguments, seeding, sampler, EMA, checkpoints and exact resume, signals."""
