"""compare: are these runs the same, and where do they part?

Judging needs numpy and safetensors and no torch, so that a laptop can judge traces that came by mail.
"""
