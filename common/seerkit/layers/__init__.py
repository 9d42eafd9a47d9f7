"""Parts of transformers that several backbones are made of."""
