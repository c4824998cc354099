"""The forging chain (CT-GAN, M3Dsynth), differentiable end to end. Exists to measure and train the defence."""
