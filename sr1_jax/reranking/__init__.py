"""Training of rerankers: cross-encoders that order what a search found."""
