"""Default weights (fp16 safetensors), each with its card."""
