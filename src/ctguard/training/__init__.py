"""`ctguard train`: what each kind of model learns from, and the run that joins sampler, model and loop."""
