"""Training of the embedded models and of the TerraCodec architectures (torch)."""
