"""The 6 x 6 matrix of M3Dsynth's slides: does a detector of generated pictures know anything about forged CT?"""
